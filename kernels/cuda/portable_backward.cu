// Gradients of attention for capability 8.0 and up. A block owns a tile of keys, whose dk and dv stay in registers while it
// meets the tiles of queries; each adds its dq to memory when the tiles before it have.
//
// One kernel with turns rather than one for dk, dv and one for dq: 5 products a pair instead of 7, since scores and their
// gradients are worked out once.
// Source: Dao, FlashAttention-2 (2023), section 3; algorithms.md 1.2, 1.7.
#include "kernels/cuda/portable_backward.cuh"

namespace periplus::kernels::cuda::portable {
namespace {

/// Zeroes the dq of query tiles that no band reaches; blocks share them.
template <class T>
__device__ __forceinline__ void clear_unreached(const BackwardProblem<T, float>& p, const ResidentSchedule& schedule, int tile_rows) {
  const int heads = static_cast<int>(p.shape.heads), width = static_cast<int>(p.shape.width_qk);
  for (int i = static_cast<int>(blockIdx.x); i < schedule.unreached_tiles * heads; i += static_cast<int>(gridDim.x)) {
    const int begin = schedule.unreached[i / heads] * tile_rows, head = i % heads;
    const int rows = min(tile_rows, static_cast<int>(p.shape.query_rows) - begin);
    for (int j = static_cast<int>(threadIdx.x); j < rows * width; j += static_cast<int>(blockDim.x)) {
      at(p.dq, begin + j / width, head)[j % width] = 0;
    }
  }
}

/// One tile of keys with one of queries: adds to dk and dv, and leaves the rounded gradients of the scores to be shared.
template <class B>
__device__ __forceinline__ void meet(B& mine, typename B::Shared& s, int buffer, const typename B::Care& care, const ColumnTile& columns,
                                     const MaskBand* masks, const Scaling& by) {
  const auto& scalars = s.scalars[buffer];
  // Both products of rows first: afterwards only rounded matrices stay, and the sums' products have registers to themselves.
  float products[B::kScores][4];
  mine.multiply_rows(mine.scores, B::keys(s), B::queries(s, buffer));
  mine.multiply_rows(products, B::values(s), B::douts(s, buffer));
  if (by.outer > 0) mine.cap(by);
  mine.weigh(by, scalars);
  if (care.careful) {
    std::uint32_t allowed[2] = {~0u, ~0u}, spoilt[2] = {0, 0};
    mine.find_allowed(s, buffer, care, columns, masks, allowed, spoilt);
    mine.hide(allowed, spoilt);
  }
  mine.round_scores(mine.weights);
  if (care.careful) {
    mine.template differentiate<true>(products, scalars);
  } else {
    mine.template differentiate<false>(products, scalars);
  }
  if (by.outer > 0) {
    // Again: there are no registers to keep them in.
    mine.multiply_rows(products, B::keys(s), B::queries(s, buffer));
    mine.uncap(by, products);
  }
  mine.round_scores(mine.slopes);
  mine.add_product(mine.dv, mine.weights, B::douts(s, buffer), B::first_column(s));
  mine.add_product(mine.dk, mine.slopes, B::queries(s, buffer), B::first_column(s));
  mine.put_slopes(B::slope_tile(s));
}

template <class T, class Tiles>
__global__ void __launch_bounds__(Tiles::kThreads, 1)
    backward(const BackwardProblem<T, float> p, const ResidentSchedule schedule, const WorkOrder order, const Scaling by, const int group) {
  using B = Backward<T, Tiles>;
  extern __shared__ __align__(128) unsigned char memory[];
  auto& s = *reinterpret_cast<typename B::Shared*>(memory);
  const Work& work = s.work;
  if (threadIdx.x < 4) s.key_marks[threadIdx.x] = s.query_marks[threadIdx.x / 2][threadIdx.x % 2] = 0;
  if (p.overwrite_dq) clear_unreached(p, schedule, Tiles::kQueries);
  while (take_number(schedule.counters, &s.next) < order.items()) {
    if (threadIdx.x == 0) s.work = work_of(order.item(s.next), schedule, group, Tiles::kParts);
    __syncthreads();
    if (work.steps == 0 && !p.overwrite_dkdv) continue;
    const auto column_of = [&](int step) -> const ColumnTile& {
      return schedule.columns[work.rows.first + afresh(step) % work.rows.columns];
    };
    const auto head_of = [&](int step) { return work.first_head + afresh(step) / work.rows.columns; };
    const auto turn_of = [&](int step) {
      const int row = head_of(step) * Tiles::kParts + work.part;
      return schedule.turns + row * schedule.column_tiles + column_of(step).begin / Tiles::kQueries;
    };
    const auto pass_turn_of = [&](int step) {
      const ColumnTile& columns = column_of(step);
      pass_turn(turn_of(step), columns.turn + 1 == columns.turns ? 0 : columns.turn + 1);
    };
    B mine;
    B::clear(mine.dk);
    B::clear(mine.dv);
    if (work.steps > 0) {
      B::copy_keys(s, p, work.rows, work.kv);
      B::copy_queries(s, 0, p, column_of(0), head_of(0));
    }
    for (int step = 0; step < work.steps; ++step) {
      const int buffer = step % 2;
      const ColumnTile& columns = column_of(step);
      const auto care = mine.receive(s, buffer, columns.masks > 0, step == 0);
      // All of the block is done with the step before.
      if (step > 0 && threadIdx.x == 0) pass_turn_of(step - 1);
      if (step + 1 < work.steps) B::copy_queries(s, buffer ^ 1, p, column_of(step + 1), head_of(step + 1));
      meet(mine, s, buffer, care, columns, schedule.masks, by);
      __syncthreads();  // slopes are complete
      if (threadIdx.x < 2) s.query_marks[buffer][threadIdx.x] = 0;
      B::add_query_gradient(s, p, columns, head_of(step), turn_of(step));
    }
    __syncthreads();
    if (work.steps > 0 && threadIdx.x == 0) pass_turn_of(work.steps - 1);
    if (threadIdx.x < 4) s.key_marks[threadIdx.x] = 0;
    mine.store_key_gradients(p, work.rows, work.kv, work.part);
  }
  if (threadIdx.x == 0) leave(schedule.counters);
}

template <class T, class Tiles>
void launch(const BackwardProblem<T, float>& problem, const AttentionBlock& block, StreamView stream) {
  using B = Backward<T, Tiles>;
  const AttentionShape& shape = problem.shape;
  const ResidentSchedule schedule = resident_schedule(block.bands, RowAxis::key, shape.query_rows, shape.key_rows,
                                                      {Tiles::kKeys, Tiles::kQueries, true}, shape.heads * Tiles::kParts, stream);
  // What the key tiles of a head share: queries, their gradients, and the sums of these.
  const std::int64_t row_bytes = (shape.width_qk + shape.width_v) * 2 + shape.width_qk * 4;
  const std::int64_t kv_bytes = shape.heads / shape.kv_heads * shape.query_rows * row_bytes;
  const WorkOrder order =
      even_order(schedule.row_tiles, static_cast<int>(shape.kv_heads) * Tiles::kParts, Tiles::kParts,
                 fitting_heads(shape.kv_heads, kv_bytes, static_cast<std::size_t>(attribute(cudaDevAttrL2CacheSize, stream))));
  const int useful = order.items() + schedule.unreached_tiles * static_cast<int>(shape.heads);
  launch_persistent(backward<T, Tiles>, Tiles::kThreads, static_cast<int>(sizeof(typename B::Shared)), useful, stream, problem, schedule,
                    order, scaling_of(block), static_cast<int>(shape.heads / shape.kv_heads));
}

/// Tiles for devices that give a block as much shared memory as capability 8.0 and 9.0 do, and for those of 99 KB.
template <int width>
struct Large {
  using Tiles = BackwardTiles<width, 128, 64>;
};
template <>
struct Large<192> {
  using Tiles = BackwardTiles<192, 64, 64>;
};
template <>
struct Large<256> {
  using Tiles = BackwardTiles<256, 64, 32>;
};
template <int width>
struct Small {
  using Tiles = BackwardTiles<width, 64, width == 96 ? 64 : width == 128 ? 32 : 16>;
};
template <>
struct Small<64> : Large<64> {};
template <>
struct Small<192> {
  using Tiles = BackwardTiles<192, 32, 32>;
};

}  // namespace

bool supports(const BackwardCall& call) {
  const auto pairs = [](const ConstTensorView& view) { return aligned(view, 8); };
  const bool copies = aligned(call.dout, 16) && std::abs(call.dout.stride(0)) < (1 << 23);
  return supports(call.shape, call.block) && copies && pairs(call.gradients.dq) && pairs(call.gradients.dk) && pairs(call.gradients.dv);
}

void attend_backward(const BackwardCall& call, StreamView stream) {
  const auto& [q, k, v, bands, scale, softcap] = call.block;
  const auto& [dq, dk, dv, update_dq, update_dkdv] = call.gradients;
  for_type_and_width(q, call.shape, "attend_backward", [&]<class Storage, int width>() {
    using T = DeviceValue<Storage>;
    const BackwardProblem<T, float> problem{call.shape,
                                            scale,
                                            softcap,
                                            strided<Storage>(q),
                                            strided<Storage>(k),
                                            strided<Storage>(v),
                                            strided<Storage>(call.dout),
                                            strided<float>(call.lse),
                                            strided<float>(call.delta),
                                            strided<float>(dq),
                                            strided<float>(dk),
                                            strided<float>(dv),
                                            update_dq == Update::overwrite,
                                            update_dkdv == Update::overwrite};
    using Most = typename Large<width>::Tiles;
    const int available = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream);
    if (available >= static_cast<int>(sizeof(typename Backward<T, Most>::Shared))) return launch<T, Most>(problem, call.block, stream);
    launch<T, typename Small<width>::Tiles>(problem, call.block, stream);
  });
}

}  // namespace periplus::kernels::cuda::portable
