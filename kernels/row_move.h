#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace periplus {

/// Row from + t * from_stride becomes row to + t * to_stride, 0 <= t < rows.
struct RowMove {
  std::int64_t from = 0, to = 0, rows = 0;
  std::int32_t from_stride = 1, to_stride = 1;

  RowMove reversed() const noexcept { return {to, from, rows, to_stride, from_stride}; }
  /// Whether its rows lie inside `source` and `destination` rows, and strides are positive.
  bool fits(std::int64_t source, std::int64_t destination) const noexcept {
    return side_fits(from, from_stride, source) && side_fits(to, to_stride, destination);
  }
  friend bool operator==(const RowMove&, const RowMove&) = default;

 private:
  /// Divided, not multiplied: rows times stride may overflow.
  bool side_fits(std::int64_t first, std::int64_t stride, std::int64_t size) const noexcept {
    if (first < 0 || stride < 1 || rows < 0) return false;
    return rows == 0 ? first <= size : first < size && rows - 1 <= (size - 1 - first) / stride;
  }
};

/// The same moves as some without strides: those that have one are cut into rows.
inline std::vector<RowMove> without_strides(std::span<const RowMove> moves) {
  std::vector<RowMove> all;
  all.reserve(moves.size());
  for (const RowMove& move : moves) {
    if (move.from_stride == 1 && move.to_stride == 1) {
      all.push_back(move);
      continue;
    }
    for (std::int64_t t = 0; t < move.rows; ++t) all.push_back({move.from + t * move.from_stride, move.to + t * move.to_stride, 1});
  }
  return all;
}

}  // namespace periplus
