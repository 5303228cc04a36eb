#include "parallel/train/model/buffers.h"

namespace periplus::train {

ParameterBuffers::ParameterBuffers(const ParameterTable& parameters, DType dtype, const Memory& memory, bool all_weights,
                                   bool all_gradients)
    : parameters_(&parameters) {
  if (all_weights) {
    weights_ = Tensor({parameters.elements()}, dtype, memory);
  } else {
    some_weights_ = make_places(dtype, memory);
  }
  if (all_gradients) {
    gradients_ = Tensor::zeros({parameters.elements()}, accumulator_of(dtype), memory);
  } else {
    some_gradients_ = make_places(accumulator_of(dtype), memory);
  }
}

ParameterBuffers::Places ParameterBuffers::make_places(DType dtype, const Memory& memory) const {
  const std::span<const Section> sections = parameters_->sections();
  const auto room = [&](std::int64_t elements) { return Tensor({elements}, dtype, memory); };
  return {room(sections.front().elements), room(parameters_->largest_layer()), room(sections.back().elements)};
}

ParameterBuffers::Part<ConstTensorView> ParameterBuffers::weights_of(std::size_t section, const SectionExchange& exchange) {
  const auto [begin, elements] = parameters_->sections()[section];
  if (!weights_.empty()) return {weights_.view().slice(0, begin, elements), begin};
  const std::size_t place = place_of(section);
  const TensorView here = some_weights_[place].view().slice(0, 0, elements);
  if (fetched_[place] != section) exchange.fetch(section, here);
  fetched_[place] = section;
  return {here, begin};
}

ParameterBuffers::Part<TensorView> ParameterBuffers::begin_gradients(std::size_t section, StreamView stream) const {
  const auto [begin, elements] = parameters_->sections()[section];
  if (!gradients_.empty()) return {gradients_.view().slice(0, begin, elements), begin};
  const TensorView here = some_gradients_[place_of(section)].view().slice(0, 0, elements);
  fill_zero(here, stream);
  return {here, begin};
}

void ParameterBuffers::end_gradients(std::size_t section, const Part<TensorView>& gradients, const SectionExchange& exchange) const {
  if (gradients_.empty()) exchange.take(section, gradients.view);
}

}  // namespace periplus::train
