#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "parallel/linear_attention.h"
#include "parallel/train/config.h"
#include "parallel/train/data/batch.h"
#include "parallel/train/model/kept.h"
#include "parallel/train/model/parameters.h"
#include "parallel/train/model/tiles.h"
#include "runtime/comm/communicator.h"
#include "runtime/trace.h"

namespace periplus::train {

/// How the distributed operators of a batch are to be planned.
struct Planning {
  comm::Communicator communicator;
  LinearAttentionOptions linear = {};
  /// Options of the softmax layers of a letter; absent: the defaults.
  std::function<AttentionOptions(char letter, const AttentionProblem&)> attention = {};
  Tracer* tracer = nullptr;
  Stream stream = {};  ///< Of the device that holds the model; not needed for the CPU.
};

struct MixerSetup {
  const ModelConfig& model;  ///< Outlives the mixer.
  DType dtype;
  Memory memory;
  std::vector<std::int64_t> layers;  ///< Numbers of the model's layers that it serves: layers[slot].
  bool offload = false;              ///< What is kept in proportion to rows waits in host memory.
};

/// What a mixer gets of the layer that it computes.
struct MixerLayer {
  std::size_t slot = 0;  ///< Which of the layers of its kind.
  std::span<const ConstTensorView> weights;
  std::span<const TensorView> gradients = {};  ///< In the order of weights; empty forward.
  StreamView stream;
};

/// What moves information between tokens in a layer, between its input norm and its output projection. One object serves all layers
/// of its kind: it owns the distributed operators of the batch, temporaries, and what each layer's forward leaves for its backward,
/// so that nothing is communicated twice; everything local is computed again (algorithms.md 10.7).
///
/// Order    plan; forward: project (all tiles), forward, output (by tile). backward: project (all tiles), then by tile output,
///          doutput (to be filled), output_backward; backward; project_backward (by tile). kept() is written by forward, and read from
///          the first to the last of backward.
/// Ranks    plan, forward and backward are collective.
class Mixer {
 public:
  virtual ~Mixer() = default;

  /// Of every layer, by slot.
  Kept& kept() noexcept { return kept_; }

  /// Plans for a batch, which must live until the next plan, and makes room for its rows.
  virtual void plan(const Batch& batch, const Planning& planning) = 0;
  /// Operations of one layer's mixing beyond its matrices, forward and backward, all ranks.
  virtual double flops(const Batch& batch) const = 0;
  /// Host time of the planned operators spent waiting for messages with nothing to compute.
  virtual double exposed_seconds() const = 0;

  /// normed [tile, hidden]: the layer's normalised input.
  virtual void project(const MixerLayer& layer, const Tile& tile, ConstTensorView normed) = 0;
  virtual void forward(const MixerLayer& layer) = 0;
  /// [tile, heads * head_size]: what the output projection is multiplied with. Valid until the next call.
  virtual ConstTensorView output(const MixerLayer& layer, const Tile& tile) = 0;
  /// Where the gradient of output goes.
  virtual TensorView doutput(const Tile& tile) = 0;
  virtual void output_backward(const MixerLayer& layer, const Tile& tile) = 0;
  virtual void backward(const MixerLayer& layer) = 0;
  /// sum [tile, hidden], accumulator type := gradient of normed; gradients of weights accumulate.
  virtual void project_backward(const MixerLayer& layer, const Tile& tile, ConstTensorView normed, TensorView sum) = 0;

 protected:
  Mixer(const MixerSetup& setup, std::vector<Kept::Part> parts)
      : kept_(setup.layers.size(), std::move(parts), setup.memory, setup.offload) {}

  Kept kept_;
};

/// A letter of model.pattern.
struct MixerKind {
  char letter;
  std::string_view meaning;
  bool recurrent;  ///< A state passes through the tokens: layouts with more than two units per rank are refused.
  /// Parameters of a layer, the output projection last.
  std::vector<ParameterShape> (*parameters)(const ModelConfig& model);
  std::unique_ptr<Mixer> (*make)(const MixerSetup& setup);
};
/// All of them. A new mixer is a file mixer_*.cpp and a row here.
std::span<const MixerKind> mixer_kinds();
/// nullptr if there is none.
const MixerKind* find_mixer_kind(char letter);

// One file each.
std::vector<ParameterShape> softmax_parameters(const ModelConfig& model);
std::unique_ptr<Mixer> make_softmax_mixer(const MixerSetup& setup);
std::unique_ptr<Mixer> make_window_mixer(const MixerSetup& setup);
std::vector<ParameterShape> linear_parameters(const ModelConfig& model);
std::unique_ptr<Mixer> make_linear_mixer(const MixerSetup& setup);
std::vector<ParameterShape> mamba2_parameters(const ModelConfig& model);
std::unique_ptr<Mixer> make_mamba2_mixer(const MixerSetup& setup);
std::vector<ParameterShape> delta_parameters(const ModelConfig& model);
std::unique_ptr<Mixer> make_delta_mixer(const MixerSetup& setup);

}  // namespace periplus::train
