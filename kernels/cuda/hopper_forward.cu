// Forward attention for capability 9.0.
//
// One persistent block per multiprocessor. A producer warpgroup gives its registers away; one of its threads takes work items
// and copies boxes of q, k, v to shared memory with TMA. Each consumer warpgroup owns 64 query rows of the tile and keeps
// their out accumulators in registers. Per column tile it issues the next q k^T and the current p v, and while the tensor
// cores work on both it turns the scores that are ready into weights (FlashAttention-3, Shah et al. 2024, sections 3.1, 3.2).
// The warpgroups take turns in issuing products, so that one's exponentials hide behind the other's products.
// The running state meets the block's result once, when an item ends: one load and one store of f32 (out, lse) per call. Both
// go through shared memory by the copy engine, and the next item's first product is under way meanwhile.
#include <algorithm>

#include "kernels/cuda/hopper_forward_consumer.cuh"
#include "kernels/cuda/hopper_launch.cuh"

namespace periplus::kernels::cuda::hopper {
namespace forward {

template <class Tiles>
__device__ void init_barriers(Shared<Tiles>& shared) {
  constexpr int kConsumerWarps = 4 * Tiles::kConsumers;
  for (int i = 0; i < 2; ++i) {
    barrier_init(&shared.q_full[i], 1);
    barrier_init(&shared.q_free[i], kConsumerWarps + 1);  // and the warp that fetches states
  }
  for (int i = 0; i < Tiles::kStages; ++i) {
    for (std::uint64_t* full : {&shared.k_full[i], &shared.v_full[i]}) barrier_init(full, 1);
    for (std::uint64_t* free : {&shared.k_free[i], &shared.v_free[i]}) barrier_init(free, kConsumerWarps);
  }
  for (std::uint64_t& full : shared.out_full) barrier_init(&full, 1);
  barrier_init_fence();
}

template <class Tiles>
__global__ void __launch_bounds__(Tiles::kThreads, 1) hopper_forward(const __grid_constant__ Arguments arguments) {
  Shared<Tiles>& shared = shared_memory<Shared<Tiles>>();
  if (threadIdx.x == 0) {
    for (const CUtensorMap* map : {&arguments.q, &arguments.k, &arguments.v}) prefetch_map(map);
    init_barriers(shared);
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    give_registers<Tiles::kProducerRegisters>();
    if (threadIdx.x == 0) {
      produce(shared, arguments);
    } else if (threadIdx.x / 32 == 1) {
      fetch_states(shared, arguments, static_cast<int>(threadIdx.x) % 32);
    }
  } else {
    take_registers<Tiles::kConsumerRegisters>();
    Consumer<Tiles>(shared, arguments, warpgroup_index() - 1).run();
  }
}

template <class Tiles>
void launch(const ForwardCall& call, StreamView stream) {
  const AttentionShape& shape = call.shape;
  const auto& device = periplus::cuda::known_properties(stream.device().index);
  const ScheduleTiles tiles{Tiles::kRows, Tiles::kKeys, false, true};
  Arguments arguments{};
  arguments.q = encode(plan_boxes(call.block.q, Tiles::kRows));
  arguments.k = encode(plan_boxes(call.block.k, Tiles::kKeys));
  arguments.v = encode(plan_boxes(call.block.v, Tiles::kKeys));
  arguments.schedule = resident_schedule(call.block.bands, RowAxis::query, shape.query_rows, shape.key_rows, tiles, 0, stream);
  arguments.group = static_cast<int>(shape.heads / shape.kv_heads);
  // What a row tile reads of a head is at most what the longest one does.
  const std::int64_t keys = std::min<std::int64_t>(shape.key_rows, std::int64_t{arguments.schedule.longest} * Tiles::kKeys);
  // Rows that no key reaches matter only if they are to be cleared.
  const bool all_rows = call.update == Update::overwrite;
  arguments.order =
      even_order(all_rows ? arguments.schedule.row_tiles : arguments.schedule.reached_rows, static_cast<int>(shape.heads), arguments.group,
                 fitting_heads(shape.kv_heads, keys * (shape.width_qk + shape.width_v) * 2, device.l2_bytes));
  arguments.out = encode(plan_boxes(call.state.out, 64));
  arguments.out_rows = strided_f32(call.state.out);
  arguments.lse = strided_f32(call.state.lse);
  arguments.scale = static_cast<float>(call.block.scale);
  arguments.width_v = static_cast<int>(shape.width_v);
  arguments.overwrite = call.update == Update::overwrite;
  if (arguments.order.items() == 0) return;
  launch_persistent<Tiles, Shared<Tiles>>(hopper_forward<Tiles>, "hopper_forward", arguments, stream);
}

}  // namespace forward

bool supports(const ForwardCall& call) {
  const ConstTensorView boxes[] = {call.block.q, call.block.k, call.block.v, call.state.out};
  return supports_block(call.shape, call.block, boxes);
}

void attend(const ForwardCall& call, StreamView stream) {
  with_tiles(call.shape, call.block.q.dtype(), [&]<class T, int Width>() { forward::launch<forward::Tiles<T, Width>>(call, stream); });
}

}  // namespace periplus::kernels::cuda::hopper
