// What a rank holds (algorithms.md 10.6, 10.7).
#include <algorithm>
#include <cmath>

#include "parallel/simulate/iteration.h"

namespace periplus::simulate {
namespace {

constexpr double kF32 = 4;

double state_bytes(const Shape& shape, const Training& training) {
  const double weights = shape.weights() / training.tensor, sharers = training.context * training.replicas;
  const double weight = shape.element_bytes / (training.zero >= 3 ? sharers : 1);
  const double gradient = shape.element_bytes / (training.zero >= 2 ? sharers : 1);
  const double optimizer = training.optimizer_on_host ? 0 : training.optimizer_bytes / (training.zero >= 1 ? sharers : 1);
  // Two layers of gathered weights: the one at work and the next.
  const double gathered = training.zero >= 3 ? 2 * shape.layer_weights() / training.tensor * shape.element_bytes : 0;
  return weights * (weight + gradient + optimizer) + gathered;
}

/// Elements of a token that the feed-forward part of a layer holds between its matrices.
double ffn_elements(const Shape& shape) { return (shape.ffn_matrices == 3 ? 3.0 : 2.0) * static_cast<double>(shape.ffn_size()); }

/// And all else of a layer: its input and the normalised one, queries, keys, values, the result, the sum and the normalised one.
double attention_elements(const Shape& shape) {
  return 4.0 * shape.hidden + 2.0 * static_cast<double>(shape.q_size()) + 2.0 * static_cast<double>(shape.kv_size());
}

/// Bytes of a token that a layer keeps for backward.
double kept_bytes(const Shape& shape, const Training& training) {
  const double lse = kF32 * shape.heads;
  switch (training.recompute) {
    case Recompute::none:
      return shape.element_bytes * (attention_elements(shape) + ffn_elements(shape)) + lse;
    case Recompute::but_attention:
      return shape.element_bytes * (shape.hidden + static_cast<double>(shape.q_size())) + lse;
    case Recompute::all:
      return static_cast<double>(shape.element_bytes) * shape.hidden;
  }
  return 0;
}

}  // namespace

Memory memory_of(const Shape& shape, const Training& training, double workspace) {
  const double tokens = std::ceil(static_cast<double>(training.tokens) / training.context) / training.tensor;
  Memory memory;
  memory.states = state_bytes(shape, training);
  const double layers = training.checkpoints_on_host ? std::min(2, shape.layers) : shape.layers;  // one at work, one on its way
  memory.checkpoints = layers * tokens * kept_bytes(shape, training);
  // Backward holds a layer's values, which it has made again or kept, and the gradients of one of its halves after the other.
  const double ffn = training.tiled_ffn ? 0 : ffn_elements(shape), attention = attention_elements(shape);
  const double element = tokens * shape.element_bytes, values = training.recompute == Recompute::none ? 0 : attention + ffn;
  // Tensor-parallel matrices work on the rows of all: the gathered input of one and its gradient.
  const double gathered = training.tensor > 1 ? 2 * element * training.tensor * shape.hidden : 0;
  memory.working = element * values + std::max(element * ffn, element * attention + workspace) + gathered;
  memory.logits = training.tiled_loss ? 0 : tokens * static_cast<double>(shape.vocabulary) * shape.logit_bytes;
  return memory;
}

}  // namespace periplus::simulate
