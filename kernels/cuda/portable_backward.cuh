#pragma once

#include "kernels/cuda/band_mask.cuh"
#include "kernels/cuda/portable.cuh"
#include "kernels/cuda/shared_tile.cuh"
#include "kernels/cuda/tables.h"
#include "kernels/cuda/turns.cuh"

/// What one thread of the backward kernel holds and does.
namespace periplus::kernels::cuda::portable {

/// Extents of a tile of scores, transposed: rows are keys, 16 to a warp, columns queries. `parts`: the columns of dq, dk and dv
/// are cut in as many, each by a block of its own that works out all scores again, because dk and dv of a warp's keys must
/// stay in its registers.
template <int head_width, int keys, int queries>
struct BackwardTiles {
  static constexpr int kWidth = head_width, kKeys = keys, kQueries = queries;
  static constexpr int kParts = head_width > 128 ? 2 : 1;
  static constexpr int kPartWidth = head_width / kParts;
  static constexpr int kWarps = keys / 16, kThreads = kWarps * 32;
};

/// What a block does for one work item. In shared memory, for want of registers.
struct Work {
  RowTile rows;
  int kv, part, first_head, steps;  ///< A step is a query head and a tile of its queries.
};
__device__ __forceinline__ Work work_of(const WorkOrder::Item& item, const ResidentSchedule& schedule, int group, int parts) {
  const RowTile rows = schedule.rows[item.row_tile];
  const int kv = item.head / parts;
  return {rows, kv, item.head % parts, kv * group, group * rows.columns};
}

/// By one thread of each warp. What the block that had the turn before stored is seen afterwards.
__device__ __forceinline__ void wait_for_turn(const std::int32_t* counter, int turn) {
  while (load_acquire(counter) != turn) __nanosleep(32);
}
/// By one thread, after a barrier behind all stores of the block's turn.
__device__ __forceinline__ void pass_turn(std::int32_t* counter, int next) {
  __threadfence();
  store_release(counter, next);
}

/// What a thread holds for keys g and g + 8 of its warp's 16 (mma.cuh).
template <class T, class Tiles>
struct Backward {
  using Problem = BackwardProblem<T, float>;
  static constexpr int kQueries = Tiles::kQueries, kWidth = Tiles::kWidth, kThreads = Tiles::kThreads;
  static constexpr int kScores = kQueries / 8;
  static constexpr int kSums = Tiles::kPartWidth / 8;
  /// dq: a warp has 16 queries and this many columns.
  static constexpr int kQueryWarps = kQueries / 16;
  static constexpr int kQuerySums = Tiles::kPartWidth / (Tiles::kWarps / kQueryWarps) / 8;
  static_assert(Tiles::kWarps % kQueryWarps == 0 && kQuerySums % 2 == 0 && kThreads >= kQueries);
  using KeyTile = SharedTile<T, Tiles::kKeys, kWidth>;
  using QueryTile = SharedTile<T, kQueries, kWidth>;
  using ScoreTile = SharedTile<T, Tiles::kKeys, kQueries>;

  /// Of the queries in one buffer.
  struct Scalars {
    float lse[kQueries], delta[kQueries];  ///< lse in units of log2; infinite for rows that contribute nothing
  };
  struct Shared {
    alignas(128) unsigned char keys[KeyTile::kBytes], values[KeyTile::kBytes];
    unsigned char queries[2][QueryTile::kBytes], douts[2][QueryTile::kBytes], slopes[ScoreTile::kBytes];
    Scalars scalars[2];
    std::uint32_t key_marks[4], query_marks[2][2];  ///< Rows of operands that are not finite; zero between uses.
    int next;
    Work work;
  };
  static __device__ __forceinline__ KeyTile keys(Shared& s) { return {shared_address(s.keys)}; }
  static __device__ __forceinline__ KeyTile values(Shared& s) { return {shared_address(s.values)}; }
  static __device__ __forceinline__ QueryTile queries(Shared& s, int buffer) { return {shared_address(s.queries[buffer])}; }
  static __device__ __forceinline__ QueryTile douts(Shared& s, int buffer) { return {shared_address(s.douts[buffer])}; }
  static __device__ __forceinline__ ScoreTile slope_tile(Shared& s) { return {shared_address(s.slopes)}; }

