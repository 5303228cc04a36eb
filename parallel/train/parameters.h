#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/train/config.h"
#include "runtime/tensor.h"

namespace periplus::train {

struct Parameter {
  std::string name;         ///< As Hugging Face names Llama tensors.
  Extents shape;            ///< [out, in] of a projection, [channels] of a norm.
  std::int64_t offset = 0;  ///< First element in the flat buffers.
  std::int64_t elements = 0;
  double deviation = 0;  ///< Of the normal distribution it starts from; 0: it starts as ones.
  bool decays() const noexcept { return shape.dims > 1; }
};

/// Views of the tensors of one layer in one flat buffer.
template <class View>
struct LayerTensors {
  View input_norm, q, k, v, o, post_norm, gate, up, down;
};
using LayerWeights = LayerTensors<ConstTensorView>;
using LayerGradients = LayerTensors<TensorView>;

/// All parameters of a model, one after the other in flat buffers (weights, gradients, optimizer state) of equal layout.
class ParameterTable {
 public:
  explicit ParameterTable(const ModelConfig& model);

  std::span<const Parameter> all() const noexcept { return parameters_; }
  std::int64_t elements() const noexcept { return elements_; }
  /// Of the matrices every token is multiplied with: projections and the output head, not the embedding look-up.
  std::int64_t matmul_elements() const noexcept { return matmul_elements_; }

  template <class View>
  View view(std::size_t index, View flat) const {
    const Parameter& parameter = parameters_.at(index);
    return flat.slice(0, parameter.offset, parameter.elements).reshape(parameter.shape);
  }
  template <class View>
  View embedding(View flat) const {
    return view(0, flat);
  }
  template <class View>
  View final_norm(View flat) const {
    return view(final_norm_, flat);
  }
  /// The embedding again if the two are tied.
  template <class View>
  View head(View flat) const {
    return view(head_, flat);
  }
  template <class View>
  LayerTensors<View> layer(std::int64_t layer, View flat) const {
    const auto at = [&](std::size_t role) { return view(1 + static_cast<std::size_t>(layer) * kPerLayer + role, flat); };
    return {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8)};
  }

 private:
  static constexpr std::size_t kPerLayer = 9;
  void add(std::string name, const Extents& shape, double deviation, bool in_matmul);
  void add_layer(const ModelConfig& model, std::int64_t layer);
  std::vector<Parameter> parameters_;
  std::int64_t elements_ = 0;
  std::int64_t matmul_elements_ = 0;
  std::size_t final_norm_ = 0;
  std::size_t head_ = 0;
};

/// The values a parameter starts from: they depend on its name, its shape and the seed only.
std::vector<double> initial_values(const Parameter& parameter, std::uint64_t seed);

}  // namespace periplus::train
