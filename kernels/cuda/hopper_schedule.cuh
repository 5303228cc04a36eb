// How the persistent kernels of capability 9.0 find their work.
#pragma once

#include <algorithm>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/tables.h"
#include "kernels/cuda/turns.cuh"

namespace periplus::kernels::cuda::hopper {

/// How many boxes have passed a ring of stages, a power of two: says which stage is next and the parity of its round.
template <int Stages>
struct Stage {
  unsigned count = 0;
  __device__ int index() const { return static_cast<int>(count % Stages); }
  __device__ int parity() const { return static_cast<int>(count / Stages % 2); }
  __device__ void next() { ++count; }
  __device__ Stage before() const { return {count - 1}; }
};

/// Heads whose operands, `bytes` each, fill half of the second-level cache; at least one.
inline int heads_per_group(std::int64_t heads, std::int64_t bytes, std::size_t l2_bytes) {
  return static_cast<int>(std::clamp<std::int64_t>(static_cast<std::int64_t>(l2_bytes / 2) / std::max<std::int64_t>(bytes, 1), 1, heads));
}

/// Work items are (row tile, head): heads in groups that find their keys and values in the second-level cache, within a group
/// the row tiles in the order of the schedule, for each of them the heads of the group.
struct WorkOrder {
  int heads, heads_per_group, row_tiles;
  int first_group;  ///< Heads of the first group; of others but the last there are heads_per_group.

  __host__ __device__ int items() const { return heads * row_tiles; }
  struct Item {
    int row_tile, head;
  };
  __device__ Item item(int index) const {
    const int behind = index - first_group * row_tiles;
    if (behind < 0) return {index / first_group, index % first_group};
    const int per_group = heads_per_group * row_tiles, group = behind / per_group, rest = behind - group * per_group;
    const int first = first_group + group * heads_per_group, here = min(heads_per_group, heads - first);
    return {rest / here, first + rest % here};
  }
};

/// As few groups as can be if keys and values of `fit` key/value heads, each shared by `sharing` heads, fit the cache. If heads are
/// left over, it is the first group that is smaller: the more items the last one has, the more evenly the blocks end. For row tiles
/// that come longest first.
inline WorkOrder even_order(int heads, int sharing, int fit, int row_tiles) {
  const int kv_heads = heads / sharing, groups = (kv_heads - 1) / fit + 1, per_group = ((kv_heads - 1) / groups + 1) * sharing;
  return {heads, per_group, row_tiles, (heads - 1) % per_group + 1};
}

/// Takes the next item; -1 when there is none left.
__device__ inline int next_item(std::int32_t* counters, const WorkOrder& order) {
  const int index = atomicAdd(&counters[0], 1);
  return index < order.items() ? index : -1;
}
/// Called once by every block when it has got -1: the last one leaves the counters at zero for the next launch.
__device__ inline void end_of_items(std::int32_t* counters) {
  if (atomicAdd(&counters[1], 1) != static_cast<int>(gridDim.x) - 1) return;
  counters[0] = 0;
  counters[1] = 0;
  __threadfence();
}

}  // namespace periplus::kernels::cuda::hopper
