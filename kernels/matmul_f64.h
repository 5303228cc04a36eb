#pragma once

#include <cstdint>

#include "runtime/device.h"

namespace periplus::kernels {

/// Element (i, j) lies at data[i * row_stride + j * column_stride].
struct StridedF64 {
  const double* data;
  std::int64_t row_stride, column_stride;
};

struct ProductF64 {
  std::int64_t m, n, k;
  StridedF64 a, b;  ///< [m,k] and [k,n].
  double* c;        ///< [m,n], columns contiguous.
  std::int64_t c_stride;
  bool accumulate;
};

/// c (+)= a b. For tests and references: each element sums its k terms in rising order, whatever the number of threads.
void matmul_f64(const ProductF64& product, StreamView stream);

}  // namespace periplus::kernels
