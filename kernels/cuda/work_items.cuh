#pragma once

#include <algorithm>

#include "kernels/cuda/tables.h"

/// How persistent blocks share the (row tile, head) pairs of a schedule.
namespace periplus::kernels::cuda {

struct WorkItem {
  int tile, head;
};

/// Heads are taken in groups, all row tiles of a group before the next: what the heads of a group share stays in the L2. Within
/// a group row tiles come in schedule order, each for all heads of the group.
struct WorkOrder {
  int tiles, heads, sharing, group;
  __host__ __device__ int items() const { return tiles * heads; }
  __device__ __forceinline__ WorkItem item(int number) const {
    const int group_items = tiles * group;
    const int first = number / group_items * group;
    const int within = number % group_items;
    const int size = min(group, heads - first);
    return {within / size, first + within % size};
  }
};

/// Groups of heads whose keys and values take at most half of the L2; `sharing` query heads have the same ones.
inline WorkOrder work_order(int tiles, int heads, int sharing, std::size_t bytes_per_kv_head, std::size_t l2_bytes) {
  const std::size_t fit = l2_bytes / 2 / std::max<std::size_t>(bytes_per_kv_head, 1);
  const auto kv_heads = static_cast<int>(std::clamp<std::size_t>(fit, 1, static_cast<std::size_t>(heads / sharing)));
  return {tiles, heads, sharing, kv_heads * sharing};
}

/// For the whole block: the next number from the counter. `shared` is a word of shared memory of this use alone.
__device__ __forceinline__ int take_number(std::int32_t* counter, int* shared) {
  __syncthreads();  // the last number has been read, and so has all shared memory of the last item
  if (threadIdx.x == 0) *shared = atomicAdd(counter, 1);
  __syncthreads();
  return *shared;
}

/// The last block to leave makes the counters zero again for the next launch.
__device__ __forceinline__ void leave(std::int32_t* counters) {
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(counters + 1, 1) == static_cast<int>(gridDim.x) - 1) counters[0] = counters[1] = 0;
}

}  // namespace periplus::kernels::cuda
