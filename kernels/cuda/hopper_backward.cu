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
#include <cmath>

#include "kernels/cuda/hopper_schedule.cuh"
#include "kernels/cuda/rungs.h"
#include "kernels/cuda/tensor_map.h"
#include "runtime/cuda/check.h"
#include "runtime/cuda/device.h"

namespace periplus::kernels::cuda::hopper {
namespace {

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
    if (work.index < 0) return end_of_items(arguments.schedule.counters);
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
        shared.lse[stage.index()][i] = lse == -INFINITY ? INFINITY : lse * kLog2e;
        shared.delta[stage.index()][i] = delta;
      }
      barrier_arrive(&shared.q_full[stage.index()]);
      stage.next();
    }
  }
}

__device__ inline std::int32_t load_acquire(const std::int32_t* address) {
  std::int32_t value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
__device__ inline void store_release(std::int32_t* address, std::int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
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

/// The warpgroup's 64 keys of the block's items.
template <class Tiles>
class Consumer {
 public:
  using T = typename Tiles::T;
  __device__ __forceinline__ Consumer(Shared<Tiles>& shared, const Arguments& arguments, int warpgroup)
      : shared_(shared),
        arguments_(arguments),
        warpgroup_(warpgroup),
        lane_(static_cast<int>(threadIdx.x) % 32),
        row_(static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16 + lane_ / 4) {}

  __device__ __forceinline__ void run() {
    int parity = 0;
    for (;;) {
      const Work& work = receive_item(shared_, parity, lane_ == 0);
      if (work.index < 0) return;
#pragma unroll
      for (int i = 0; i < kSums; ++i) dk_[i] = dv_[i] = 0;
      barrier_wait(&shared_.kv_full, parity ^ 1);
      if (work.keys.columns > 0) {
        barrier_wait(&shared_.q_full[stage_.index()], stage_.parity());
        start_rows(scores_, shared_.k, shared_.q[stage_.index()]);
        products_wait<0>();
        hold(scores_);
#pragma unroll 1
        for (int step = 0; step < work.keys.columns; ++step) take_step(work, step);
      }
      release(&shared_.kv_free);
      store(work);
    }
  }

 private:
  static constexpr int kScores = Tiles::kScores, kSums = Tiles::kSums;

  /// S^T of this step is there when it starts, and that of the next when it ends. (Products that are under way across the
  /// end of a loop body make the compiler serialise all of them.)
  __device__ __forceinline__ void take_step(const Work& work, int step) {
    const Stage<Tiles::kStages> now = stage_;
    float slopes[kScores];
    barrier_wait(&shared_.dout_full[now.index()], now.parity());
    start_rows(slopes, shared_.v, shared_.dout[now.index()]);
    weigh(work, shared_.tile[now.index()], now.index());
    pack_into(weights_, scores_);
    start_sum(dv_, weights_, shared_.dout[now.index()]);
    products_wait<1>();
    hold(slopes);
    differentiate(slopes, now.index());
    pack_into(gradients_, scores_);
    std::byte* const exchange = shared_.scores[now.count % 2];
    write_scores(exchange);
    start_sum(dk_, gradients_, shared_.q[now.index()]);
    named_sync(1, 2 * kWarpgroup);  // both halves of dS are there; nobody reads the other buffer any more
    float dq[32];
    start_queries(dq, exchange);
    stage_.next();
    products_wait<1>();  // before the next product: its operands' registers are needed
    hold(dk_);
    hold(dv_);
    // After the last step too, of whatever lies there: a branch round products makes the compiler serialise all of them.
    if (step + 1 < work.keys.columns) barrier_wait(&shared_.q_full[stage_.index()], stage_.parity());
    start_rows(scores_, shared_.k, shared_.q[stage_.index()]);
    products_wait<1>();
    hold(dq);
    release(&shared_.q_free[now.index()]);
    release(&shared_.dout_free[now.index()]);
    write_sums(dq, Stage<2>{now.count});
    products_wait<0>();
    hold(scores_);
  }

  /// [64 keys][queries] = rows (k or v) times columns (q or dout), over the width.
  __device__ __forceinline__ void start_rows(float (&result)[kScores], const std::byte* rows, const std::byte* columns) {
    const std::uint64_t a = describe(shared_address(rows) + warpgroup_ * 64 * 128, 0), b = describe(shared_address(columns), 0);
    hold(result);
    products_begin();
#pragma unroll
    for (int step = 0; step < Tiles::kWidth / 16; ++step) {
      const int inside = step % 4 * 32;
      product<T, 0, 0>(result, advanced(a, step / 4 * Tiles::kKeyPanel + inside), advanced(b, step / 4 * Tiles::kQueryPanel + inside),
                       step > 0);
    }
    products_commit();
  }

  /// dk or dv += operand [64 keys][queries] times q or dout.
  __device__ __forceinline__ void start_sum(float (&sum)[kSums], std::uint32_t (&operand)[kScores / 2], const std::byte* rows) {
    const std::uint64_t b = describe(shared_address(rows), Tiles::kQueryPanel);
    hold(sum);
    hold(operand);
    products_begin();
#pragma unroll
    for (int step = 0; step < Tiles::kQueries / 16; ++step) {
      product<T, 1>(sum, operand + 4 * step, advanced(b, step * 2048), 1);
    }
    products_commit();
  }

  /// This warpgroup's half of dq = dS k: 64 queries of two panels, or 64 columns of two panels.
  __device__ __forceinline__ void start_queries(float (&dq)[32], const std::byte* exchange) {
    const int rows = Tiles::kScorePanels == 2 ? warpgroup_ * Tiles::kKeyPanel : 0,
              columns = Tiles::kPanels == 2 ? warpgroup_ * Tiles::kKeyPanel : 0;
    const std::uint64_t a = describe(shared_address(exchange) + rows, Tiles::kKeyPanel);
    const std::uint64_t b = describe(shared_address(shared_.k) + columns, Tiles::kKeyPanel);
    hold(dq);
    products_begin();
#pragma unroll
    for (int step = 0; step < Tiles::kKeys / 16; ++step) product<T, 1, 1>(dq, advanced(a, step * 2048), advanced(b, step * 2048), step > 0);
    products_commit();
  }

  __device__ __forceinline__ void weigh(const Work& work, const ColumnTile& tile, int stage) {
    const float* const lse = shared_.lse[stage] + lane_ % 4 * 2;
#pragma unroll
    for (int j = 0; j < kScores / 4; ++j) {
      const float2 reference = *reinterpret_cast<const float2*>(lse + 8 * j);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        scores_[4 * j + 2 * i] = exp2_fast(fmaf(scores_[4 * j + 2 * i], arguments_.factor, -reference.x));
        scores_[4 * j + 2 * i + 1] = exp2_fast(fmaf(scores_[4 * j + 2 * i + 1], arguments_.factor, -reference.y));
      }
    }
    if (tile.masks == 0) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int key = work.keys.begin + 64 * warpgroup_ + row_ + 8 * i;
      const std::uint32_t bits = allowed<queries_in>(tile, arguments_.schedule.masks, key, tile.begin + lane_ % 4 * 2);
#pragma unroll
      for (int j = 0; j < kScores / 4; ++j) {
        if ((bits >> (2 * j) & 1) == 0) scores_[4 * j + 2 * i] = 0;
        if ((bits >> (2 * j + 1) & 1) == 0) scores_[4 * j + 2 * i + 1] = 0;
      }
    }
  }

  /// dS = P (dP - delta), in place of P. With long query tiles there are no registers for P beside its operand form, and P is
  /// what the operand says: dS is rounded in the same way a moment later.
  __device__ __forceinline__ void differentiate(const float (&slopes)[kScores], int stage) {
    const float* const delta = shared_.delta[stage] + lane_ % 4 * 2;
#pragma unroll
    for (int j = 0; j < kScores / 4; ++j) {
      const float2 mean = *reinterpret_cast<const float2*>(delta + 8 * j);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = 4 * j + 2 * i;
        const float2 weights = Tiles::kQueries == 64 ? float2{scores_[at], scores_[at + 1]} : unpack<T>(weights_[at / 2]);
        scores_[at] = weights.x * (slopes[at] - mean.x);
        scores_[at + 1] = weights.y * (slopes[at + 1] - mean.y);
      }
    }
  }

  __device__ __forceinline__ static void pack_into(std::uint32_t (&packed)[kScores / 2], const float (&values)[kScores]) {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) packed[i] = pack<T>(values[2 * i], values[2 * i + 1]);
  }

  /// dS^T to its rows of the panels.
  __device__ __forceinline__ void write_scores(std::byte* exchange) const {
    const int matrix = lane_ / 8, key = 64 * warpgroup_ + row_ - lane_ / 4 + matrix % 2 * 8 + lane_ % 8;
    const std::uint32_t base = shared_address(exchange);
#pragma unroll
    for (int j = 0; j < kScores / 4; j += 2) {
      const std::uint32_t address = base + j / 8 * Tiles::kKeyPanel + swizzled(key, j % 8 + matrix / 2);
      store_matrices(address, gradients_[2 * j], gradients_[2 * j + 1], gradients_[2 * j + 2], gradients_[2 * j + 3]);
    }
    fence_async_proxy();
  }

  /// dq to its place in the panels that the adding thread sends off.
  __device__ __forceinline__ void write_sums(const float (&dq)[32], const Stage<2>& stage) {
    const int query = row_ + (Tiles::kScorePanels == 2 ? 64 * warpgroup_ : 0), first = Tiles::kPanels == 2 ? 2 * warpgroup_ : 0;
    barrier_wait(&shared_.sums_free[stage.index()], stage.parity() ^ 1);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int offset = (first + j / 4) * Tiles::kSumPanel + swizzled(query + 8 * i, j % 4 * 2 + lane_ % 4 / 2) + lane_ % 2 * 8;
        *reinterpret_cast<float2*>(shared_.sums[stage.index()] + offset) =
            float2{dq[4 * j + 2 * i] * arguments_.scale, dq[4 * j + 2 * i + 1] * arguments_.scale};
      }
    }
    fence_async_proxy();
    release(&shared_.sums_full[stage.index()]);
  }

  /// dk and dv, added up over the query heads that share the keys in the order of the heads.
  __device__ __forceinline__ void store(const Work& work) {
    const int member = work.head % arguments_.group;
    const bool first = member == 0, reached = work.keys.columns > 0;
    if (!reached && !(first && arguments_.overwrite_dkdv)) return;
    std::int32_t* const turn =
        &arguments_.schedule
             .row_turns[(work.kv_head * arguments_.schedule.row_tiles + work.keys.begin / Tiles::kKeys) * Tiles::kConsumers + warpgroup_];
    const bool shared_keys = reached && arguments_.group > 1;
    if (shared_keys && !first) {
      while (load_acquire(turn) != member) {
      }
    }
    const bool overwrite = first && arguments_.overwrite_dkdv;
    store_rows(work, arguments_.dk, dk_, arguments_.scale, arguments_.width_qk, overwrite);
    store_rows(work, arguments_.dv, dv_, 1, arguments_.width_v, overwrite);
    if (!shared_keys) return;
    __threadfence();
    named_sync(2 + warpgroup_, kWarpgroup);
    if (threadIdx.x % kWarpgroup == 0) store_release(turn, member + 1 == arguments_.group ? 0 : member + 1);
  }

  __device__ __forceinline__ void store_rows(const Work& work, const Strided<float>& to, const float (&sum)[kSums], float factor, int width,
                                             bool overwrite) const {
    const int columns = width - lane_ % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = 64 * warpgroup_ + row_ + 8 * i;
      if (row >= work.keys.count) continue;
      float* const target = to.data + (work.keys.begin + row) * to.row + work.kv_head * to.head + lane_ % 4 * 2;
      float2 old[kSums / 4];  // all loads before the first store: the compiler cannot know that they do not meet
#pragma unroll
      for (int j = 0; j < kSums / 4; ++j) {
        // Another block may have written it: past the first-level cache.
        old[j] = !overwrite && 8 * j < columns ? __ldcg(reinterpret_cast<const float2*>(target + 8 * j)) : float2{0, 0};
      }
#pragma unroll
      for (int j = 0; j < kSums / 4; ++j) {
        const float2 result = work.keys.columns == 0 ? float2{0, 0} : float2{sum[4 * j + 2 * i] * factor, sum[4 * j + 2 * i + 1] * factor};
        if (8 * j < columns) *reinterpret_cast<float2*>(target + 8 * j) = {old[j].x + result.x, old[j].y + result.y};
      }
    }
  }

  __device__ __forceinline__ void release(std::uint64_t* barrier) const {
    __syncwarp();
    if (lane_ == 0) barrier_arrive(barrier);
  }

  Shared<Tiles>& shared_;
  const Arguments& arguments_;
  const int warpgroup_, lane_, row_;
  Stage<Tiles::kStages> stage_;
  float scores_[kScores], dk_[kSums], dv_[kSums];
  std::uint32_t weights_[kScores / 2], gradients_[kScores / 2];
};

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
  const auto f32 = [](const auto& view) { return Strided{view.template data<float>(), view.stride(0), view.stride(1)}; };
  Arguments arguments{};
  arguments.q = encode(plan_boxes(call.block.q, Tiles::kQueries));
  arguments.k = encode(plan_boxes(call.block.k, Tiles::kKeys));
  arguments.v = encode(plan_boxes(call.block.v, Tiles::kKeys));
  arguments.dout = encode(plan_boxes(call.dout, Tiles::kQueries));
  arguments.dq = encode(plan_boxes(gradients.dq, Tiles::kQueries));
  const ScheduleTiles tiles{Tiles::kKeys, Tiles::kQueries, true};
  arguments.schedule = resident_schedule(call.block.bands, RowAxis::key, shape.query_rows, shape.key_rows, tiles, shape.heads, stream,
                                         shape.kv_heads * Tiles::kConsumers);
  arguments.group = static_cast<int>(shape.heads / shape.kv_heads);
  // What passes by the key tiles of a head: q and dout, and the sums of dq in f32.
  const std::int64_t bytes = shape.query_rows * (2 * (shape.width_qk + shape.width_v) + 4 * shape.width_qk);
  const bool all_rows = gradients.update_dkdv == Update::overwrite;
  arguments.order = {static_cast<int>(shape.heads), heads_per_group(shape.heads, bytes, device.l2_bytes),
                     all_rows ? arguments.schedule.row_tiles : arguments.schedule.reached_rows};
  arguments.lse = f32(call.lse);
  arguments.delta = f32(call.delta);
  arguments.dq_rows = f32(gradients.dq);
  arguments.dk = f32(gradients.dk);
  arguments.dv = f32(gradients.dv);
  arguments.scale = static_cast<float>(call.block.scale);
  arguments.factor = arguments.scale * kLog2e;
  arguments.query_rows = static_cast<int>(shape.query_rows);
  arguments.width_qk = static_cast<int>(shape.width_qk);
  arguments.width_v = static_cast<int>(shape.width_v);
  arguments.overwrite_dq = gradients.update_dq == Update::overwrite;
  arguments.overwrite_dkdv = gradients.update_dkdv == Update::overwrite;
  constexpr int kShared = sizeof(Shared<Tiles>);
  static_assert(kShared <= 227 * 1024);
  periplus::cuda::check(cudaFuncSetAttribute(hopper_backward<Tiles>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
                        "cudaFuncSetAttribute for hopper_backward");
  // At least one block, for the query tiles that no key reaches.
  const int blocks = std::clamp(device.multiprocessors - reserved_multiprocessors(), 1, std::max(1, arguments.order.items()));
  hopper_backward<Tiles><<<blocks, Tiles::kThreads, kShared, static_cast<cudaStream_t>(stream.native())>>>(arguments);
  periplus::cuda::check(cudaGetLastError(), "launch of hopper_backward");
}

