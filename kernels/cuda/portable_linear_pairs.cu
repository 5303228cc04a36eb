// Gradients of keys and values, with notes for that of the decay.
#include "kernels/cuda/portable_linear_launch.cuh"

namespace periplus::kernels::cuda::portable {

template <class T>
void launch_gradients(const WalkSet<T, 2>& walks, std::int64_t segments, cudaStream_t stream) {
  launch_walks<WalkKind::gradients>(walks, segments, stream);
}
template void launch_gradients(const WalkSet<__nv_bfloat16, 2>&, std::int64_t, cudaStream_t);
template void launch_gradients(const WalkSet<__half, 2>&, std::int64_t, cudaStream_t);

}  // namespace periplus::kernels::cuda::portable
