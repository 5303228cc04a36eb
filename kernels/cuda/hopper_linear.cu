// Linear attention without decay or with one decay per head for capability 9.0 (algorithms.md 5.1, 5.5): the walks of portable_linear.cuh
// on matrix instructions of warpgroups.
//
// A block takes a segment chunk by chunk: a producer warpgroup copies the rows of the next chunks, and each of two consumer warpgroups has
// half of the columns of one walk's results, or all of those of one of two walks over the same rows. The bound is memory: a chunk of 64 x
// 128 takes 3,600 cycles of a multiprocessor's share of it for the four tensors of outputs, and its products 1,800 of the tensor cores.
#include "kernels/cuda/hopper_linear.h"
#include "kernels/cuda/hopper_linear_consumer.cuh"
#include "kernels/cuda/launch.cuh"

namespace periplus::kernels::cuda::hopper {
namespace linear {

template <class T, int groups, bool notes>
__global__ void __launch_bounds__(kThreads, 1) hopper_linear(const __grid_constant__ WalkSet<T, groups> set) {
  auto& shared = shared_memory<Shared<groups, notes>>();
  const Walk<T>& walk = set.walk[0];
  if (threadIdx.x == 0) {
    for (std::uint64_t& full : shared.full) barrier_init(&full, kWarpgroup);
    for (std::uint64_t& free : shared.free) barrier_init(&free, 4 * kConsumers);
    barrier_init_fence();
    shared.segment = walk.segments[blockIdx.x / walk.heads];
  }
  __syncthreads();
  const Place<groups == 2> place{shared.segment, static_cast<std::int32_t>(blockIdx.x % walk.heads)};
  if (threadIdx.x < kWarpgroup) {
    give_registers<kProducerRegisters>();
    produce<T>(shared, set, place);
  } else {
    take_registers<kConsumerRegisters>();
    Consumer<T, groups, notes>(shared, set, place, warpgroup_index() - 1).run();
  }
}

template <class T, int groups, bool notes>
void launch(const WalkSet<T, groups>& set, std::int64_t segments, cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared<groups, notes>);
  static_assert(kBytes <= 227 * 1024);
  const auto kernel = hopper_linear<T, groups, notes>;
  periplus::cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
                        "cudaFuncSetAttribute of linear attention");
  cuda::launch("launch of linear attention", kernel, dim3(static_cast<unsigned>(segments * set.walk[0].heads)), kThreads, kBytes, stream,
               set);
}

}  // namespace linear

template <class T, int groups>
void launch_linear(const portable::WalkSet<T, groups>& set, std::int64_t segments, cudaStream_t stream) {
  if (set.walk[groups - 1].decay_gradient.dots != nullptr) return linear::launch<T, groups, true>(set, segments, stream);
  linear::launch<T, groups, false>(set, segments, stream);
}
template void launch_linear(const portable::WalkSet<__nv_bfloat16, 1>&, std::int64_t, cudaStream_t);
template void launch_linear(const portable::WalkSet<__nv_bfloat16, 2>&, std::int64_t, cudaStream_t);
template void launch_linear(const portable::WalkSet<__half, 1>&, std::int64_t, cudaStream_t);
template void launch_linear(const portable::WalkSet<__half, 2>&, std::int64_t, cudaStream_t);

}  // namespace periplus::kernels::cuda::hopper