template <class T>
void launch_width(const BackwardCall& call, StreamView stream) {
  if (std::max(call.shape.width_qk, call.shape.width_v) <= 64) return launch<Tiles<T, 64>>(call, stream);
  launch<Tiles<T, 128>>(call, stream);
}

}  // namespace

bool supports(const BackwardCall& call) {
  const AttentionShape& shape = call.shape;
  const DType dtype = call.block.q.dtype();
  if (dtype != DType::bf16 && dtype != DType::f16) return false;
  if (shape.width_qk > 128 || shape.width_v > 128 || shape.width_qk % 2 != 0 || shape.width_v % 2 != 0) return false;
  if (call.block.softcap != 0 || !(call.block.scale > 0)) return false;
  const ConstTensorView boxes[] = {call.block.q, call.block.k, call.block.v, call.dout, call.gradients.dq};
  if (!std::ranges::all_of(boxes, [](const ConstTensorView& view) { return box_refusal(view).empty(); })) return false;
  return pairs_aligned(call.gradients.dk) && pairs_aligned(call.gradients.dv);
}

void attend_backward(const BackwardCall& call, StreamView stream) {
  call.block.q.dtype() == DType::bf16 ? launch_width<__nv_bfloat16>(call, stream) : launch_width<__half>(call, stream);
}

}  // namespace periplus::kernels::cuda::hopper
