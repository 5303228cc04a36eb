#pragma once

#include <cstdint>
#include <string>

namespace periplus::simulate {

/// A language model as its sizes, and what its framework costs besides the kernels. Read from files (examples/models).
struct Shape {
  std::string name;
  int layers = 0, hidden = 0, heads = 0, kv_heads = 0;
  int head_size = 0;     ///< 0: hidden / heads.
  int ffn = 0;           ///< 0: 4 * hidden.
  int ffn_matrices = 2;  ///< 3: gated (SwiGLU).
  std::int64_t vocabulary = 0;
  std::string pattern = "S";  ///< Kind of each layer, repeated: S softmax attention, L linear attention.
  bool tie_embeddings = false;
  int element_bytes = 2;   ///< 2: bf16; 4: f32.
  double logit_bytes = 4;  ///< Of memory for each logit of a token in the loss. 0: logits are made tile by tile.
  /// Of memory that layers keep for backward where attention keeps its scores: bytes of each score of each head; and of dropout's masks,
  /// both of a layer, for each hidden element of a token. 0: attention makes scores again, nothing is dropped.
  double score_bytes = 0, mask_bytes = 0;
  /// What the host works at an iteration, beside the devices: whatever it trains, and for each token of the whole sequence. The
  /// slower of host and devices counts.
  double iteration_seconds = 0, host_seconds_per_token = 0;

  int width() const noexcept { return head_size > 0 ? head_size : hidden / heads; }
  std::int64_t q_size() const noexcept { return static_cast<std::int64_t>(heads) * width(); }
  std::int64_t kv_size() const noexcept { return static_cast<std::int64_t>(kv_heads) * width(); }
  std::int64_t ffn_size() const noexcept { return ffn > 0 ? ffn : 4 * static_cast<std::int64_t>(hidden); }
  char letter_of(int layer) const { return pattern[static_cast<std::size_t>(layer) % pattern.size()]; }
  /// Weights of the matrices of a layer, and of all with both embeddings.
  double layer_weights() const noexcept;
  double weights() const noexcept;
};

/// Errors: InvalidArgument that names the file's key and value.
void check(const Shape& shape);

}  // namespace periplus::simulate
