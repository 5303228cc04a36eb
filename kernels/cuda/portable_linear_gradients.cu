// Gradients of queries, with notes for that of the decay.
#include "kernels/cuda/portable_linear_launch.cuh"

namespace periplus::kernels::cuda::portable {

template <class T>
void launch_gradients(const Walk<T>& walk, std::int64_t segments, cudaStream_t stream) {
  launch_walks<WalkKind::gradients>(WalkSet<T, 1>{{walk}}, segments, stream);
}
template void launch_gradients(const Walk<__nv_bfloat16>&, std::int64_t, cudaStream_t);
template void launch_gradients(const Walk<__half>&, std::int64_t, cudaStream_t);

}  // namespace periplus::kernels::cuda::portable
