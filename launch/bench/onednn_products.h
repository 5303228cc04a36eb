#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "runtime/dtype.h"

namespace periplus::launch::bench {

/// The two matrix products of causal attention by oneDNN and nothing else: S = Q K^T in bf16, O = S V in f32, restricted to
/// the blocks of `block` rows by `block` keys on and below the diagonal. What is around a product in a real program, softmax
/// and masks and packing, is not done: keys and values are packed once, when the object is made.
struct ProductShape {
  std::int64_t heads = 1, rows = 0, width = 128;
  std::int64_t block = 512;   ///< Divides rows.
  bool whole_panels = false;  ///< One product per panel of `block` rows instead of one per block.
};

class OneDnnProducts {
 public:
  explicit OneDnnProducts(const ProductShape& shape);
  ~OneDnnProducts();
  OneDnnProducts(OneDnnProducts&&) noexcept;
  OneDnnProducts& operator=(OneDnnProducts&&) noexcept;

  void run() const;

  /// [heads, rows, width], random.
  std::span<const bfloat16> q() const, k() const, v() const;
  std::span<const float> out() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace periplus::launch::bench
