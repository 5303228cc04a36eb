// The states that segments make.
#include "kernels/cuda/portable_linear_launch.cuh"

namespace periplus::kernels::cuda::portable {

template <class T>
void launch_states(const Walk<T>& walk, std::int64_t segments, cudaStream_t stream) {
  launch_walks<WalkKind::states>(WalkSet<T, 1>{{walk}}, segments, stream);
}
template void launch_states(const Walk<__nv_bfloat16>&, std::int64_t, cudaStream_t);
template void launch_states(const Walk<__half>&, std::int64_t, cudaStream_t);

}  // namespace periplus::kernels::cuda::portable
