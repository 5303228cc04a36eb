// What the two roles of the backward kernel share: tiles, arguments, shared memory, and how work items are handed on.
#pragma once

#include "kernels/attention_problem.h"
#include "kernels/cuda/hopper_schedule.cuh"

namespace periplus::kernels::cuda::hopper::backward {

/// Head sizes are padded to Width. Query tiles are as long as registers allow.
template <class Type, int PaddedWidth>
struct Tiles {
  using T = Type;
  static constexpr int kWidth = PaddedWidth, kKeys = 128, kQueries = kWidth == 128 ? 64 : 128, kStages = 2;
  static constexpr int kConsumers = 2, kThreads = kWarpgroup * (1 + kConsumers);
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
  static_assert(registers_fit(kConsumers, kProducerRegisters, kConsumerRegisters));
  static constexpr int kPanels = kWidth / 64;
  static constexpr int kKeyPanel = kKeys * 128, kQueryPanel = kQueries * 128;  // bytes
  static constexpr int kKeyBytes = kPanels * kKeyPanel, kQueryBytes = kPanels * kQueryPanel;
  static constexpr int kScorePanels = kQueries / 64, kScoreBytes = kScorePanels * kKeyPanel;
  static constexpr int kSumColumns = 32, kSumPanels = kWidth / kSumColumns, kSumPanel = kQueries * 128;  // f32
  static constexpr int kScores = kQueries / 2, kSums = kWidth / 2;                                       // accumulators of a thread
};

struct Arguments {
  CUtensorMap q, k, v, dout, dq;
  ResidentSchedule schedule;
  WorkOrder order;
  Strided<const float> lse, delta;
  Strided<float> dq_rows, dk, dv;
  float scale, factor;  ///< factor: of scores in base 2
  int query_rows, width_qk, width_v, group;
  bool overwrite_dq, overwrite_dkdv;
};

/// A work item: the query tiles of one head that some of its keys reach. Looked up once by the producer, and kept in shared
/// memory because registers are scarce.
struct Work {
  int index, head, kv_head;  ///< index < 0: no more work.
  RowTile keys;
};

template <class Tiles>
struct Shared {
  alignas(1024) std::byte k[Tiles::kKeyBytes];
  std::byte v[Tiles::kKeyBytes];
  std::byte q[Tiles::kStages][Tiles::kQueryBytes];
  std::byte dout[Tiles::kStages][Tiles::kQueryBytes];
  std::byte scores[2][Tiles::kScoreBytes];                  // dS^T, [keys][64 queries] panels
  std::byte sums[2][Tiles::kSumPanels * Tiles::kSumPanel];  // dq, [queries][32 columns] panels
  float lse[Tiles::kStages][Tiles::kQueries];               // base 2; +inf where a row has no keys or does not exist
  float delta[Tiles::kStages][Tiles::kQueries];
  std::uint64_t item_full, item_free, kv_full, kv_free, sums_full[2], sums_free[2];
  std::uint64_t q_full[Tiles::kStages], q_free[Tiles::kStages], dout_full[Tiles::kStages], dout_free[Tiles::kStages];
  ColumnTile tile[Tiles::kStages];  // which queries these are, and their masks
  Work work[2];                     // by the parity of the round
};

/// The block's next item. `tells` holds for the lanes that say that the one before is done with.
template <class Tiles>
__device__ __forceinline__ const Work& receive_item(Shared<Tiles>& shared, int& parity, bool tells) {
  barrier_wait(&shared.item_full, parity);
  const Work& work = shared.work[parity];
  parity ^= 1;
  __syncwarp();
  if (tells) barrier_arrive(&shared.item_free);
  return work;
}

}  // namespace periplus::kernels::cuda::hopper::backward
