#pragma once

#include "kernels/cuda/transformer.cuh"

/// Functions of one number.
namespace periplus::kernels::cuda {

template <class A>
__device__ A sigmoid(A x) {
  return 1 / (1 + exp(-x));
}
/// log(1 + e^x), without overflow.
template <class A>
__device__ A softplus(A x) {
  return fmax(x, A{0}) + log1p(exp(-fabs(x)));
}

}  // namespace periplus::kernels::cuda
