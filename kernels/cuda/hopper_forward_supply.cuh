// The producer warpgroup of the forward kernel, and what it shares with the consumers: tiles, arguments, shared memory. One thread
// takes work items and copies tiles; a warp fetches old states.
#pragma once

#include "kernels/attention_problem.h"
#include "kernels/cuda/hopper_schedule.cuh"

namespace periplus::kernels::cuda::hopper::forward {

/// Head sizes are padded to Width. Wide heads: 2 consumers of 64 rows; narrow ones have registers for 3.
template <class Type, int PaddedWidth>
struct Tiles {
  using T = Type;
  static constexpr int kWidth = PaddedWidth;
  static constexpr int kConsumers = kWidth == 128 ? 2 : 3;
  static constexpr int kRows = 64 * kConsumers, kKeys = 128, kStages = 2;
  static constexpr int kPanels = kWidth / 64;
  static constexpr int kQueryPanel = kRows * 128, kKeyPanel = kKeys * 128;  // bytes
  static constexpr int kQueryBytes = kPanels * kQueryPanel, kKeyBytes = kPanels * kKeyPanel;
  static constexpr int kOutPanel = 64 * 128, kOutPanels = kWidth / 32;  // f32, of one consumer
  static constexpr int kThreads = kWarpgroup * (1 + kConsumers);
  static constexpr int kProducerRegisters = kConsumers == 2 ? 40 : 32, kConsumerRegisters = kConsumers == 2 ? 232 : 160;
  static_assert(registers_fit(kConsumers, kProducerRegisters, kConsumerRegisters));
  static constexpr int kScores = kKeys / 2, kOuts = kWidth / 2;  // accumulators of a thread
};

struct Arguments {
  CUtensorMap q, k, v, out;
  ResidentSchedule schedule;
  WorkOrder order;
  Strided<float> out_rows, lse;
  float scale;
  int width_v, group;  ///< query heads per key/value head
  bool overwrite;
};

/// A work item, looked up once by the producer; kept in shared memory because registers are scarce.
struct Work {
  int index, head;  ///< index < 0: no more work.
  RowTile rows;
};

template <class Tiles>
struct Shared {
  alignas(1024) std::byte q[2][Tiles::kQueryBytes];  // the next item's come while one is computed
  std::byte k[Tiles::kStages][Tiles::kKeyBytes];
  std::byte v[Tiles::kStages][Tiles::kKeyBytes];
  // A consumer's rows of out, [64][32 columns] panels: half of them lie where its queries were.
  std::byte out[Tiles::kOutPanels / 2][Tiles::kConsumers][Tiles::kOutPanel];
  std::uint64_t q_full[2], q_free[2];
  std::uint64_t k_full[Tiles::kStages], k_free[Tiles::kStages], v_full[Tiles::kStages], v_free[Tiles::kStages];
  std::uint64_t out_full[Tiles::kConsumers];  // the old state
  ColumnTile tile[Tiles::kStages];            // of k
  Work work[2];                               // of q
};

template <class Tiles>
__device__ void load_panels(std::byte* destination, const CUtensorMap* map, std::uint64_t* full, int row, int head) {
  for (int panel = 0; panel < Tiles::kPanels; ++panel) load_box(destination + panel * Tiles::kKeyPanel, map, full, panel * 64, row, head);
}

/// The block's next work item.
__device__ inline Work take_work(const Arguments& arguments) {
  Work work{next_item(arguments.schedule.counters, arguments.order), 0, {}};
  if (work.index < 0) return work;
  const WorkOrder::Item item = arguments.order.item(work.index);
  work.head = item.head;
  work.rows = arguments.schedule.rows[item.row_tile];
  return work;
}

template <class Tiles>
__device__ void produce(Shared<Tiles>& shared, const Arguments& arguments) {
  Stage<2> q;
  Stage<Tiles::kStages> k, v;
  Work work = take_work(arguments);
  for (;; q.next()) {
    std::uint64_t* const q_full = &shared.q_full[q.index()];
    barrier_wait(&shared.q_free[q.index()], q.parity() ^ 1);
    shared.work[q.index()] = work;
    if (work.index < 0) {
      barrier_arrive(q_full);
      return leave(arguments.schedule.counters);
    }
    const RowTile rows = work.rows;
    if (rows.columns == 0) {
      barrier_arrive(q_full);
      work = take_work(arguments);
      continue;
    }
    barrier_arrive_expecting(q_full, Tiles::kQueryBytes);
    for (int panel = 0; panel < Tiles::kPanels; ++panel) {
      load_box(shared.q[q.index()] + panel * Tiles::kQueryPanel, &arguments.q, q_full, panel * 64, rows.begin, work.head);
    }
    const int head = work.head / arguments.group;
    // v follows one tile behind k, as it is used. Not unrolled: this thread has few registers.
    int begin = 0;
#pragma unroll 1
    for (int i = 0; i <= rows.columns; ++i) {
      const int begin_before = begin;
      if (i < rows.columns) {
        const ColumnTile* const tile = &arguments.schedule.columns[rows.first + i];
        begin = tile->begin;
        barrier_wait(&shared.k_free[k.index()], k.parity() ^ 1);
        barrier_arrive_expecting(&shared.k_full[k.index()], Tiles::kKeyBytes + static_cast<int>(sizeof(ColumnTile)));
        load_bytes(&shared.tile[k.index()], tile, sizeof(ColumnTile), &shared.k_full[k.index()]);
        load_panels<Tiles>(shared.k[k.index()], &arguments.k, &shared.k_full[k.index()], begin, head);
        k.next();
      }
      if (i > 0) {
        barrier_wait(&shared.v_free[v.index()], v.parity() ^ 1);
        barrier_arrive_expecting(&shared.v_full[v.index()], Tiles::kKeyBytes);
        load_panels<Tiles>(shared.v[v.index()], &arguments.v, &shared.v_full[v.index()], begin_before, head);
        v.next();
      } else {
        work = take_work(arguments);  // its answers come from far, and there is time now
      }
    }
  }
}

/// The old state of the rows of an item comes to the second-level cache while the item is computed.
template <class Tiles>
__device__ void fetch_states(Shared<Tiles>& shared, const Arguments& arguments, int lane) {
  for (Stage<2> q;; q.next()) {
    barrier_wait(&shared.q_full[q.index()], q.parity());
    const Work work = shared.work[q.index()];
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.q_free[q.index()]);
    if (work.index < 0) return;
    if (arguments.overwrite) continue;
    const RowTile& rows = work.rows;
    for (int row = lane; row < rows.count; row += 32) {
      const float* const out = arguments.out_rows.data + (rows.begin + row) * arguments.out_rows.row + work.head * arguments.out_rows.head;
      for (int i = 0; i < arguments.width_v; i += 32) prefetch_to_l2(out + i);
    }
  }
}

}  // namespace periplus::kernels::cuda::hopper::forward
