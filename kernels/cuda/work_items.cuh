#pragma once

#include <algorithm>

#include "kernels/cuda/tables.h"

/// How persistent blocks share the (row tile, head) pairs of a schedule.
namespace periplus::kernels::cuda {

struct WorkItem {
  int tile, head;
};

/// Heads are taken in groups, all row tiles of a group before the next: what the heads of a group share stays in the L2. Within
/// a group row tiles come in schedule order, each for all heads of the group. If heads are left over, it is the first group that is
/// smaller: the more items the last one has, the more evenly the blocks end.
struct WorkOrder {
  int tiles, heads, sharing, group, first;  ///< group: heads of all groups but the first.
  __host__ __device__ int items() const { return tiles * heads; }
  __device__ __forceinline__ WorkItem item(int number) const {
    const int behind = number - tiles * first;
    if (behind < 0) return {number / first, number % first};
    const int within = behind % (tiles * group);
    return {within / group, first + behind / (tiles * group) * group + within % group};
  }
};

/// As few groups of heads as there can be if their keys and values take at most half of the L2; `sharing` query heads have the same ones.
inline WorkOrder work_order(int tiles, int heads, int sharing, std::size_t bytes_per_kv_head, std::size_t l2_bytes) {
  const std::size_t fit = l2_bytes / 2 / std::max<std::size_t>(bytes_per_kv_head, 1);
  const int kv_heads = heads / sharing;
  const int groups = (kv_heads - 1) / static_cast<int>(std::clamp<std::size_t>(fit, 1, static_cast<std::size_t>(kv_heads))) + 1;
  const int group = (kv_heads + groups - 1) / groups * sharing;
  return {tiles, heads, sharing, group, (heads - 1) % group + 1};
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
