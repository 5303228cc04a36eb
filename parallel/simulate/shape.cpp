#include "parallel/simulate/shape.h"

#include <cmath>
#include <string_view>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::simulate {

double Shape::layer_weights() const noexcept {
  const double h = hidden, q = static_cast<double>(q_size()), kv = static_cast<double>(kv_size()), f = static_cast<double>(ffn_size());
  return h * (2 * q + 2 * kv) + ffn_matrices * h * f;
}

double Shape::weights() const noexcept {
  return layers * layer_weights() + (tie_embeddings ? 1.0 : 2.0) * static_cast<double>(vocabulary) * hidden;
}

void check(const Shape& shape) {
  const auto require = [&](bool holds, std::string_view key, double value, std::string_view rule) {
    if (!holds) throw InvalidArgument(fmt::format("model {}: {} is {:g}; it must be {}", shape.name, key, value, rule));
  };
  require(shape.layers > 0, "shape.layers", shape.layers, "above 0");
  require(shape.hidden > 0, "shape.hidden", shape.hidden, "above 0");
  require(shape.heads > 0, "shape.heads", shape.heads, "above 0");
  require(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0, "shape.kv_heads", shape.kv_heads,
          fmt::format("a divisor of shape.heads, {}", shape.heads));
  require(shape.head_size > 0 || shape.hidden % shape.heads == 0, "shape.heads", shape.heads,
          fmt::format("a divisor of shape.hidden, {}, unless shape.head_size is given", shape.hidden));
  require(shape.head_size >= 0, "shape.head_size", shape.head_size, "0 or more");
  require(shape.ffn >= 0, "shape.ffn", shape.ffn, "0 or more");
  require(shape.ffn_matrices == 2 || shape.ffn_matrices == 3, "shape.ffn_matrices", shape.ffn_matrices, "2, or 3 for a gated one");
  require(shape.vocabulary >= 0, "shape.vocabulary", static_cast<double>(shape.vocabulary), "0 or more");
  require(shape.element_bytes == 2 || shape.element_bytes == 4, "shape.element_bytes", shape.element_bytes, "2 (bf16) or 4 (f32)");
  require(!shape.pattern.empty() && shape.pattern.find_first_not_of("SL") == std::string::npos, "the length of shape.pattern",
          static_cast<double>(shape.pattern.size()), "that of letters S and L");
  for (const auto& [key, value] : {std::pair{"memory.logit_bytes", shape.logit_bytes},
                                   {"memory.score_bytes", shape.score_bytes},
                                   {"memory.mask_bytes", shape.mask_bytes},
                                   {"overhead.iteration_seconds", shape.iteration_seconds},
                                   {"overhead.host_seconds_per_token", shape.host_seconds_per_token}}) {
    require(std::isfinite(value) && value >= 0, key, value, "0 or more");
  }
}

}  // namespace periplus::simulate
