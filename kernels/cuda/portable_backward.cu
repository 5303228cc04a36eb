#include "kernels/cuda/rungs.h"
namespace periplus::kernels::cuda::portable {
bool supports(const BackwardCall&) { return false; }
void attend_backward(const BackwardCall&, StreamView) {}
}  // namespace periplus::kernels::cuda::portable
