#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace periplus {

/// Row from + t * from_stride becomes row to + t * to_stride, 0 <= t < rows. Small: plans have tens of thousands.
struct RowMove {
  std::int32_t from = 0, to = 0;
  std::int64_t rows = 0;
  std::int32_t from_stride = 1, to_stride = 1;

  RowMove reversed() const noexcept { return {to, from, rows, to_stride, from_stride}; }
  /// Whether its rows lie inside `source` and `destination` rows, and strides are positive.
  bool fits(std::int64_t source, std::int64_t destination) const noexcept;
  friend bool operator==(const RowMove&, const RowMove&) = default;
};

/// Throws InvalidArgument if a row is too large for RowMove.
RowMove row_move(std::int64_t from, std::int64_t to, std::int64_t rows, std::int64_t to_stride = 1);
bool equal(std::span<const RowMove> moves, std::span<const RowMove> others) noexcept;
/// The same moves as some without strides: those that have one are cut into rows.
std::vector<RowMove> without_strides(std::span<const RowMove> moves);

}  // namespace periplus
