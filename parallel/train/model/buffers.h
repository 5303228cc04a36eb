#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <optional>

#include "parallel/train/model/parameters.h"
#include "runtime/device_tensor.h"
#include "runtime/tensor.h"

namespace periplus::train {

/// Where a model that does not keep all weights or gradients gets and leaves those of a section of parameters, flat. Called by all ranks
/// in the same order.
struct SectionExchange {
  std::function<void(std::size_t section, TensorView weights)> fetch = {};
  /// Gradients of this batch alone, as soon as they are complete.
  std::function<void(std::size_t section, ConstTensorView gradients)> take = {};
};

/// Weights in the storage type and gradients in the accumulator type: of all parameters, or of as many sections as a layer's forward or
/// backward needs, which are the embedding, one layer, and what is behind the layers.
class ParameterBuffers {
 public:
  /// `parameters` outlive it.
  ParameterBuffers(const ParameterTable& parameters, DType dtype, const Memory& memory, bool all_weights, bool all_gradients);

  /// Of all parameters; empty if there are not all.
  TensorView weights() const { return weights_; }
  TensorView gradients() const { return gradients_; }

  /// A section, and the flat element that it begins at.
  template <class View>
  struct Part {
    View view;
    std::int64_t begin;
  };
  /// Weights have changed: what is not here is fetched again.
  void forget_weights() { fetched_ = {}; }
  Part<ConstTensorView> weights_of(std::size_t section, const SectionExchange& exchange);
  /// To be added to. Zero, if it will be taken.
  Part<TensorView> begin_gradients(std::size_t section, StreamView stream) const;
  void end_gradients(std::size_t section, const Part<TensorView>& gradients, const SectionExchange& exchange) const;

 private:
  using Places = std::array<Tensor, 3>;
  Places make_places(DType dtype, const Memory& memory) const;
  std::size_t place_of(std::size_t section) const { return section == 0 ? 0 : section == parameters_->last_section() ? 2 : 1; }

  const ParameterTable* parameters_;
  Tensor weights_, gradients_;
  Places some_weights_, some_gradients_;
  std::array<std::optional<std::size_t>, 3> fetched_;  // sections, by place
};

}  // namespace periplus::train
