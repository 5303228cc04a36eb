#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/train/config.h"
#include "runtime/tensor.h"

namespace periplus::train {

/// What a parameter starts from.
enum class Start : std::uint8_t {
  projection,  ///< Normal.
  residual,    ///< Of a projection that adds to the residual stream: normal, smaller with more layers.
  taps,        ///< Of a convolution: normal, of variance 1 / (3 taps).
  zeros,
  ones,
  decay_rates,  ///< log A, A uniform in [1, 16] (Mamba-2, Gated DeltaNet).
  time_steps    ///< What softplus makes a step of, steps log-uniform in [0.001, 0.1] (the same).
};

struct ParameterShape {
  std::string_view name;  ///< Inside the layer; a literal.
  Extents shape;
  Start start;
};

struct Parameter {
  std::string name;         ///< As Hugging Face names the tensors of Llama and its relatives.
  Extents shape;            ///< [out, in] of a projection, [channels, 1, taps] of a convolution, [channels] of a norm or a bias.
  std::int64_t offset = 0;  ///< First element in the flat buffers.
  std::int64_t elements = 0;
  Start start = Start::ones;
  double deviation = 0;  ///< Of the normal distribution it starts from, if it does.
  bool decays() const noexcept { return shape.dims > 1; }
};

/// Views of the tensors of one layer in one flat buffer.
template <class View>
struct LayerTensors {
  View input_norm;
  std::vector<View> mixer;  ///< As MixerKind::parameters lists them, without the output projection.
  View o, post_norm, gate, up, down;
};
using LayerWeights = LayerTensors<ConstTensorView>;
using LayerGradients = LayerTensors<TensorView>;

/// Parameters whose gradients are complete together, as elements of the flat buffers.
struct Section {
  std::int64_t begin = 0;
  std::int64_t elements = 0;
};

/// All parameters of a model, one after the other in flat buffers (weights, gradients, optimizer state) of equal layout.
class ParameterTable {
 public:
  explicit ParameterTable(const ModelConfig& model);

  std::span<const Parameter> all() const noexcept { return parameters_; }
  std::int64_t elements() const noexcept { return elements_; }
  /// Of the matrices every token is multiplied with: projections, taps and the output head, not the embedding look-up.
  std::int64_t matmul_elements() const noexcept { return matmul_elements_; }

  /// The embedding, every layer, and what is behind them: in ascending order, backward completes them from the last to the first.
  std::span<const Section> sections() const noexcept { return sections_; }
  std::size_t last_section() const noexcept { return sections_.size() - 1; }
  static std::size_t section_of_layer(std::int64_t layer) { return static_cast<std::size_t>(layer) + 1; }
  std::size_t section_of_head() const noexcept { return head_ == 0 ? 0 : last_section(); }
  /// Elements of the largest layer.
  std::int64_t largest_layer() const noexcept;

  // Views of tensors in a flat buffer of all parameters, or of a section that begins at element `begin` of it.

  template <class View>
  View view(std::size_t index, View flat, std::int64_t begin = 0) const {
    const Parameter& parameter = parameters_.at(index);
    return flat.slice(0, parameter.offset - begin, parameter.elements).reshape(parameter.shape);
  }
  template <class View>
  View embedding(View flat, std::int64_t begin = 0) const {
    return view(0, flat, begin);
  }
  template <class View>
  View final_norm(View flat, std::int64_t begin = 0) const {
    return view(final_norm_, flat, begin);
  }
  /// The embedding again if the two are tied.
  template <class View>
  View head(View flat, std::int64_t begin = 0) const {
    return view(head_, flat, begin);
  }
  template <class View>
  LayerTensors<View> layer(std::int64_t layer, View flat, std::int64_t begin = 0) const {
    std::size_t next = first_of_layer_.at(static_cast<std::size_t>(layer));
    const std::size_t end = first_of_layer_.at(static_cast<std::size_t>(layer) + 1);
    LayerTensors<View> tensors;
    tensors.input_norm = view(next++, flat, begin);
    while (next + kBehindMixer < end) tensors.mixer.push_back(view(next++, flat, begin));
    for (View* tensor : {&tensors.o, &tensors.post_norm, &tensors.gate, &tensors.up, &tensors.down}) *tensor = view(next++, flat, begin);
    return tensors;
  }

 private:
  static constexpr std::size_t kBehindMixer = 5;  // o, post_norm, gate, up, down
  void add(std::string name, const Extents& shape, Start start, const ModelConfig& model);
  void add_layer(const ModelConfig& model, std::int64_t layer);
  void end_section();
  std::vector<Parameter> parameters_;
  std::vector<Section> sections_;
  std::int64_t elements_ = 0;
  std::int64_t matmul_elements_ = 0;
  std::vector<std::size_t> first_of_layer_;  // and one behind the last
  std::size_t final_norm_ = 0;
  std::size_t head_ = 0;
};

/// to [n], f64 or f32 in host memory := the values that elements [first, first + n) of a parameter start from. They depend on its
/// name, its shape and the seed only.
void initial_values(const Parameter& parameter, std::uint64_t seed, std::int64_t first, TensorView to);

}  // namespace periplus::train
