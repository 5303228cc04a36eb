// Backward attention for capability 9.0, in one pass over the key tiles.
//
// One persistent block per multiprocessor owns 128 keys of one key/value head: two consumer warpgroups of 64 keys each keep
// dk and dv in registers while the query tiles of all query heads that share these keys pass by. With keys as rows,
//   S^T = K Q^T,  dP^T = V dO^T,  P = 2^(S - lse),  dS = P (dP - delta),  dV += P^T dO,  dK += dS^T Q,
// so P and dS go from accumulators to operand registers without shared memory. Only dQ = dS K needs all 128 keys: the
// warpgroups put dS into shared memory, and each computes its half of dq.
// dq tiles are summed over the blocks in global memory by the copy engine, in the order of ColumnTile::turn, so that results
// repeat bit for bit; a warp of its own waits for the turns, a step or two behind. The next S^T starts before the sums of this
// tile are finished. (Dao 2023; Shah et al. 2024. Descending order of key tiles, in which causal turns hardly wait: schedule.h.)
#include <algorithm>

#include "kernels/cuda/hopper_backward_consumer.cuh"
#include "kernels/cuda/hopper_backward_supply.cuh"
#include "kernels/cuda/hopper_launch.cuh"

namespace periplus::kernels::cuda::hopper {
namespace backward {

template <class Tiles>
__device__ void init_barriers(Shared<Tiles>& shared) {
  constexpr int kConsumerWarps = 4 * Tiles::kConsumers;
  barrier_init(&shared.item_full, 1);
  barrier_init(&shared.item_free, kConsumerWarps + 2);  // and the warps that load rows and add sums
  barrier_init(&shared.kv_full, 1);
  barrier_init(&shared.kv_free, kConsumerWarps);
  for (int i = 0; i < 2; ++i) {
    barrier_init(&shared.sums_full[i], kConsumerWarps);
    barrier_init(&shared.sums_free[i], 1);
  }
  for (int i = 0; i < Tiles::kStages; ++i) {
    barrier_init(&shared.q_full[i], 1 + 32);  // the copy, and the lanes that load rows
    barrier_init(&shared.dout_full[i], 1);
    barrier_init(&shared.q_free[i], kConsumerWarps);
    barrier_init(&shared.dout_free[i], kConsumerWarps);
  }
  barrier_init_fence();
}

template <class Tiles>
__global__ void __launch_bounds__(Tiles::kThreads, 1) hopper_backward(const __grid_constant__ Arguments arguments) {
  Shared<Tiles>& shared = shared_memory<Shared<Tiles>>();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    give_registers<Tiles::kProducerRegisters>();
    if (warp == 0 && lane == 0) {
      produce(shared, arguments);
    } else if (warp == 1) {
      load_rows(shared, arguments, lane);
    } else if (warp == 2 && lane == 0) {
      add_sums(shared, arguments);
    } else if (warp == 3 && arguments.overwrite_dq) {
      clear_unreached<Tiles>(arguments, lane);
    }
  } else {
    take_registers<Tiles::kConsumerRegisters>();
    Consumer<Tiles>(shared, arguments, warpgroup_index() - 1).run();
  }
}

template <class Tiles>
void launch(const BackwardCall& call, StreamView stream) {
  const AttentionShape& shape = call.shape;
  const auto& device = periplus::cuda::known_properties(stream.device().index);
  const AttentionGradients& gradients = call.gradients;
  Arguments arguments{};
  arguments.q = encode(plan_boxes(call.block.q, Tiles::kQueries));
  arguments.k = encode(plan_boxes(call.block.k, Tiles::kKeys));
  arguments.v = encode(plan_boxes(call.block.v, Tiles::kKeys));
  arguments.dout = encode(plan_boxes(call.dout, Tiles::kQueries));
  arguments.dq = encode(plan_boxes(gradients.dq, Tiles::kQueries));
  const ScheduleTiles tiles{Tiles::kKeys, Tiles::kQueries, true};
  arguments.schedule = resident_schedule(call.block.bands, RowAxis::key, shape.query_rows, shape.key_rows, tiles, shape.heads, stream,
                                         shape.kv_heads * Tiles::kConsumers);
  // What passes by the key tiles of a head: q and dout, and the sums of dq in f32.
  const std::int64_t bytes = shape.query_rows * (2 * (shape.width_qk + shape.width_v) + 4 * shape.width_qk);
  const bool all_rows = gradients.update_dkdv == Update::overwrite;
  arguments.order = even_order(all_rows ? arguments.schedule.row_tiles : arguments.schedule.reached_rows, static_cast<int>(shape.heads), 1,
                               fitting_heads(shape.heads, bytes, device.l2_bytes));
  arguments.group = static_cast<int>(shape.heads / shape.kv_heads);
  arguments.lse = strided_f32(call.lse);
  arguments.delta = strided_f32(call.delta);
  arguments.dq_rows = strided_f32(gradients.dq);
  arguments.dk = strided_f32(gradients.dk);
  arguments.dv = strided_f32(gradients.dv);
  arguments.scale = static_cast<float>(call.block.scale);
  arguments.factor = arguments.scale * kLog2E;
  arguments.query_rows = static_cast<int>(shape.query_rows);
  arguments.width_qk = static_cast<int>(shape.width_qk);
  arguments.width_v = static_cast<int>(shape.width_v);
  arguments.overwrite_dq = gradients.update_dq == Update::overwrite;
  arguments.overwrite_dkdv = gradients.update_dkdv == Update::overwrite;
  launch_persistent<Tiles, Shared<Tiles>>(hopper_backward<Tiles>, "hopper_backward", arguments, stream);
}

}  // namespace backward

bool supports(const BackwardCall& call) {
  const ConstTensorView boxes[] = {call.block.q, call.block.k, call.block.v, call.dout, call.gradients.dq};
  return supports_block(call.shape, call.block, boxes) && pairs_aligned(call.gradients.dk) && pairs_aligned(call.gradients.dv);
}

void attend_backward(const BackwardCall& call, StreamView stream) {
  with_tiles(call.shape, call.block.q.dtype(), [&]<class T, int Width>() { backward::launch<backward::Tiles<T, Width>>(call, stream); });
}

}  // namespace periplus::kernels::cuda::hopper