  /// Of this block's part of dq, dk and dv.
  static __device__ __forceinline__ int first_column(const Shared& s) { return Tiles::kParts == 1 ? 0 : s.work.part * Tiles::kPartWidth; }

  /// What a tile of scores needs besides products. `careful`: some pairs are hidden; `spoilt`: or not finite.
  struct Care {
    bool careful, spoilt;
  };

  float dk[kSums][4], dv[kSums][4];
  float scores[kScores][4];  ///< Products, then weights, then gradients.
  /// Rounded: [0] of key g, [1] of key g + 8.
  std::uint32_t weights[kScores][2], slopes[kScores][2];
  bool spoilt_keys;

  static __device__ __forceinline__ int lane() { return lane_afresh(); }
  static __device__ __forceinline__ int warp() { return warp_afresh(); }
  static __device__ __forceinline__ int key_of(int half) { return warp() * 16 + half * 8 + lane() / 4; }
  static __device__ __forceinline__ int column_of(int fragment) { return fragment * 8 + lane() % 4 * 2; }

  template <int count>
  static __device__ __forceinline__ void clear(float (&sums)[count][4]) {
#pragma unroll
    for (int n = 0; n < count; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = 0;
    }
  }

  /// visit(fragment, element)
  template <class Visit>
  static __device__ __forceinline__ void for_each_score(const Visit& visit) {
#pragma unroll
    for (int n = 0; n < kScores; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) visit(n, i);
    }
  }

  /// to := rows of `a` (this warp's keys) times rows of `b` (queries).
  static __device__ __forceinline__ void multiply_rows(float (&to)[kScores][4], const KeyTile& a, const QueryTile& b) {
    clear(to);
    const int thread = lane();
#pragma unroll
    for (int k = 0; k < kWidth / 16; ++k) {
      const FragmentA left = a.a_by_rows(warp() * 16, k, thread);
#pragma unroll
      for (int n = 0; n < kScores; n += 2) {
        std::uint32_t right[4];
        b.b_by_rows(right, n * 8, k, thread);
        Numbers<T>::multiply(to[n], left, right[0], right[1]);
        Numbers<T>::multiply(to[n + 1], left, right[2], right[3]);
      }
    }
  }

  /// sums += the rounded matrix of this warp's keys by queries, times columns of `b` from `column` on.
  static __device__ __forceinline__ void add_product(float (&sums)[kSums][4], const std::uint32_t (&by)[kScores][2], const QueryTile& b,
                                                     int column) {
    const int thread = lane();
#pragma unroll
    for (int k = 0; k < kScores / 2; ++k) {
      const FragmentA left{{by[2 * k][0], by[2 * k][1], by[2 * k + 1][0], by[2 * k + 1][1]}};
#pragma unroll
      for (int n = 0; n < kSums; n += 2) {
        std::uint32_t right[4];
        b.b_by_columns(right, column + n * 8, k, thread);
        Numbers<T>::multiply(sums[n], left, right[0], right[1]);
        Numbers<T>::multiply(sums[n + 1], left, right[2], right[3]);
      }
    }
  }

  static __device__ __forceinline__ void copy_keys(Shared& s, const Problem& p, const RowTile& rows, int kv) {
    keys(s).template copy_in<kThreads>(at(p.k, rows.begin, kv), static_cast<int>(p.k.row), rows.count, static_cast<int>(p.shape.width_qk));
    values(s).template copy_in<kThreads>(at(p.v, rows.begin, kv), static_cast<int>(p.v.row), rows.count, static_cast<int>(p.shape.width_v));
  }
  static __device__ __forceinline__ void copy_queries(Shared& s, int buffer, const Problem& p, const ColumnTile& columns, int head) {
    const int count = min(columns.count, static_cast<int>(p.shape.query_rows) - columns.begin);  // the last tile may hang over
    queries(s, buffer).template copy_in<kThreads>(at(p.q, columns.begin, head), static_cast<int>(p.q.row), count,
                                                  static_cast<int>(p.shape.width_qk));
    douts(s, buffer).template copy_in<kThreads>(at(p.dout, columns.begin, head), static_cast<int>(p.dout.row), count,
                                                static_cast<int>(p.shape.width_v));
    const int row = static_cast<int>(threadIdx.x);
    if (row < kQueries) {
      copy_4_or_zero(shared_address(s.scalars[buffer].lse + row), at(p.lse, columns.begin + row, head), row < count);
      copy_4_or_zero(shared_address(s.scalars[buffer].delta + row), at(p.delta, columns.begin + row, head), row < count);
    }
    commit_copies();
  }

