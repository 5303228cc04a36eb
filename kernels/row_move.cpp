#include "kernels/row_move.h"

#include <cstring>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus {
namespace {

/// Divided, not multiplied: rows times stride may overflow.
bool lie_inside(std::int64_t first, std::int64_t rows, std::int64_t stride, std::int64_t size) noexcept {
  if (first < 0 || stride < 1 || rows < 0) return false;
  return rows == 0 ? first <= size : first < size && rows - 1 <= (size - 1 - first) / stride;
}

}  // namespace

bool RowMove::fits(std::int64_t source, std::int64_t destination) const noexcept {
  return lie_inside(from, rows, from_stride, source) && lie_inside(to, rows, to_stride, destination);
}

RowMove row_move(std::int64_t from, std::int64_t to, std::int64_t rows, std::int64_t to_stride) {
  const auto narrow = [](std::int64_t value) {
    if (!std::in_range<std::int32_t>(value)) [[unlikely]] {
      throw InvalidArgument(
          fmt::format("row {} of a rank or group of ranks cannot be moved; rows must be below 2^31: use more ranks", value));
    }
    return static_cast<std::int32_t>(value);
  };
  return {narrow(from), narrow(to), rows, 1, narrow(to_stride)};
}

bool equal(std::span<const RowMove> moves, std::span<const RowMove> others) noexcept {
  static_assert(std::has_unique_object_representations_v<RowMove>);
  return moves.size() == others.size() && (moves.empty() || std::memcmp(moves.data(), others.data(), moves.size_bytes()) == 0);
}

std::vector<RowMove> without_strides(std::span<const RowMove> moves) {
  std::vector<RowMove> all;
  all.reserve(moves.size());
  for (const RowMove& move : moves) {
    if (move.from_stride == 1 && move.to_stride == 1) {
      all.push_back(move);
      continue;
    }
    for (std::int64_t t = 0; t < move.rows; ++t) all.push_back(row_move(move.from + t * move.from_stride, move.to + t * move.to_stride, 1));
  }
  return all;
}

}  // namespace periplus
