// Keeps NaN and infinity in the rows that meet them; part of tiles.h.
//
// Products run over whole tiles and give pairs outside the mask the weight 0. But 0 * NaN is NaN: a row with NaN or infinity
// would reach rows that do not attend to it. Such rows are therefore taken out of the packed tile, and their products are
// added pair by pair where the mask allows them: slow, and rare.
#pragma once

#include "kernels/cpu/lanes.h"

namespace periplus::kernels::cpu {
namespace {

constexpr std::int64_t kMostPackedRows = 128;

struct Outliers {
  bool any = false;
  bool row[kMostPackedRows] = {};
};

inline bool finite_row(const float* row, std::int64_t width) {
  float sum = 0;
  for (std::int64_t i = 0; i < width; ++i) sum += row[i] * 0.0f;
  return sum == 0;
}

/// Finds the rows with NaN or infinity.
inline void find_outliers(const float* tile, std::int64_t stride, std::int64_t first, std::int64_t rows, std::int64_t width,
                          Outliers& outliers) {
  for (std::int64_t r = first; r < first + rows; ++r) {
    if (finite_row(tile + r * stride, width)) continue;
    outliers.row[r] = true;
    outliers.any = true;
  }
}

/// Sets them to 0.
inline void clear_outliers(const Outliers& outliers, float* tile, std::int64_t stride, std::int64_t width) {
  for (std::int64_t r = 0; outliers.any && r < kMostPackedRows; ++r) {
    if (outliers.row[r]) __builtin_memset(tile + r * stride, 0, static_cast<std::size_t>(width) * sizeof(float));
  }
}

/// to[i][lane] += weights[lane] * row[i] for lanes [begin,end): one outlier against the lanes that may see it.
template <class S>
void add_outlier(const S* row, std::int64_t width, const float* weights, std::int64_t begin, std::int64_t end, float* to,
                 std::int64_t to_stride) {
  for (std::int64_t i = 0; i < width; ++i) {
    const float x = widened(row + i);
    for (std::int64_t lane = begin; lane < end; ++lane) to[i * to_stride + lane] += weights[lane] * x;
  }
}

}  // namespace
}  // namespace periplus::kernels::cpu
