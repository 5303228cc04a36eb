// What a rank holds (algorithms.md 10.6, 10.7).
#include <algorithm>
#include <cmath>
#include <map>

#include "parallel/simulate/attention_time.h"
#include "parallel/simulate/iteration.h"

namespace periplus::simulate {
namespace {

constexpr double kF32 = 4;

/// Weights whose optimizer states are a rank's.
double optimized_weights(const Shape& shape, const Training& training) {
  return shape.weights() / training.tensor / (training.zero >= 1 ? training.context * training.replicas : 1);
}

/// Of our trainer, which holds either all or the embedding, one layer and what is behind the layers.
double state_bytes_by_section(const Shape& shape, const Training& training) {
  const double all = shape.weights() / training.tensor, some = all - (shape.layers - 1) * shape.layer_weights() / training.tensor;
  const double shard = optimized_weights(shape, training);
  const double weights = training.zero >= 3 ? some + shard : all, gradients = training.zero >= 2 ? some : all;
  const double optimizer = training.optimizer_on_host ? 0 : training.optimizer_bytes;
  return shape.element_bytes * weights + kF32 * (gradients + shard) + optimizer * shard;
}

double state_bytes(const Shape& shape, const Training& training) {
  if (training.by_section) return state_bytes_by_section(shape, training);
  const double weights = shape.weights() / training.tensor, sharers = training.context * training.replicas;
  const double weight = shape.element_bytes / (training.zero >= 3 ? sharers : 1);
  const double gradient = shape.element_bytes / (training.zero >= 2 ? sharers : 1);
  const double optimizer = training.optimizer_on_host ? 0 : training.optimizer_bytes * optimized_weights(shape, training);
  // Two layers of gathered weights: the one at work and the next.
  const double gathered = training.zero >= 3 ? 2 * shape.layer_weights() / training.tensor * shape.element_bytes : 0;
  return weights * (weight + gradient) + optimizer + gathered;
}

/// Of a micro-batch, what a device holds: tokens of its rank; the share of them in which it holds what the matrices of a tensor group do
/// not split; scores of each head.
struct Share {
  double tokens = 0, whole = 1, scores = 0;
};

Share share_of(const Training& training) {
  Share share;
  share.tokens = std::ceil(static_cast<double>(training.tokens) / training.context);
  share.whole = training.split_norms ? 1.0 / training.tensor : 1;
  const std::vector<std::int64_t> borders = document_borders(training);
  for (std::size_t i = 1; i < borders.size(); ++i) {
    const double length = static_cast<double>(borders[i] - borders[i - 1]);
    share.scores += length * length / training.context;
  }
  return share;
}

/// Elements of a token that the feed-forward part of a layer holds between its matrices: what all but the last make, and what that takes.
double ffn_elements(const Shape& shape) { return shape.ffn_matrices * static_cast<double>(shape.ffn_size()); }
/// Of these, what is kept for backward while the rest is computed again.
double hidden_elements(const Shape& shape, const Training& training) {
  return training.recompute == Recompute::but_hidden ? (shape.ffn_matrices - 1) * static_cast<double>(shape.ffn_size()) : 0;
}

/// All else of a layer: inputs of both norms and what they make of them, which matrices do not split; and queries, keys, values, result.
double norm_elements(const Shape& shape) { return 4.0 * shape.hidden; }
double attention_elements(const Shape& shape) {
  return 2.0 * static_cast<double>(shape.q_size()) + 2.0 * static_cast<double>(shape.kv_size());
}

/// Bytes that a layer keeps for backward: `mixed` of what its attention made, `other` of the rest.
struct KeptBytes {
  double mixed = 0, other = 0;
};

KeptBytes kept_bytes(const Shape& shape, const Training& training, const Share& share) {
  const double whole = share.tokens * share.whole, split = share.tokens / training.tensor;
  const double lse = shape.score_bytes > 0 ? 0 : split * kF32 * shape.heads;
  switch (training.recompute) {
    case Recompute::none:
      return {.other = whole * (shape.element_bytes * norm_elements(shape) + shape.mask_bytes * shape.hidden) +
                       split * shape.element_bytes * (attention_elements(shape) + ffn_elements(shape)) + lse +
                       share.scores * shape.score_bytes * shape.heads / training.tensor};
    case Recompute::but_hidden:
    case Recompute::but_attention:
      return {.mixed = split * shape.element_bytes * static_cast<double>(shape.q_size()) + lse,
              .other = whole * shape.element_bytes * shape.hidden + split * shape.element_bytes * hidden_elements(shape, training)};
    case Recompute::all:
      return {.other = whole * shape.element_bytes * shape.hidden};
  }
  return {};
}

/// Layers whose attention's results stay on the device where the host keeps the others': kinds of attention hold two each.
double mixers_on_device(const Shape& shape) {
  std::map<char, int> layers;
  for (int layer = 0; layer < shape.layers; ++layer) ++layers[shape.letter_of(layer)];
  double held = 0;
  for (const auto& [letter, count] : layers) held += std::min(2, count);
  return held;
}

/// What a layer at work needs beside what is kept: values that it has made again, and the gradients of one of its halves after the other,
/// those of kept scores before and after the softmax among them.
double working_bytes(const Shape& shape, const Training& training, const Share& share, double workspace) {
  const double whole = share.tokens * share.whole * shape.element_bytes, split = share.tokens / training.tensor * shape.element_bytes;
  const double ffn = training.tiled_ffn ? 0 : split * ffn_elements(shape);
  const double attention = whole * norm_elements(shape) + split * attention_elements(shape);
  const double head_scores = share.scores * shape.heads / training.tensor;
  const double scores = shape.score_bytes > 0 ? 2 * head_scores * shape.element_bytes : 0;
  const double hidden = training.tiled_ffn ? 0 : split * hidden_elements(shape, training);
  const double values = training.recompute == Recompute::none ? 0 : attention + ffn - hidden + head_scores * shape.score_bytes;
  // Tensor-parallel matrices work on the rows of all: the gathered input of one and its gradient.
  const double gathered = training.tensor > 1 && training.split_norms ? 2 * share.tokens * shape.element_bytes * shape.hidden : 0;
  return values + std::max(ffn, attention + scores + workspace) + gathered;
}

}  // namespace

Memory memory_of(const Shape& shape, const Training& training, double workspace) {
  const Share share = share_of(training);
  Memory memory;
  memory.states = state_bytes(shape, training);
  const KeptBytes kept = kept_bytes(shape, training, share);
  const double layers = training.checkpoints_on_host ? std::min(2, shape.layers) : shape.layers;  // one at work, one on its way
  const double mixers = training.checkpoints_on_host ? mixers_on_device(shape) : shape.layers;
  memory.checkpoints = training.in_flight * (layers * kept.other + mixers * kept.mixed);
  memory.host = training.in_flight * ((shape.layers - layers) * kept.other + (shape.layers - mixers) * kept.mixed);
  if (training.optimizer_on_host) memory.host += training.optimizer_bytes * optimized_weights(shape, training);
  // The mask of the embedding's dropout; a stage also keeps what it sends on.
  const double sent = training.in_flight > 1 ? shape.element_bytes : 0;
  memory.checkpoints += training.in_flight * share.tokens * share.whole * shape.hidden * (shape.mask_bytes / 2 + sent);
  memory.working = working_bytes(shape, training, share, workspace);
  memory.logits = training.tiled_loss ? 0 : share.tokens / training.tensor * static_cast<double>(shape.vocabulary) * shape.logit_bytes;
  return memory;
}

}  // namespace periplus::simulate
