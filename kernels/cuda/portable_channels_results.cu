// Outputs and gradients of values with a decay per channel.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/portable_channels.cuh"

namespace periplus::kernels::cuda::portable {

template <class T>
void launch_channel_results(const Walk<T>& walk, std::int64_t segments, cudaStream_t stream) {
  launch_channel_walk<ChannelWalk::by_key>(walk, segments, stream);
}
template void launch_channel_results(const Walk<__nv_bfloat16>&, std::int64_t, cudaStream_t);
template void launch_channel_results(const Walk<__half>&, std::int64_t, cudaStream_t);

}  // namespace periplus::kernels::cuda::portable
