// A consumer warpgroup of the backward kernel: the mathematics.
#pragma once

#include <cmath>

#include "kernels/cuda/band_mask.cuh"
#include "kernels/cuda/hopper_backward_parts.cuh"

namespace periplus::kernels::cuda::hopper::backward {

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
      const std::uint32_t bits = allowed_bits<RowAxis::key>(tile, arguments_.schedule.masks, key, tile.begin + lane_ % 4 * 2);
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

}  // namespace periplus::kernels::cuda::hopper::backward
