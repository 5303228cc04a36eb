// What kernels/cuda/matmul.h declares, in a build without CUDA.
#include "kernels/cuda/matmul.h"

#include "kernels/no_cuda/refuse.h"

namespace periplus::kernels::cuda {

void matmul(const MatmulShape&, ConstTensorView, ConstTensorView, TensorView, const MatmulOptions&, StreamView) { refuse_cuda("matmul"); }

bool matmul_available(std::string* why) {
  if (why != nullptr) *why = "this build has no CUDA";
  return false;
}

}  // namespace periplus::kernels::cuda
