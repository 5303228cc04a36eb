// The consumer warpgroups of the linear attention kernel: the mathematics.
#pragma once

#include "kernels/cuda/hopper_linear_state.cuh"
#include "kernels/cuda/hopper_linear_supply.cuh"

namespace periplus::kernels::cuda::hopper::linear {

/// One walk's results in some blocks of 64 columns, for which a warpgroup has the state S^T, a row for each column of v, in registers:
/// rounded, it is the operand of
///   out^T = exp(g) S^T q^T + v^T P^T,    S^T := exp(g_C) S^T + (exp(g_C - g) v)^T k
/// It makes the scores P for itself, so that warpgroups need not wait for each other.
template <class T, int groups, bool notes>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(Shared<groups, notes>& shared, const WalkSet<T, groups>& set, const Place<groups == 2>& place,
                                      int warpgroup)
      : shared_(shared),
        walk_(set.walk[groups == 1 ? 0 : warpgroup]),
        place_(place),
        warpgroup_(warpgroup),
        log2_scale_(log2_fast(walk_.scale_out)),
        state_(walk_, place, warpgroup) {}

  __device__ __forceinline__ void run() {
    // Of two walks one notes dots and the other one meets states, so that neither waits for the other.
    const bool dots = notes && (groups == 1 || warpgroup_ == 1), states = notes && (groups == 1 || warpgroup_ == 0);
    const int steps = place_.steps();
    state_.load();
    float scores[kOuts];
    if constexpr (kBlocks == 1) make_scores(scores);
    for (int step = 0; step < steps; ++step, stage_.next()) {
      const int number = place_.segment.chunk0 + place_.chunk_of(step);
      const bool is_last = step + 1 == steps, starts_block = states && number > 0 && number % kBlockChunks == 0;
      if constexpr (kBlocks == 1) {
        if (starts_block) state_.note(number / kBlockChunks - 1);
        take_chunk_ahead(step, is_last, dots, scores);
        if (states && is_last && place_.segment.ends != 0) state_.meet_outgoing(number / kBlockChunks);
      } else {
        take_chunk(step, dots);
        if (starts_block) state_.meet(number / kBlockChunks - 1);
      }
    }
  }

 private:
  static constexpr int kBlocks = State<T, groups>::kBlocks, kNumbers = State<T, groups>::kNumbers, kOuts = kRows / 2;
  static constexpr bool kReverse = groups == 2;
  using Packed = std::uint32_t[kOuts / 2];
  using Position = Stage<Shared<groups, notes>::kStages>;

  __device__ __forceinline__ int group() const { return groups == 1 ? 0 : warpgroup_; }
  __device__ __forceinline__ int block_of(int block) const { return state_.block_of(block); }
  __device__ __forceinline__ std::byte* tile(int which) const { return shared_.tile[stage_.index()][which]; }
  __device__ __forceinline__ std::byte* k() const { return tile(group()); }
  __device__ __forceinline__ std::byte* v() const { return tile(1 - group()); }
  __device__ __forceinline__ std::byte* q() const { return tile(2 + group()); }
  __device__ __forceinline__ std::byte* partner() const { return tile(groups == 1 ? 3 : 2); }
  __device__ __forceinline__ const float* sums() const { return shared_.sums[stage_.index()]; }
  __device__ __forceinline__ void meet() const { named_sync(1 + warpgroup_, kWarpgroup); }
  __device__ __forceinline__ void await(const Position& stage) const { barrier_wait(&shared_.full[stage.index()], stage.parity()); }

