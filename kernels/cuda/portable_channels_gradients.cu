// Gradients of queries and keys with a decay per channel, and notes for its own.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/portable_channels.cuh"

namespace periplus::kernels::cuda::portable {

template <class T>
void launch_channel_gradients(const Walk<T>& walk, std::int64_t segments, cudaStream_t stream) {
  launch_channel_walk<ChannelWalk::by_value>(walk, segments, stream);
}
template void launch_channel_gradients(const Walk<__nv_bfloat16>&, std::int64_t, cudaStream_t);
template void launch_channel_gradients(const Walk<__half>&, std::int64_t, cudaStream_t);

}  // namespace periplus::kernels::cuda::portable
