#pragma once

#include <algorithm>

#include "kernels/cuda/tables.h"

/// How persistent blocks share the (row tile, head) pairs of a schedule.
namespace periplus::kernels::cuda {

/// Heads are taken in groups, all row tiles of a group before the next: what the heads of a group share stays in the second-level
/// cache. Within a group row tiles come in schedule order, each for all heads of the group.
struct WorkOrder {
  int row_tiles, heads, group, first_group;  ///< group: heads of each group but the first.

  __host__ __device__ int items() const { return row_tiles * heads; }
  struct Item {
    int row_tile, head;
  };
  __device__ __forceinline__ Item item(int number) const {
    const int behind = number - row_tiles * first_group;
    if (behind < 0) return {number / first_group, number % first_group};
    const int within = behind % (row_tiles * group);
    return {within / group, first_group + behind / (row_tiles * group) * group + within % group};
  }
};

/// Of `heads` heads, how many have operands, `bytes` each, that fill half of the second-level cache; at least one.
inline int fitting_heads(std::int64_t heads, std::int64_t bytes, std::size_t l2_bytes) {
  return static_cast<int>(std::clamp<std::int64_t>(static_cast<std::int64_t>(l2_bytes / 2) / std::max<std::int64_t>(bytes, 1), 1, heads));
}

/// As few groups as can be if the operands of `fit` heads, each for `sharing` heads of the order, fit the cache. If heads are left over, it
/// is the first group that is smaller: the more items the last one has, the more evenly the blocks end.
inline WorkOrder even_order(int row_tiles, int heads, int sharing, int fit) {
  const int kv_heads = heads / sharing, groups = (kv_heads - 1) / fit + 1, group = ((kv_heads - 1) / groups + 1) * sharing;
  return {row_tiles, heads, group, (heads - 1) % group + 1};
}

/// The next number from the counter, for one thread; those from items() on mean that none is left.
__device__ __forceinline__ int take_number(std::int32_t* counters) { return atomicAdd(&counters[0], 1); }
/// The same for a whole block. `shared` is a word of shared memory of this use alone.
__device__ __forceinline__ int take_number(std::int32_t* counters, int* shared) {
  __syncthreads();  // the last number has been read, and so has all shared memory of the last item
  if (threadIdx.x == 0) *shared = take_number(counters);
  __syncthreads();
  return *shared;
}

/// Called by one thread of every block when no item is left: the last one makes the counters zero again for the next launch.
__device__ __forceinline__ void leave(std::int32_t* counters) {
  __threadfence();
  if (atomicAdd(&counters[1], 1) == static_cast<int>(gridDim.x) - 1) counters[0] = counters[1] = 0;
}

}  // namespace periplus::kernels::cuda