  /// Ends with a barrier, after which all may read what has arrived. Hidden pairs have weight zero, but zero times an infinity
  /// or a NaN is no zero: where pairs are hidden, operands that are not finite are taken out and their rows noted.
  __device__ __forceinline__ Care receive(Shared& s, int buffer, bool masked, bool first) {
    wait_copies<0>();
    bool empty = false;
    if (threadIdx.x < kQueries) {
      float& lse = s.scalars[buffer].lse[threadIdx.x];
      empty = lse == kEmpty<float>;
      lse = empty ? -kEmpty<float> : lse * kLog2E;
    }
    const auto take_out = [&] {
      const bool q = queries(s, buffer).template remove_non_finite<kThreads>(s.query_marks[buffer]);
      const bool d = douts(s, buffer).template remove_non_finite<kThreads>(s.query_marks[buffer]);
      return q || d;
    };
    bool of_queries = masked && take_out();
    const bool of_keys = first && keys(s).template remove_non_finite<kThreads>(s.key_marks);
    if (first) spoilt_keys = false;
    if (!__syncthreads_or(empty || of_queries || of_keys)) return {masked || spoilt_keys, spoilt_keys};
    const bool empties = __syncthreads_or(empty);
    if (first) spoilt_keys = __syncthreads_or(of_keys);
    if (empties && !masked) of_queries = take_out();
    const bool spoilt = __syncthreads_or(of_queries) || spoilt_keys;
    return {masked || empties || spoilt, spoilt};
  }

