// The two roles of the forward kernel (hopper_forward.cu): a producer thread, and consumer warpgroups with the mathematics.
#pragma once

#include <cmath>

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
  static constexpr int kThreads = kWarpgroup * (1 + kConsumers);
  static constexpr int kProducerRegisters = kConsumers == 2 ? 24 : 32, kConsumerRegisters = kConsumers == 2 ? 240 : 160;
  static_assert(registers_fit(kConsumers, kProducerRegisters, kConsumerRegisters));
  static constexpr int kScores = kKeys / 2, kOuts = kWidth / 2;  // accumulators of a thread
};

struct Arguments {
  CUtensorMap q, k, v;
  ResidentSchedule schedule;
  WorkOrder order;
  Strided<float> out, lse;
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
  alignas(1024) std::byte q[Tiles::kQueryBytes];
  std::byte k[Tiles::kStages][Tiles::kKeyBytes];
  std::byte v[Tiles::kStages][Tiles::kKeyBytes];
  std::uint64_t q_full, q_free;
  std::uint64_t k_full[Tiles::kStages], k_free[Tiles::kStages], v_full[Tiles::kStages], v_free[Tiles::kStages];
  ColumnTile tile[Tiles::kStages];  // of k
  Work work[2];                     // by the parity of the round: the last one is still stored while the next one starts
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
  Stage<Tiles::kStages> k, v;
  Work work = take_work(arguments);
  for (int parity = 0;; parity ^= 1) {
    barrier_wait(&shared.q_free, parity ^ 1);
    shared.work[parity] = work;
    if (work.index < 0) {
      barrier_arrive(&shared.q_full);
      return end_of_items(arguments.schedule.counters);
    }
    const RowTile rows = work.rows;
    if (rows.columns == 0) {
      barrier_arrive(&shared.q_full);
      work = take_work(arguments);
      continue;
    }
    barrier_arrive_expecting(&shared.q_full, Tiles::kQueryBytes);
    for (int panel = 0; panel < Tiles::kPanels; ++panel) {
      load_box(shared.q + panel * Tiles::kQueryPanel, &arguments.q, &shared.q_full, panel * 64, rows.begin, work.head);
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
  for (int parity = 0;; parity ^= 1) {
    barrier_wait(&shared.q_full, parity);
    const Work work = shared.work[parity];
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.q_free);
    if (work.index < 0) return;
    if (arguments.overwrite) continue;
    const RowTile& rows = work.rows;
    for (int row = lane; row < rows.count; row += 32) {
      const float* const out = arguments.out.data + (rows.begin + row) * arguments.out.row + work.head * arguments.out.head;
      for (int i = 0; i < arguments.width_v; i += 32) asm volatile("prefetch.global.L2 [%0];" ::"l"(out + i));
    }
  }
}

/// Scores, maximum and sum of the two rows that a thread shares with the three others of its quad.
template <int N>
struct Softmax {
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  /// Turns scores into weights 2^(factor (score - largest)) and says by what the weights so far shrink.
  __device__ __forceinline__ void absorb(float (&scores)[N], float factor, float (&shrink)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = scores[2 * i];
#pragma unroll
      for (int j = 0; j < N / 4; ++j) top = fmaxf(top, fmaxf(scores[4 * j + 2 * i], scores[4 * j + 2 * i + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, 2));
      const float before = largest[i];
      largest[i] = fmaxf(before, top);
      // A row without an allowed key so far: any finite reference keeps -inf - (-inf) from becoming NaN.
      const float reference = largest[i] == -INFINITY ? 0 : largest[i] * factor;
      shrink[i] = exp2_fast(before * factor - reference);
      float added = 0;
#pragma unroll
      for (int j = 0; j < N / 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[4 * j + 2 * i + c];
          score = exp2_fast(fmaf(score, factor, -reference));
          added += score;
        }
      }
      sum[i] = sum[i] * shrink[i] + added;
    }
  }
};

/// The warpgroup's 64 rows of one work item.
template <class Tiles>
class Consumer {
 public:
  using T = typename Tiles::T;
  __device__ __forceinline__ Consumer(Shared<Tiles>& shared, const Arguments& arguments, int warpgroup)
      : shared_(shared),
        arguments_(arguments),
        warpgroup_(warpgroup),
        lane_(static_cast<int>(threadIdx.x) % 32),
        row_(64 * warpgroup + static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16 + lane_ / 4),
        q_(describe(shared_address(shared.q) + 64 * 128 * warpgroup, 0)) {}

