// What kernels/cuda/matmul.h declares, in a build without CUDA.
#include "kernels/cuda/matmul.h"

#include "runtime/error.h"

namespace periplus::kernels::cuda {

void matmul(const MatmulShape&, ConstTensorView, ConstTensorView, TensorView, const MatmulOptions&, StreamView) {
  throw BackendUnavailable(
      "matmul: the stream is on a cuda device, but this build has no CUDA kernels; configure with -DPERIPLUS_WITH_CUDA=ON or use a cpu "
      "stream");
}

bool matmul_available(std::string* why) {
  if (why != nullptr) *why = "this build has no CUDA";
  return false;
}

}  // namespace periplus::kernels::cuda
