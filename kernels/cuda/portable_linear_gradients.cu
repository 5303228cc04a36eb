// Results with notes for the gradient of the decay.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/portable_linear.cuh"

namespace periplus::kernels::cuda::portable {
namespace {

template <class T, int width>
__global__ void __launch_bounds__(kLinearThreads, 2) linear_gradients(const Walk<T> walk) {
  walk_segment<T, width, WalkKind::gradients>(walk);
}

}  // namespace

template <class T>
void launch_gradients(const Walk<T>& walk, std::int64_t segments, cudaStream_t stream) {
  const auto with_width = [&]<int width>(std::integral_constant<int, width>) {
    constexpr int kBytes = LinearTiles<T, width>::template kBytes<true>;
    periplus::cuda::check(cudaFuncSetAttribute(linear_gradients<T, width>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
                          "cudaFuncSetAttribute of linear attention");
    launch("launch of linear attention gradients", linear_gradients<T, width>, dim3(static_cast<unsigned>(segments * walk.heads)),
           kLinearThreads, kBytes, stream, walk);
  };
  if (walk.width_k <= 64 && walk.width_v <= 64) {
    with_width(std::integral_constant<int, 64>{});
  } else {
    with_width(std::integral_constant<int, 128>{});
  }
}

template void launch_gradients(const Walk<__nv_bfloat16>&, std::int64_t, cudaStream_t);
template void launch_gradients(const Walk<__half>&, std::int64_t, cudaStream_t);

}  // namespace periplus::kernels::cuda::portable
