// The producer warpgroup of the backward kernel: one thread hands out items and copies tiles, a warp loads what lies apart, one
// thread adds dq to global memory in turn, a warp clears what no key reaches.
#pragma once

#include "kernels/cuda/hopper_backward_parts.cuh"

namespace periplus::kernels::cuda::hopper::backward {

template <class Tiles>
__device__ void load_panels(std::byte* destination, const CUtensorMap* map, std::uint64_t* full, int panel_bytes, int row, int head) {
  for (int panel = 0; panel < Tiles::kPanels; ++panel) load_box(destination + panel * panel_bytes, map, full, panel * 64, row, head);
}

/// One thread: hands out items and copies k, v, q and dout.
template <class Tiles>
__device__ void produce(Shared<Tiles>& shared, const Arguments& arguments) {
  Stage<Tiles::kStages> stage;
  for (int parity = 0;; parity ^= 1) {
    Work work{next_item(arguments.schedule.counters, arguments.order), 0, 0, {}};
    if (work.index >= 0) {
      const WorkOrder::Item item = arguments.order.item(work.index);
      work.head = item.head;
      work.kv_head = item.head / arguments.group;
      work.keys = arguments.schedule.rows[item.row_tile];
    }
    barrier_wait(&shared.item_free, parity ^ 1);
    shared.work[parity] = work;
    barrier_arrive(&shared.item_full);
    if (work.index < 0) return leave(arguments.schedule.counters);
    barrier_wait(&shared.kv_free, parity ^ 1);
    if (work.keys.columns == 0) {
      barrier_arrive(&shared.kv_full);
      continue;
    }
    barrier_arrive_expecting(&shared.kv_full, 2 * Tiles::kKeyBytes);
    load_panels<Tiles>(shared.k, &arguments.k, &shared.kv_full, Tiles::kKeyPanel, work.keys.begin, work.kv_head);
    load_panels<Tiles>(shared.v, &arguments.v, &shared.kv_full, Tiles::kKeyPanel, work.keys.begin, work.kv_head);
#pragma unroll 1
    for (int step = 0; step < work.keys.columns; ++step) {
      const ColumnTile* const tile = &arguments.schedule.columns[work.keys.first + step];
      const int row = tile->begin;
      barrier_wait(&shared.q_free[stage.index()], stage.parity() ^ 1);
      barrier_arrive_expecting(&shared.q_full[stage.index()], Tiles::kQueryBytes + static_cast<int>(sizeof(ColumnTile)));
      load_bytes(&shared.tile[stage.index()], tile, sizeof(ColumnTile), &shared.q_full[stage.index()]);
      load_panels<Tiles>(shared.q[stage.index()], &arguments.q, &shared.q_full[stage.index()], Tiles::kQueryPanel, row, work.head);
      barrier_wait(&shared.dout_free[stage.index()], stage.parity() ^ 1);
      barrier_arrive_expecting(&shared.dout_full[stage.index()], Tiles::kQueryBytes);
      load_panels<Tiles>(shared.dout[stage.index()], &arguments.dout, &shared.dout_full[stage.index()], Tiles::kQueryPanel, row, work.head);
      stage.next();
    }
  }
}

/// One warp: lse and delta, whose rows lie apart. They arrive with q.
template <class Tiles>
__device__ void load_rows(Shared<Tiles>& shared, const Arguments& arguments, int lane) {
  Stage<Tiles::kStages> stage;
  int parity = 0;
  for (;;) {
    const Work work = receive_item(shared, parity, lane == 0);
    if (work.index < 0) return;
#pragma unroll 1
    for (int step = 0; step < work.keys.columns; ++step) {
      const int begin = arguments.schedule.columns[work.keys.first + step].begin;
      barrier_wait(&shared.q_free[stage.index()], stage.parity() ^ 1);
      for (int i = lane; i < Tiles::kQueries; i += 32) {
        const int row = begin + i;
        const bool exists = row < arguments.query_rows;
        const float lse = exists ? arguments.lse.data[row * arguments.lse.row + work.head * arguments.lse.head] : -INFINITY;
        const float delta = exists ? arguments.delta.data[row * arguments.delta.row + work.head * arguments.delta.head] : 0;
        shared.lse[stage.index()][i] = lse == -INFINITY ? INFINITY : lse * kLog2E;
        shared.delta[stage.index()][i] = delta;
      }
      barrier_arrive(&shared.q_full[stage.index()]);
      stage.next();
    }
  }
}

/// One thread: adds dq tiles to global memory when it is their turn.
template <class Tiles>
__device__ void add_sums(Shared<Tiles>& shared, const Arguments& arguments) {
  Stage<2> stage;
  int item_parity = 0;
  for (;;) {
    const Work work = receive_item(shared, item_parity, true);
    if (work.index < 0) return;
#pragma unroll 1
    for (int step = 0; step < work.keys.columns; ++step) {
      const ColumnTile tile = arguments.schedule.columns[work.keys.first + step];
      std::int32_t* const turn = &arguments.schedule.turns[work.head * arguments.schedule.column_tiles + tile.begin / Tiles::kQueries];
      barrier_wait(&shared.sums_full[stage.index()], stage.parity());
      while (load_acquire(turn) != tile.turn) {
      }
      const bool store = tile.turn == 0 && arguments.overwrite_dq;
      for (int panel = 0; panel < Tiles::kSumPanels; ++panel) {
        const std::byte* const source = shared.sums[stage.index()] + panel * Tiles::kSumPanel;
        if (store) {
          store_box(&arguments.dq, source, panel * Tiles::kSumColumns, tile.begin, work.head);
        } else {
          add_box(&arguments.dq, source, panel * Tiles::kSumColumns, tile.begin, work.head);
        }
      }
      store_commit();
      store_wait_read<0>();
      barrier_arrive(&shared.sums_free[stage.index()]);
      stage.next();
      store_wait<0>();
      __threadfence();
      store_release(turn, tile.turn + 1 == tile.turns ? 0 : tile.turn + 1);
    }
  }
}

/// One warp of every block: dq of the query tiles that no key reaches.
template <class Tiles>
__device__ void clear_unreached(const Arguments& arguments, int lane) {
  const int heads = arguments.order.heads;
  const int items = arguments.schedule.unreached_tiles * heads;
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    const int begin = arguments.schedule.unreached[item / heads] * Tiles::kQueries, head = item % heads;
    for (int row = begin; row < min(begin + Tiles::kQueries, arguments.query_rows); ++row) {
      float* const dq = arguments.dq_rows.data + row * arguments.dq_rows.row + head * arguments.dq_rows.head;
      for (int i = lane; i < arguments.width_qk; i += 32) dq[i] = 0;
    }
  }
}

}  // namespace periplus::kernels::cuda::hopper::backward