  /// The next chunk's scores are made while this one's results are stored, and the state is read while scores are weighed.
  __device__ __forceinline__ void take_chunk_ahead(int step, bool is_last, bool takes_dots, float (&scores)[kOuts]) {
    float out[kOuts], dots[2] = {0, 0};
    std::uint32_t values[kOuts / 2];
    Packed results;
    start_reading(0, out);
    put_scores(scores);
    decayed_values(0, values);
    products_wait<0>();
    grow(out);
    start_products(0, out, values);
    Position next = stage_;
    if (!is_last) {
      next.next();
      await(next);
    }
    start_scores(next, scores);  // behind the last chunk once more, as a product must not depend on a condition
    products_wait<2>();
    hold(out);
    if (takes_dots) add_dots(0, out, dots);
    round(out, results);
    put_results(0, results);
    hand_out(step, takes_dots, dots);
    products_wait<0>();
    hold(state_.numbers[0]);
    hold(scores);
    release();
  }
  /// With all columns of the state, which leave no registers for that.
  __device__ __forceinline__ void take_chunk(int step, bool takes_dots) {
    float out[kOuts], dots[2] = {0, 0};
    Packed results;
    {
      float scores[kOuts];
      make_scores(scores);
      put_scores(scores);
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      std::uint32_t values[kOuts / 2];
      start_reading(block, out);
      products_wait<0>();
      if (block > 0) put_results(block - 1, results);  // to where all blocks' queries were
      grow(out);
      decayed_values(block, values);
      start_products(block, out, values);
      products_wait<0>();
      hold(state_.numbers[block]);
      hold(out);
      if (takes_dots) add_dots(block, out, dots);
      round(out, results);
    }
    put_results(kBlocks - 1, results);
    hand_out(step, takes_dots, dots);
    release();
  }

  __device__ __forceinline__ static void round(const float (&out)[kOuts], Packed& results) {
#pragma unroll
    for (int i = 0; i < kOuts / 2; ++i) results[i] = pack<T>(out[2 * i], out[2 * i + 1]);
  }
  /// Once all warps have put their results where others find them.
  __device__ __forceinline__ void hand_out(int step, bool takes_dots, const float (&dots)[2]) const {
    if (takes_dots) *reinterpret_cast<float2*>(dot_of_warp(warp(), 2 * lane())) = {dots[0], dots[1]};
    meet();
    store_results(step);
    if (takes_dots) store_dots(step);
  }
  __device__ __forceinline__ void release() const {
    __syncwarp();
    if (lane() == 0) barrier_arrive(&shared_.free[stage_.index()]);
  }

  __device__ __forceinline__ void make_scores(float (&scores)[kOuts]) const {
    await(stage_);
    start_scores(stage_, scores);
    products_wait<0>();
    hold(scores);
  }
  __device__ __forceinline__ void start_scores(const Position& stage, float (&scores)[kOuts]) const {
    const auto& tiles = shared_.tile[stage.index()];
    const std::uint64_t from_q = describe(shared_address(tiles[2 + group()]), 0), from_k = describe(shared_address(tiles[group()]), 0);
    hold(scores);
    products_begin();
#pragma unroll
    for (int inner = 0; inner < kWidth / 16; ++inner) {
      const int offset = inner / 4 * kPanel + inner % 4 * 32;
      product<T, 0, 0>(scores, advanced(from_q, offset), advanced(from_k, offset), inner > 0);
    }
    products_commit();
  }

