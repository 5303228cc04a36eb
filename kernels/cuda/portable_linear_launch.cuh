#pragma once
// A kernel of walks, and its launch.

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/portable_linear.cuh"

namespace periplus::kernels::cuda::portable {

template <class T, int width, WalkKind kind, int groups>
__global__ void __launch_bounds__(groups* kLinearThreads, 2 / groups) linear_walk(const __grid_constant__ WalkSet<T, groups> set) {
  walk_segment<T, width, kind, groups>(set);
}

template <WalkKind kind, class T, int groups>
void launch_walks(const WalkSet<T, groups>& set, std::int64_t segments, cudaStream_t stream) {
  const auto with_width = [&]<int width>(std::integral_constant<int, width>) {
    constexpr int kBytes = WalkMemory<T, width, kind, groups>::kBytes;
    periplus::cuda::check(cudaFuncSetAttribute(linear_walk<T, width, kind, groups>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
                          "cudaFuncSetAttribute of linear attention");
    // Two blocks of one walk must fit a multiprocessor.
    periplus::cuda::check(cudaFuncSetAttribute(linear_walk<T, width, kind, groups>, cudaFuncAttributePreferredSharedMemoryCarveout, 100),
                          "cudaFuncSetAttribute of linear attention");
    launch("launch of linear attention", linear_walk<T, width, kind, groups>, dim3(static_cast<unsigned>(segments * set.walk[0].heads)),
           groups * kLinearThreads, kBytes, stream, set);
  };
  if (set.walk[0].width_k <= 64 && set.walk[0].width_v <= 64) {
    with_width(std::integral_constant<int, 64>{});
  } else {
    with_width(std::integral_constant<int, 128>{});
  }
}

}  // namespace periplus::kernels::cuda::portable
