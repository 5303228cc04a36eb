#include "kernels/matmul_f64.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/parallel.h"

namespace periplus::kernels {
namespace {

constexpr std::int64_t kRows = 4, kColumns = 16;

/// `rows` rows from `row` on; b is stored with contiguous columns.
void multiply_rows(const ProductF64& p, std::int64_t row, std::int64_t rows) {
  for (std::int64_t column = 0; column < p.n; column += kColumns) {
    const std::int64_t width = std::min(kColumns, p.n - column);
    double sum[kRows][kColumns] = {};
    for (std::int64_t t = 0; t < p.k; ++t) {
      const double* terms = p.b.data + t * p.b.row_stride + column;
      for (std::int64_t i = 0; i < rows; ++i) {
        const double factor = p.a.data[(row + i) * p.a.row_stride + t * p.a.column_stride];
        if (width == kColumns) {
          for (std::int64_t j = 0; j < kColumns; ++j) sum[i][j] += factor * terms[j];
        } else {
          for (std::int64_t j = 0; j < width; ++j) sum[i][j] += factor * terms[j];
        }
      }
    }
    for (std::int64_t i = 0; i < rows; ++i) {
      double* to = p.c + (row + i) * p.c_stride + column;
      for (std::int64_t j = 0; j < width; ++j) to[j] = p.accumulate ? to[j] + sum[i][j] : sum[i][j];
    }
  }
}

}  // namespace

void matmul_f64(const ProductF64& product, StreamView stream) {
  ProductF64 p = product;
  std::vector<double> upright;
  if (p.b.column_stride != 1) {
    upright.resize(static_cast<std::size_t>(p.k * p.n));
    double* to = upright.data();
    for (std::int64_t j = 0; j < p.n; ++j) {
      for (std::int64_t t = 0; t < p.k; ++t) to[t * p.n + j] = p.b.data[t * p.b.row_stride + j * p.b.column_stride];
    }
    p.b = {to, p.n, 1};
  }
  const std::int64_t blocks = (p.m + kRows - 1) / kRows;
  const int team = cpu::team_size(blocks, 2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k));
  cpu::for_each_item_on(team, blocks, stream, [&](std::int64_t block, int, const cpu::Progress&) {
    multiply_rows(p, block * kRows, std::min(kRows, p.m - block * kRows));
  });
}

}  // namespace periplus::kernels
