// The consumer warpgroups of the forward kernel: the mathematics.
#pragma once

#include <cmath>

#include "kernels/cuda/band_mask.cuh"
#include "kernels/cuda/hopper_forward_supply.cuh"
#include "kernels/cuda/mma.cuh"

namespace periplus::kernels::cuda::hopper::forward {

/// References and sums of the weights of the two rows that a thread shares with the three others of its quad.
template <int N>
struct Softmax {
  float reference[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  /// Turns scores into weights 2^(factor score - reference) and says by what the weights so far shrink.
  __device__ __forceinline__ void absorb(float (&scores)[N], float factor, float (&shrink)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = scores[2 * i];
#pragma unroll
      for (int j = 0; j < N / 4; ++j) top = fmaxf(top, fmaxf(scores[4 * j + 2 * i], scores[4 * j + 2 * i + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, 2));
      shrink[i] = move_reference(reference[i], top * factor);
      const float origin = origin_of(reference[i]);
      float added = 0;
#pragma unroll
      for (int j = 0; j < N / 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[4 * j + 2 * i + c];
          score = exp2_fast(fmaf(score, factor, -origin));
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
        leads_(threadIdx.x % kWarpgroup == 0) {}

  __device__ __forceinline__ void run() {
    if (warpgroup_ == Tiles::kConsumers - 1) give_turn();  // to warpgroup 0
    await_item();
    for (bool begun = false;;) {
      const Work& work = shared_.work[q_.index()];
      if (work.index < 0) return;
      const Stage<2> q = q_;
      if (work.rows.columns > 0) {
        if (!begun) begin(work);
        continue_item(work);
        begun = end(work);
      } else {
        clear(work);
        q_.next();
        await_item();
        begun = false;
      }
      if (leads_) store_wait_read<0>();
      release(&shared_.q_free[q.index()]);
    }
  }

 private:
  static constexpr int kScores = Tiles::kScores, kOuts = Tiles::kOuts;
  using Position = Stage<Tiles::kStages>;

  __device__ __forceinline__ void await_item() const { barrier_wait(&shared_.q_full[q_.index()], q_.parity()); }

  /// The first weights of an item that follows none.
  __device__ __forceinline__ void begin(const Work& work) {
    float scores[kScores];
    barrier_wait(&shared_.k_full[k_.index()], k_.parity());
    start_scores(scores);
    products_wait<0>();
    first_weights(work, scores);
  }

  __device__ __forceinline__ void first_weights(const Work& work, float (&scores)[kScores]) {
    float shrink[2];
    hold(scores);
    apply_mask(scores, shared_.tile[k_.index()], work.rows.begin);
    release_keys();
    softmax_ = {};
    softmax_.absorb(scores, factor(), shrink);
    pack_weights(scores);
  }

  __device__ __forceinline__ void continue_item(const Work& work) {
    const RowTile& rows = work.rows;
    for (int i = 1; i < rows.columns; ++i) {
      float scores[kScores], shrink[2];
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
      softmax_.absorb(scores, factor(), shrink);
      products_wait<0>();
      hold(out_);
      release(&shared_.v_free[v.index()]);
      if (__any_sync(0xFFFFFFFF, shrink[0] != 1 || shrink[1] != 1)) {
#pragma unroll
        for (int j = 0; j < kOuts; ++j) out_[j] *= shrink[j / 2 % 2];
      }
      pack_weights(scores);
    }
  }

  /// The last product of an item, and with it the first of the next one, so that the tensor cores have work while the state is
  /// folded. True if the next item has its first weights then.
  __device__ __forceinline__ bool end(const Work& work) {
    const Position v = k_.before();
    const bool accumulate = work.rows.columns > 1;
    const OutPanels out = out_panels();
    float old_lse[2] = {-INFINITY, -INFINITY};
    meet();  // all warps are done with the queries, and what was stored before is read
    if (!arguments_.overwrite) load(work, out, old_lse);
    q_.next();
    await_item();
    const Work& next = shared_.work[q_.index()];
    const bool goes_on = next.index >= 0 && next.rows.columns > 0;
    barrier_wait(&shared_.v_full[v.index()], v.parity());
    if (goes_on) {
      float scores[kScores];
      barrier_wait(&shared_.k_full[k_.index()], k_.parity());
      start_out(v, accumulate);
      start_scores(scores);
      const Weights weights = weigh(work, old_lse);
      products_wait<1>();
      store(work, v, out, weights);
      products_wait<0>();
      first_weights(next, scores);
    } else {
      start_out(v, accumulate);
      const Weights weights = weigh(work, old_lse);
      products_wait<0>();
      store(work, v, out, weights);
    }
    return goes_on;
  }

  __device__ __forceinline__ void start_scores(float (&scores)[kScores]) {
    const std::uint64_t q = describe(shared_address(shared_.q[q_.index()]) + 64 * 128 * warpgroup_, 0);
    const std::uint64_t k = describe(shared_address(shared_.k[k_.index()]), 0);
    hold(scores);
    products_begin();
#pragma unroll
    for (int step = 0; step < Tiles::kWidth / 16; ++step) {
      const int inside = step % 4 * 32;
      product<T, 0, 0>(scores, advanced(q, step / 4 * Tiles::kQueryPanel + inside), advanced(k, step / 4 * Tiles::kKeyPanel + inside),
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
      const std::uint32_t bits =
          allowed_bits<RowAxis::query>(tile, arguments_.schedule.masks, first_row + row_ + 8 * i, tile.begin + lane_ % 4 * 2);
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
  __device__ __forceinline__ float factor() const { return arguments_.scale * kLog2E; }

  /// Where the warpgroup keeps its rows of out: once its last scores are there, its queries are not needed.
  struct OutPanels {
    std::byte *first, *second;
    __device__ __forceinline__ std::byte* operator[](int panel) const {
      constexpr int kHalf = Tiles::kOutPanels / 2;
      return panel < kHalf ? first + panel * Tiles::kQueryPanel : second + (panel - kHalf) * Tiles::kConsumers * Tiles::kOutPanel;
    }
  };
  __device__ __forceinline__ OutPanels out_panels() const {
    static_assert(Tiles::kOutPanels == 2 * Tiles::kPanels);
    return {shared_.q[q_.index()] + warpgroup_ * Tiles::kOutPanel, shared_.out[0][warpgroup_]};
  }
  /// Of the thread's elements 8 j + {0, 1} of row `row_` in a panel; the row 8 further lies 1,024 bytes on.
  __device__ __forceinline__ int out_offset(int j) const { return swizzled(row_ % 64, 2 * (j % 4) + lane_ % 4 / 2) + lane_ % 2 * 8; }
  template <class Copy>
  __device__ __forceinline__ void for_each_panel(const Copy& copy) const {
    for (int panel = 0; panel < Tiles::kOutPanels; ++panel) {
      if (32 * panel < arguments_.width_v) copy(panel);
    }
  }
  __device__ __forceinline__ void meet() const { named_sync(1 + Tiles::kConsumers + warpgroup_, kWarpgroup); }

  /// Sends for the old state, which comes while the last product is computed.
  __device__ __forceinline__ void load(const Work& work, const OutPanels& out, float (&lse)[2]) {
    std::uint64_t* const full = &shared_.out_full[warpgroup_];
    if (leads_) {
      barrier_arrive_expecting(full, (arguments_.width_v + 31) / 32 * Tiles::kOutPanel);
      for_each_panel([&](int i) { load_box(out[i], &arguments_.out, full, 32 * i, work.rows.begin + 64 * warpgroup_, work.head); });
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (row_ + 8 * i < work.rows.count) lse[i] = *lse_of(work, row_ + 8 * i);
    }
    __syncwarp();  // all of a quad have read lse
  }

  /// What the two rows' sums and their old state are multiplied with.
  struct Weights {
    float sums[2], old[2];
  };
  /// Works them out, and stores lse, while the last product is computed.
  __device__ __forceinline__ Weights weigh(const Work& work, const float (&old_lse)[2]) const {
    Weights weights;
    // In base 2, and without a branch, so that both rows' chains of operations run side by side.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = softmax_.sum[i];
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, 2);
      const bool empty = sum == 0;  // no key was allowed
      const float reference = softmax_.reference[i], old = old_lse[i] * kLog2E;
      const float value = reference + log2_fast(sum), top = fmaxf(old, value);
      const float total = origin_of(top) + log2_fast(1 + exp2_fast(fminf(old, value) - origin_of(top)));
      weights.sums[i] = exp2_fast(reference - total);
      weights.old[i] = empty ? 1 : exp2_fast(old - total);
      if (lane_ % 4 == 0 && row_ + 8 * i < work.rows.count) *lse_of(work, row_ + 8 * i) = empty ? old_lse[i] : total * kLn2;
    }
    return weights;
  }

  /// Once the last product is there: normalises, folds into the running state, and stores.
  __device__ __forceinline__ void store(const Work& work, const Position& v, const OutPanels& out, Weights weights) {
    hold(out_);
    release(&shared_.v_free[v.index()]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (weights.sums[i] != 0) continue;
      // It stands for nothing, also beside NaN; -0 changes no old bit.
      weights.sums[i] = 1;
#pragma unroll
      for (int j = 0; j < kOuts / 4; ++j) out_[4 * j + 2 * i] = out_[4 * j + 2 * i + 1] = arguments_.overwrite ? 0 : -0.0F;
    }
    if (!arguments_.overwrite) {
      barrier_wait(&shared_.out_full[warpgroup_], out_parity_);
      out_parity_ ^= 1;
    }
    fold(out, weights.sums, weights.old);
    fence_async_proxy();
    meet();
    if (work.rows.count < 64 * (warpgroup_ + 1)) {
      store_rows(work, out);
    } else if (leads_) {
      for_each_panel([&](int i) { store_box(&arguments_.out, out[i], 32 * i, work.rows.begin + 64 * warpgroup_, work.head); });
      store_commit();
    }
    __syncwarp();
  }

  __device__ __forceinline__ void fold(const OutPanels& out, const float (&weight)[2], const float (&old_weight)[2]) {
#pragma unroll
    for (int j = 0; j < kOuts / 4; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        auto& state = *reinterpret_cast<float2*>(out[j / 4] + out_offset(j) + 1024 * i);
        float x = out_[4 * j + 2 * i] * weight[i], y = out_[4 * j + 2 * i + 1] * weight[i];
        if (!arguments_.overwrite) x = fmaf(state.x, old_weight[i], x), y = fmaf(state.y, old_weight[i], y);
        state = {x, y};
      }
    }
  }

  /// Of a row tile that ends before the box: what lies behind belongs to another one. 16 threads take a row of a panel.
  __device__ __forceinline__ void store_rows(const Work& work, const OutPanels& out) const {
    const int thread = static_cast<int>(afresh(threadIdx.x) % kWarpgroup), column = thread % 16 * 2;
    const int rows = work.rows.count - 64 * warpgroup_;
#pragma unroll 1
    for (int row = thread / 16; row < rows; row += kWarpgroup / 16) {
      float* to = arguments_.out_rows.data + (work.rows.begin + 64 * warpgroup_ + row) * arguments_.out_rows.row +
                  work.head * arguments_.out_rows.head;
      const int from = swizzled(row, thread % 16 / 2) + thread % 2 * 8;
#pragma unroll 1
      for (int i = 0; 32 * i + column < arguments_.width_v; ++i) {
        *reinterpret_cast<float2*>(to + 32 * i + column) = *reinterpret_cast<const float2*>(out[i] + from);
      }
    }
  }

  /// Rows that no key reaches: the empty state.
  __device__ __forceinline__ void clear(const Work& work) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row_ + 8 * i;
      if (row >= work.rows.count) continue;
      if (lane_ % 4 == 0) *lse_of(work, row) = -INFINITY;
      float* const out =
          arguments_.out_rows.data + (work.rows.begin + row) * arguments_.out_rows.row + work.head * arguments_.out_rows.head;
      for (int column = lane_ % 4; column < arguments_.width_v; column += 4) out[column] = 0;
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
  const bool leads_;
  int out_parity_ = 0;
  Stage<2> q_;
  Position k_;
  Softmax<kScores> softmax_;
  float out_[kOuts];
  std::uint32_t weights_[kScores / 2];
};

}  // namespace periplus::kernels::cuda::hopper::forward
