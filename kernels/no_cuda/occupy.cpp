// What kernels/cuda/occupy.h declares, in a build without CUDA.
#include "kernels/cuda/occupy.h"

#include "runtime/error.h"

namespace periplus::kernels::cuda {

Occupation::Occupation(int, int) { throw BackendUnavailable("occupation: this build has no CUDA"); }
Occupation::~Occupation() = default;

}  // namespace periplus::kernels::cuda