  /// Bit 2n + i of [half]: the pair of key `half` and column 8n + i is allowed; an operand of it was taken out.
  static __device__ __forceinline__ void find_allowed(const Shared& s, int buffer, const Care& care, const ColumnTile& columns,
                                                      const MaskBand* masks, std::uint32_t (&allowed)[2], std::uint32_t (&spoilt)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = key_of(half);
      if (columns.masks > 0) {
        allowed[half] =
            allowed_bits<RowAxis::key>(masks + columns.first_mask, columns.masks, s.work.rows.begin + key, columns.begin + column_of(0));
      }
      if (care.spoilt) {
        const bool marked = (s.key_marks[key / 32] >> key % 32 & 1u) != 0;
        spoilt[half] = marked ? ~0u : marked_bits<kScores>(s.query_marks[buffer], column_of(0));
      }
    }
  }

  /// Products become scores under a cap, in units of log2.
  __device__ __forceinline__ void cap(const Scaling& by) {
    for_each_score([&](int n, int i) { scores[n][i] = by.outer * tanh_fast(by.inner * scores[n][i]); });
  }
  __device__ __forceinline__ void weigh(const Scaling& by, const Scalars& scalars) {
#pragma unroll
    for (int n = 0; n < kScores; ++n) {
      const float2 lse = *reinterpret_cast<const float2*>(scalars.lse + column_of(n));
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] = exp2_fast(fmaf(scores[n][i], by.factor, i % 2 == 0 ? -lse.x : -lse.y));
    }
  }
  /// Hidden pairs weigh nothing; pairs that an operand was taken from become NaN.
  __device__ __forceinline__ void hide(const std::uint32_t (&allowed)[2], const std::uint32_t (&spoilt)[2]) {
    for_each_score([&](int n, int i) {
      const int bit = 2 * n + i % 2;
      if (spoilt[i / 2] >> bit & 1u) scores[n][i] = __int_as_float(0x7fffffff);
      if ((allowed[i / 2] >> bit & 1u) == 0) scores[n][i] = 0;
    });
  }
  __device__ __forceinline__ void round_scores(std::uint32_t (&to)[kScores][2]) const {
#pragma unroll
    for (int n = 0; n < kScores; ++n) {
      to[n][0] = Numbers<T>::pack(scores[n][0], scores[n][1]);
      to[n][1] = Numbers<T>::pack(scores[n][2], scores[n][3]);
    }
  }
  /// Gradients of capped scores become those of uncapped ones, given the products.
  __device__ __forceinline__ void uncap(const Scaling& by, const float (&products)[kScores][4]) {
    for_each_score([&](int n, int i) {
      const float ratio = tanh_fast(by.inner * products[n][i]);
      scores[n][i] *= 1 - ratio * ratio;
    });
  }

  /// Weights become gradients of the scores. With care a weight of zero hides what its value gradient may be.
  template <bool careful>
  __device__ __forceinline__ void differentiate(const float (&dweights)[kScores][4], const Scalars& scalars) {
#pragma unroll
    for (int n = 0; n < kScores; ++n) {
      const float2 delta = *reinterpret_cast<const float2*>(scalars.delta + column_of(n));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float slope = scores[n][i] * (dweights[n][i] - (i % 2 == 0 ? delta.x : delta.y));
        scores[n][i] = careful && scores[n][i] == 0 ? 0 : slope;
      }
    }
  }

  /// For the product with keys, which sums over the keys of all warps.
  __device__ __forceinline__ void put_slopes(const ScoreTile& tile) const {
#pragma unroll
    for (int n = 0; n < kScores; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) tile.put(key_of(half), column_of(n), slopes[n][half]);
    }
  }

  /// Adds this tile's share of dq, columns of `part` only, when the turn has come.
  static __device__ __forceinline__ void add_query_gradient(Shared& s, const Problem& p, const ColumnTile& columns, int head,
                                                            const std::int32_t* counter) {
    const int thread = lane(), first_query = warp() % kQueryWarps * 16,
              first_column = Backward::first_column(s) + warp() / kQueryWarps * kQuerySums * 8;
    float sums[kQuerySums][4];
    clear(sums);
#pragma unroll
    for (int k = 0; k < Tiles::kKeys / 16; ++k) {
      const FragmentA left = slope_tile(s).a_by_columns(first_query, k, thread);
#pragma unroll
      for (int n = 0; n < kQuerySums; n += 2) {
        std::uint32_t right[4];
        keys(s).b_by_columns(right, first_column + n * 8, k, thread);
        Numbers<T>::multiply(sums[n], left, right[0], right[1]);
        Numbers<T>::multiply(sums[n + 1], left, right[2], right[3]);
      }
    }
    if (thread == 0) wait_for_turn(counter, columns.turn);
    __syncwarp();
    const bool adds = columns.turn > 0 || !p.overwrite_dq;
    const auto scale = static_cast<float>(p.scale);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = columns.begin + first_query + half * 8 + thread / 4;
      float* const to = at(p.dq, query, head) + first_column + thread % 4 * 2;
      add_row(sums, half, scale, query < p.shape.query_rows, adds, to, static_cast<int>(p.shape.width_qk) - first_column);
    }
  }

  /// to := or += factor times the upper or lower rows of the fragments. Loads come first: one wait for all.
  template <int count>
  static __device__ __forceinline__ void add_row(const float (&sums)[count][4], int half, float factor, bool inside, bool adds, float* to,
                                                 int width) {
    float2 old[count];
#pragma unroll
    for (int n = 0; n < count; ++n) old[n] = load_if(adds && inside && 8 * n < width, to + 8 * n);
#pragma unroll
    for (int n = 0; n < count; ++n) {
      store_if(inside && 8 * n < width, to + 8 * n, fmaf(factor, sums[n][2 * half], old[n].x),
               fmaf(factor, sums[n][2 * half + 1], old[n].y));
    }
  }

  __device__ __forceinline__ void store_key_gradients(const Problem& p, const RowTile& rows, int kv, int part) const {
    const int first_column = part * Tiles::kPartWidth;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = key_of(half), key = rows.begin + row, column = first_column + column_of(0);
      add_row(dk, half, static_cast<float>(p.scale), row < rows.count, !p.overwrite_dkdv, at(p.dk, key, kv) + column,
              static_cast<int>(p.shape.width_qk) - first_column);
      add_row(dv, half, 1.0f, row < rows.count, !p.overwrite_dkdv, at(p.dv, key, kv) + column,
              static_cast<int>(p.shape.width_v) - first_column);
    }
  }
};

}  // namespace periplus::kernels::cuda::portable