  __device__ __forceinline__ void run() {
    if (warpgroup_ == Tiles::kConsumers - 1) give_turn();  // to warpgroup 0
    for (int parity = 0;; parity ^= 1) {
      barrier_wait(&shared_.q_full, parity);
      const Work& work = shared_.work[parity];
      if (work.index < 0) return;
      if (work.rows.columns > 0) {
        attend(work);
      } else {
        release(&shared_.q_free);
        clear(work);
      }
    }
  }

 private:
  static constexpr int kScores = Tiles::kScores, kOuts = Tiles::kOuts;
  using Position = Stage<Tiles::kStages>;

  /// The state that the thread's elements had before.
  struct OldState {
    float lse[2];
    float2 out[2][kOuts / 4];
  };

  __device__ __forceinline__ void attend(const Work& work) {
    const RowTile& rows = work.rows;
    const float factor = arguments_.scale * kLog2e;
    softmax_ = {};
    float shrink[2];
    {
      float scores[kScores];
      barrier_wait(&shared_.k_full[k_.index()], k_.parity());
      start_scores(scores);
      products_wait<0>();
      hold(scores);
      apply_mask(scores, shared_.tile[k_.index()], rows.begin);
      release_keys();
      softmax_.absorb(scores, factor, shrink);
      pack_weights(scores);
    }
    for (int i = 1; i < rows.columns; ++i) {
      float scores[kScores];
      const Position v = k_.before();  // v follows one tile behind k
      barrier_wait(&shared_.k_full[k_.index()], k_.parity());
      take_turn();
      start_scores(scores);
      barrier_wait(&shared_.v_full[v.index()], v.parity());
      start_out(v, i > 1);
      give_turn();
      products_wait<1>();
      hold(scores);
      apply_mask(scores, shared_.tile[k_.index()], rows.begin);
      release_keys();
      softmax_.absorb(scores, factor, shrink);
      products_wait<0>();
      hold(out_);
      release(&shared_.v_free[v.index()]);
#pragma unroll
      for (int j = 0; j < kOuts; ++j) out_[j] *= shrink[j / 2 % 2];
      pack_weights(scores);
    }
    release(&shared_.q_free);
    const Position v = k_.before();
    barrier_wait(&shared_.v_full[v.index()], v.parity());
    start_out(v, rows.columns > 1);
    OldState old;
    load(work, old);
    products_wait<0>();
    hold(out_);
    release(&shared_.v_free[v.index()]);
    store(work, old);
  }

  __device__ __forceinline__ void start_scores(float (&scores)[kScores]) {
    const std::uint64_t k = describe(shared_address(shared_.k[k_.index()]), 0);
    hold(scores);
    products_begin();
#pragma unroll
    for (int step = 0; step < Tiles::kWidth / 16; ++step) {
      const int inside = step % 4 * 32;
      product<T, 0, 0>(scores, advanced(q_, step / 4 * Tiles::kQueryPanel + inside), advanced(k, step / 4 * Tiles::kKeyPanel + inside),
                       step > 0);
    }
    products_commit();
  }

  __device__ __forceinline__ void start_out(const Position& stage, bool accumulate) {
    const std::uint64_t v = describe(shared_address(shared_.v[stage.index()]), Tiles::kKeyPanel);
    hold(out_);
    hold(weights_);
    products_begin();
#pragma unroll
    for (int step = 0; step < Tiles::kKeys / 16; ++step) {
      product<T, 1>(out_, weights_ + 4 * step, advanced(v, step * 2048), accumulate || step > 0);
    }
    products_commit();
  }

