#pragma once

#include "kernels/matmul.h"

/// Matrix products on CUDA devices by cuBLASLt, which is found at run time: programs start without it. Arguments are already
/// checked by kernels/matmul.cpp, which see for the contract; f32 products are not rounded to TF32.
/// Errors   BackendUnavailable where the library is missing, saying where it was looked for.
namespace periplus::kernels::cuda {

struct MatmulShape {
  std::int64_t m, n, k;
};
void matmul(const MatmulShape& shape, ConstTensorView a, ConstTensorView b, TensorView c, const MatmulOptions& options, StreamView stream);
/// Whether the library is found; if not, `why` (when given) gets one sentence.
bool matmul_available(std::string* why = nullptr);

}  // namespace periplus::kernels::cuda