  /// P = scale exp(g_i - g_j) q k^T where the walk has been at j, to shared memory.
  __device__ __forceinline__ void put_scores(const float (&scores)[kOuts]) const {
    const int lane = linear::lane(), warp = linear::warp(), row = 16 * warp + lane / 4;
    const float at_row[2] = {sums()[row] + log2_scale_, sums()[row + 8] + log2_scale_};
    const std::uint32_t to = shared_address(shared_.scores[warpgroup_]) + swizzled(16 * warp + lane % 16, lane / 16);
    const int ahead = lane % 4 * 2 - row;  // of the first column
#pragma unroll
    for (int j = 0; j < kRows / 8; j += 2) {
      std::uint32_t word[4];
#pragma unroll
      for (int narrow = 0; narrow < 2; ++narrow) {
        const float2 at_column = *reinterpret_cast<const float2*>(sums() + 8 * (j + narrow) + lane % 4 * 2);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float* const score = scores + 4 * (j + narrow) + 2 * i;
          const int column = 8 * (j + narrow) - 8 * i + ahead;  // counted from the row
          const float first = exp2_fast(at_row[i] - at_column.x) * score[0], second = exp2_fast(at_row[i] - at_column.y) * score[1];
          word[2 * narrow + i] =
              pack<T>((kReverse ? column >= 0 : column <= 0) ? first : 0.0F, (kReverse ? column >= -1 : column <= -1) ? second : 0.0F);
        }
      }
      store_matrices(to ^ (j << 4), word[0], word[1], word[2], word[3]);
    }
    fence_async_proxy();
    meet();
  }

  /// out = S^T q^T
  __device__ __forceinline__ void start_reading(int block, float (&out)[kOuts]) const {
    const float(&state)[kNumbers] = state_.numbers[block];
    std::uint32_t operand[kNumbers / 2];
#pragma unroll
    for (int i = 0; i < kNumbers / 2; ++i) operand[i] = pack<T>(state[2 * i], state[2 * i + 1]);
    const std::uint64_t from_q = describe(shared_address(q()), 0);
    hold(operand);
    hold(out);
    products_begin();
#pragma unroll
    for (int inner = 0; inner < kWidth / 16; ++inner) {
      product<T, 0>(out, operand + 4 * inner, advanced(from_q, inner / 4 * kPanel + inner % 4 * 32), inner > 0);
    }
    products_commit();
  }

  /// out := scale exp(g) out
  __device__ __forceinline__ void grow(float (&out)[kOuts]) const {
    hold(out);
    const int lane = linear::lane();
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
      const float2 sum = *reinterpret_cast<const float2*>(sums() + 8 * j + lane % 4 * 2);
      const float grown[2] = {exp2_fast(sum.x + log2_scale_), exp2_fast(sum.y + log2_scale_)};
#pragma unroll
      for (int i = 0; i < 4; ++i) out[4 * j + i] *= grown[i % 2];
    }
  }

  /// Fragments of the transpose of a tile's 16 rows from 16 `inner` on and the warp's 16 of 64 columns: as the operand or the results of
  /// products whose rows are columns of the tile.
  __device__ __forceinline__ void load_transposed(std::uint32_t (&words)[4], const std::byte* tile, int block, int inner) const {
    const int lane = linear::lane(), warp = linear::warp();
    load_matrices_transposed(
        words, shared_address(tile) + block_of(block) * kPanel + swizzled(16 * inner + lane / 16 * 8 + lane % 8, 2 * warp + lane / 8 % 2));
  }

  /// exp(g_C - g) v, transposed.
  __device__ __forceinline__ void decayed_values(int block, std::uint32_t (&values)[kOuts / 2]) const {
    const int lane = linear::lane();
    const float* const sunk = shared_.sunk[stage_.index()];
#pragma unroll
    for (int inner = 0; inner < kRows / 16; ++inner) {
      std::uint32_t words[4];
      load_transposed(words, v(), block, inner);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 sunk_there = *reinterpret_cast<const float2*>(sunk + 16 * inner + 8 * half + lane % 4 * 2);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 pair = unpack<T>(words[2 * half + i]);
          values[4 * inner + 2 * half + i] = pack<T>(sunk_there.x * pair.x, sunk_there.y * pair.y);
        }
      }
    }
  }

  /// out += v^T P^T, then S^T := exp(g_C) S^T + values k
  __device__ __forceinline__ void start_products(int block, float (&out)[kOuts], std::uint32_t (&values)[kOuts / 2]) {
    float(&state)[kNumbers] = state_.numbers[block];
    const float kept = exp2_fast(sums()[kReverse ? 0 : kRows - 1]);
#pragma unroll
    for (float& number : state) number *= kept;
    const std::uint64_t from_v = describe(shared_address(v()) + block_of(block) * kPanel, 0);
    const std::uint64_t from_scores = describe(shared_address(shared_.scores[warpgroup_]), 0);
    const std::uint64_t from_k = describe(shared_address(k()), kPanel);
    hold(out);
    hold(state);
    hold(values);
    products_begin();
#pragma unroll
    for (int inner = 0; inner < kRows / 16; ++inner) {
      product<T, 1, 0>(out, advanced(from_v, inner * 2048), advanced(from_scores, inner * 32), 1);
    }
    products_commit();
#pragma unroll
    for (int inner = 0; inner < kRows / 16; ++inner) product<T, 1>(state, values + 4 * inner, advanced(from_k, inner * 2048), 1);
    products_commit();
  }

  /// Of the thread's columns, then of those of its warp: lane l gets the sums of rows 2 l and 2 l + 1.
  __device__ __forceinline__ void add_dots(int block, const float (&out)[kOuts], float (&dots)[2]) const {
    float sum[kRows / 4];  // rows 8 j + 2 (lane % 4) + {0, 1}
#pragma unroll
    for (int inner = 0; inner < kRows / 16; ++inner) {
      std::uint32_t words[4];
      load_transposed(words, partner(), block, inner);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 first = unpack<T>(words[2 * half]), second = unpack<T>(words[2 * half + 1]);
        const float* const results = out + 4 * (2 * inner + half);
        sum[4 * inner + 2 * half] = first.x * results[0] + second.x * results[2];
        sum[4 * inner + 2 * half + 1] = first.y * results[1] + second.y * results[3];
      }
    }
    halve<4>(sum);
    halve<2>(sum);
    halve<1>(sum);
    dots[0] += sum[0];
    dots[1] += sum[1];
  }
  /// The upper half of pairs is given to the lane `distance` quads away and the lower half taken from it, or the other way about.
  template <int distance>
  __device__ __forceinline__ void halve(float (&sum)[kRows / 4]) const {
    const int lane = linear::lane();
    const bool upper = (lane / 4 & distance) != 0;
#pragma unroll
    for (int i = 0; i < 2 * distance; ++i) {
      const float given = upper ? sum[i] : sum[i + 2 * distance], kept = upper ? sum[i + 2 * distance] : sum[i];
      sum[i] = kept + __shfl_xor_sync(0xFFFFFFFF, given, 4 * distance);
    }
  }

  /// A warp's dot of a row. Of two warpgroups with half of the columns each: where the warp alone has read the partner.
  __device__ __forceinline__ float* dot_of_warp(int warp, int row) const {
    if constexpr (groups == 2) return shared_.dots[warp] + row;
    return reinterpret_cast<float*>(partner() + warpgroup_ * kPanel + swizzled(row / 2, 2 * warp)) + row % 2;
  }
  __device__ __forceinline__ void store_dots(int step) const {
    const int row = thread();
    if (row >= place_.rows(step)) return;
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < 4; ++warp) sum += *dot_of_warp(warp, row);
    const int part = groups == 1 ? warpgroup_ : 0;
    walk_.decay_gradient.dots[(part * walk_.heads + place_.head) * walk_.decay_gradient.rows + place_.first_row(step) + row] = sum;
  }

  /// Where results wait to be stored. The second walk's queries are read by it alone, and no more.
  __device__ __forceinline__ std::byte* out_panel(int block) const { return (group() == 0 ? shared_.out : q()) + block_of(block) * kPanel; }
  __device__ __forceinline__ void put_results(int block, const Packed& results) const {
    const int lane = linear::lane(), warp = linear::warp();
    const std::uint32_t to = shared_address(out_panel(block));
#pragma unroll
    for (int j = 0; j < kRows / 8; j += 2) {
      const std::uint32_t* const word = results + 2 * j;
      store_matrices_transposed(to + swizzled(8 * (j + lane / 16) + lane % 8, 2 * warp + lane / 8 % 2), word[0], word[1], word[2], word[3]);
    }
  }
  __device__ __forceinline__ void store_results(int step) const {
    const int row = thread() / 8, chunk = thread() % 8, rows = place_.rows(step);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int column = 64 * block_of(block) + 8 * chunk;
      const std::uint32_t from = shared_address(out_panel(block)) + swizzled(row, chunk);
      T* to = at(walk_.out, place_.first_row(step) + row, place_.head) + column;
      uint4 words[kRows / 16];
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) words[i] = load_shared_16(from + i * 2048);
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i, to += 16 * walk_.out.row) {
        if (row + 16 * i < rows && column < walk_.width_v) *reinterpret_cast<uint4*>(to) = words[i];
      }
    }
  }

  Shared<groups, notes>& shared_;
  const Walk<T>& walk_;
  const Place<groups == 2>& place_;
  const int warpgroup_;
  const float log2_scale_;
  Position stage_;
  State<T, groups> state_;
};

}  // namespace periplus::kernels::cuda::hopper::linear
