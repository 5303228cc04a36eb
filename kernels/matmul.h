#pragma once

#include "kernels/update.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace periplus::kernels {

struct MatmulOptions {
  bool transpose_a = false;
  bool transpose_b = false;
  Update update = Update::overwrite;
};

/// c [M,N] (+)= a [M,K] b [K,N], where transpose_a / transpose_b say that a is stored [K,M] / b is stored [N,K].
///
/// Types    (a, b -> c): bf16,bf16 -> bf16 or f32; f32,f32 -> f32; f64,f64 -> f64. Sums run in f32 (f64 for f64).
///          Accumulating into bf16 is refused: it would lose what accumulation is for.
/// Shapes   2-d, last dimension contiguous, any row stride. M, N or K may be 0 (K = 0 with overwrite writes zeros).
/// Effects  On a CUDA stream cuBLASLt, found at run time (BackendUnavailable without it). Else oneDNN on the calling thread's OpenMP team
/// (AMX for bf16 where the CPU has it); f64 is a plain loop.
///          Bitwise repeatable for equal shapes and thread counts. Calls the progress hook between row blocks.
void matmul(ConstTensorView a, ConstTensorView b, TensorView c, const MatmulOptions& options, StreamView stream);

/// Highest measured rate in flop/s of large products of `dtype` with random data, on this thread's team or a GPU; about 0.2 s.
double measure_matmul_peak(DType dtype, Device device = {});

/// Whether bf16 products run on native instructions here (AMX or AVX-512 BF16); otherwise f32 is the faster choice.
bool bf16_is_native() noexcept;

}  // namespace periplus::kernels
