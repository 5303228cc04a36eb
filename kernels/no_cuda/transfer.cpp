// What kernels/cuda/transfer.h declares, in a build without CUDA.
#include "kernels/cuda/transfer.h"

#include "kernels/no_cuda/refuse.h"

namespace periplus::kernels::cuda {

void move_rows(ConstTensorView, TensorView, std::span<const RowMove>, StreamView) { refuse_cuda("copy"); }
void add(ConstTensorView, TensorView, StreamView) { refuse_cuda("add"); }

}  // namespace periplus::kernels::cuda