  /// Scores of 16 columns become the operand registers of one product.
  __device__ __forceinline__ void pack_weights(const float (&scores)[kScores]) {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) weights_[i] = pack<T>(scores[2 * i], scores[2 * i + 1]);
  }

  __device__ __forceinline__ void apply_mask(float (&scores)[kScores], const ColumnTile& tile, int first_row) const {
    if (tile.masks == 0) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t bits = allowed<keys_in>(tile, arguments_.schedule.masks, first_row + row_ + 8 * i, tile.begin + lane_ % 4 * 2);
#pragma unroll
      for (int j = 0; j < kScores / 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if ((bits >> (2 * j + c) & 1) == 0) scores[4 * j + 2 * i + c] = -INFINITY;
        }
      }
    }
  }

  __device__ __forceinline__ float* lse_of(const Work& work, int row) const {
    return arguments_.lse.data + (work.rows.begin + row) * arguments_.lse.row + work.head * arguments_.lse.head;
  }
  __device__ __forceinline__ float* out_of(const Work& work, int row) const {
    return arguments_.out.data + (work.rows.begin + row) * arguments_.out.row + work.head * arguments_.out.head + lane_ % 4 * 2;
  }
  __device__ __forceinline__ bool has(int column) const { return column < arguments_.width_v - lane_ % 4 * 2; }

  /// All loads at once, while the last product is computed.
  __device__ __forceinline__ void load(const Work& work, OldState& old) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row_ + 8 * i;
      const bool wanted = !arguments_.overwrite && row < work.rows.count;
      old.lse[i] = wanted ? *lse_of(work, row) : -INFINITY;
      const float* const out = out_of(work, row);
#pragma unroll
      for (int j = 0; j < kOuts / 4; ++j) {
        old.out[i][j] = wanted && has(8 * j) ? *reinterpret_cast<const float2*>(out + 8 * j) : float2{0, 0};
      }
    }
    __syncwarp();  // all of a quad have read lse
  }

  /// Normalises, folds into the running state, and stores.
  __device__ __forceinline__ void store(const Work& work, const OldState& old) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = softmax_.sum[i];
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 2);
      const int row = row_ + 8 * i;
      const bool empty = sum == 0;  // no key was allowed
      if (row >= work.rows.count || (empty && !arguments_.overwrite)) continue;
      const float value = empty ? -INFINITY : softmax_.largest[i] * arguments_.scale + __logf(sum);
      const float top = fmaxf(old.lse[i], value);
      const float total = empty ? -INFINITY : top + log1pf(__expf(fminf(old.lse[i], value) - top));
      const float weight = empty ? 0 : __expf(value - total) / sum, old_weight = empty ? 0 : __expf(old.lse[i] - total);
      if (lane_ % 4 == 0) *lse_of(work, row) = total;
      store_row(out_of(work, row), i, weight, old.out[i], old_weight);
    }
  }

  __device__ __forceinline__ void store_row(float* out, int i, float weight, const float2 (&old)[kOuts / 4], float old_weight) const {
#pragma unroll
    for (int j = 0; j < kOuts / 4; ++j) {
      if (!has(8 * j)) continue;
      // A weight of zero stands for nothing, also beside NaN.
      const float x = weight == 0 ? 0 : out_[4 * j + 2 * i] * weight, y = weight == 0 ? 0 : out_[4 * j + 2 * i + 1] * weight;
      *reinterpret_cast<float2*>(out + 8 * j) = {fmaf(old[j].x, old_weight, x), fmaf(old[j].y, old_weight, y)};
    }
  }

  /// Rows that no key reaches: the empty state.
  __device__ __forceinline__ void clear(const Work& work) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row_ + 8 * i;
      if (row >= work.rows.count) continue;
      if (lane_ % 4 == 0) *lse_of(work, row) = -INFINITY;
      for (int j = 0; has(8 * j); ++j) *reinterpret_cast<float2*>(out_of(work, row) + 8 * j) = {0, 0};
    }
  }

  // Each warp's products read their own rows, so each warp releases.
  __device__ __forceinline__ void release(std::uint64_t* barrier) const {
    __syncwarp();
    if (lane_ == 0) barrier_arrive(barrier);
  }
  __device__ __forceinline__ void release_keys() {
    release(&shared_.k_free[k_.index()]);
    k_.next();
  }
  __device__ __forceinline__ void take_turn() const { named_sync(1 + warpgroup_, 2 * kWarpgroup); }
  __device__ __forceinline__ void give_turn() const { named_arrive(1 + (warpgroup_ + 1) % Tiles::kConsumers, 2 * kWarpgroup); }

  Shared<Tiles>& shared_;
  const Arguments& arguments_;
  const int warpgroup_, lane_, row_;
  const std::uint64_t q_;
  Position k_;
  Softmax<kScores> softmax_;
  float out_[kOuts];
  std::uint32_t weights_[kScores / 2];
};

}  // namespace periplus::kernels::cuda::hopper::forward
