// Attention for capability 8.0 and up: one block a tile of queries, which meets the tiles of keys one after another.
// Source: Dao, FlashAttention-2 (2023), section 3; Milakov & Gimelshein 2018 (online softmax).
#include "kernels/cuda/band_mask.cuh"
#include "kernels/cuda/portable.cuh"
#include "kernels/cuda/shared_tile.cuh"
#include "kernels/cuda/tables.h"

namespace periplus::kernels::cuda::portable {
namespace {

/// Rows and columns of a tile of scores, warps that share its rows, and blocks that should fit a multiprocessor. Tiles stay
/// below 99 KB, the shared memory of capabilities 8.6 and 8.9. A warp of 32 rows loads each fragment of keys and values for
/// two products; wider heads leave it registers for 16 only.
template <int width>
struct ForwardTiles {
  static constexpr int kRows = 128, kColumns = 64, kWarps = 4, kBlocks = 2;
};
template <>
struct ForwardTiles<64> {
  static constexpr int kRows = 128, kColumns = 64, kWarps = 4, kBlocks = 2;
};
template <>
struct ForwardTiles<192> {
  static constexpr int kRows = 128, kColumns = 64, kWarps = 8, kBlocks = 1;
};
template <>
struct ForwardTiles<256> {
  static constexpr int kRows = 64, kColumns = 64, kWarps = 4, kBlocks = 2;
};

/// What one thread of a warp holds, for rows g and g + 8 of each 16 rows (mma.cuh), and what it does with it.
template <class T, int width>
struct Forward {
  using Tiles = ForwardTiles<width>;
  using Problem = ForwardProblem<T, float>;
  static constexpr int kThreads = Tiles::kWarps * 32;
  static constexpr int kWarpRows = Tiles::kRows / Tiles::kWarps;
  static constexpr int kRows = kWarpRows / 8;          ///< Rows of a thread: g, g + 8, ... of its warp's.
  static constexpr int kStrips = kWarpRows / 16;       ///< Fragments one below the other.
  static constexpr int kScores = Tiles::kColumns / 8;  ///< Fragments side by side.
  static constexpr int kOuts = width / 8;
  using QueryTile = SharedTile<T, Tiles::kRows, width>;
  using KeyTile = SharedTile<T, Tiles::kColumns, width>;
  static constexpr int kSharedBytes = QueryTile::kBytes + 2 * KeyTile::kBytes;

  float out[kStrips][kOuts][4];
  /// Of weights (softmax.cuh), and this thread's part of their sum.
  float reference[kRows], total[kRows];
  /// One bit a row: it has met a key it may see.
  std::uint32_t touched = 0;
  float scores[kStrips][kScores][4];
  std::uint32_t allowed[kRows];

  /// Worked out afresh at each use: registers are scarce.
  static __device__ __forceinline__ int lane() { return lane_afresh(); }
  static __device__ __forceinline__ int warp_row() { return warp_afresh() * kWarpRows; }
  /// Within the tile of queries.
  static __device__ __forceinline__ int row_of(int r) { return warp_row() + r * 8 + lane() / 4; }
  static __device__ __forceinline__ int column_of(int fragment) { return fragment * 8 + lane() % 4 * 2; }

  __device__ __forceinline__ void start(const Problem& p, const RowTile& tile, int head) {
    touched = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = row_of(r);
      float lse = kEmpty<float>;
      const float* const from = at(p.out, tile.begin + row, head);
      if (!p.overwrite && row < tile.count) {
        lse = *at(p.lse, tile.begin + row, head);
      }
      const bool holds = lse != kEmpty<float>;
      reference[r] = lse * kLog2E;
      total[r] = holds && lane() % 4 == 0 ? 1.0f : 0.0f;  // the four threads of a row add up to one
#pragma unroll
      for (int n = 0; n < kOuts; ++n) {
        const float2 old = load_if(holds && 8 * n < p.shape.width_v, from + column_of(n));
        out[r / 2][n][r % 2 * 2] = old.x;
        out[r / 2][n][r % 2 * 2 + 1] = old.y;
      }
    }
  }

  __device__ __forceinline__ void multiply_keys(const QueryTile& queries, const KeyTile& keys) {
    const int lane = afresh(Forward::lane());
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
      for (int n = 0; n < kScores; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[strip][n][i] = 0;
      }
    }
#pragma unroll
    for (int k = 0; k < width / 16; ++k) {
      FragmentA a[kStrips];
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) a[strip] = queries.a_by_rows(warp_row() + strip * 16, k, lane);
#pragma unroll
      for (int n = 0; n < kScores; n += 2) {
        std::uint32_t b[4];
        keys.b_by_rows(b, n * 8, k, lane);
#pragma unroll
        for (int strip = 0; strip < kStrips; ++strip) {
          Numbers<T>::multiply(scores[strip][n], a[strip], b[0], b[1]);
          Numbers<T>::multiply(scores[strip][n + 1], a[strip], b[2], b[3]);
        }
      }
    }
  }

  /// Which columns of a masked tile each row may see. Before the scores exist: registers are free then.
  __device__ __forceinline__ void find_allowed(const RowTile& rows, const ColumnTile& columns, const MaskBand* masks) {
    const int first_row = rows.begin + afresh(row_of(0)), first_column = columns.begin + afresh(column_of(0));
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      allowed[r] = allowed_bits<RowAxis::query>(masks + columns.first_mask, columns.masks, first_row + 8 * r, first_column);
      touched |= (allowed[r] != 0 ? 1u : 0u) << r;
    }
  }

  __device__ __forceinline__ void cap(const Scaling& by) {
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
      for (int n = 0; n < kScores; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[strip][n][i] = by.outer * tanh_fast(by.inner * scores[strip][n][i]);
      }
    }
  }

  /// Scores become `value` where a row's bits are set.
  __device__ __forceinline__ void replace(int r, std::uint32_t bits, float value) {
#pragma unroll
    for (int n = 0; n < kScores; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (bits >> (2 * n + i) & 1u) scores[r / 2][n][r % 2 * 2 + i] = value;
      }
    }
  }
  __device__ __forceinline__ void hide() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) replace(r, ~allowed[r], kEmpty<float>);
  }
  /// Values that are not finite were taken out of the tile, so that a weight of zero hides them: rows that see one become NaN.
  __device__ __forceinline__ void spoil(const std::uint32_t* marks) {
    const std::uint32_t marked = marked_bits<kScores>(marks, column_of(0));
#pragma unroll
    for (int r = 0; r < kRows; ++r) replace(r, allowed[r] & marked, __int_as_float(0x7fffffff));
  }

  /// Scores become weights; what was summed so far shrinks if their reference moves.
  __device__ __forceinline__ void weigh(float factor) {
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      float shrink[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float most = kEmpty<float>;
#pragma unroll
        for (int n = 0; n < kScores; ++n) most = fmaxf(most, fmaxf(scores[strip][n][2 * i], scores[strip][n][2 * i + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        shrink[i] = move_reference(reference[2 * strip + i], most * factor);
      }
      if (__any_sync(0xffffffffu, shrink[0] != 1 || shrink[1] != 1)) {
#pragma unroll
        for (int n = 0; n < kOuts; ++n) {
#pragma unroll
          for (int j = 0; j < 4; ++j) out[strip][n][j] *= shrink[j / 2];
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float origin = origin_of(reference[2 * strip + i]);
        float sum = total[2 * strip + i] * shrink[i];
#pragma unroll
        for (int n = 0; n < kScores; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& score = scores[strip][n][2 * i + j];
            score = exp2_fast(fmaf(score, factor, -origin));
            sum += score;
          }
        }
        total[2 * strip + i] = sum;
      }
    }
  }

  __device__ __forceinline__ void add_values(const KeyTile& values) {
    const int lane = afresh(Forward::lane());
#pragma unroll
    for (int k = 0; k < kScores / 2; ++k) {
      FragmentA a[kStrips];
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        const auto& left = scores[strip][2 * k];
        const auto& right = scores[strip][2 * k + 1];
        a[strip] = {Numbers<T>::pack(left[0], left[1]), Numbers<T>::pack(left[2], left[3]), Numbers<T>::pack(right[0], right[1]),
                    Numbers<T>::pack(right[2], right[3])};
      }
#pragma unroll
      for (int n = 0; n < kOuts; n += 2) {
        std::uint32_t b[4];
        values.b_by_columns(b, n * 8, k, lane);
#pragma unroll
        for (int strip = 0; strip < kStrips; ++strip) {
          Numbers<T>::multiply(out[strip][n], a[strip], b[0], b[1]);
          Numbers<T>::multiply(out[strip][n + 1], a[strip], b[2], b[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void finish(const Problem& p, const RowTile& tile, int head) {
    const int first_row = afresh(row_of(0)), first_column = afresh(column_of(0));
    touched |= __shfl_xor_sync(0xffffffffu, touched, 1);
    touched |= __shfl_xor_sync(0xffffffffu, touched, 2);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float sum = total[r];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const int row = first_row + 8 * r;
      // Rows that met no key keep their state bit for bit.
      const bool changes = row < tile.count && (p.overwrite || (touched >> r & 1u) != 0);
      // Compare with zero, not "> 0": a NaN must stay visible.
      const float factor = sum == 0 ? 0.0f : 1.0f / sum;
      const float lse = sum == 0 ? kEmpty<float> : (reference[r] + log2f(sum)) * kLn2;
      store_if(changes && first_column == 0, at(p.lse, tile.begin + row, head), lse);
      float* const to = at(p.out, tile.begin + row, head) + first_column;
#pragma unroll
      for (int n = 0; n < kOuts; ++n) {
        store_if(changes && 8 * n < p.shape.width_v, to + 8 * n, out[r / 2][n][r % 2 * 2] * factor, out[r / 2][n][r % 2 * 2 + 1] * factor);
      }
    }
  }
};

template <class T, int width>
__global__ void __launch_bounds__(Forward<T, width>::kThreads, ForwardTiles<width>::kBlocks)
    forward(const ForwardProblem<T, float> p, const ResidentSchedule schedule, const WorkOrder order, const Scaling by, const int sharing) {
  using F = Forward<T, width>;
  constexpr int kThreads = F::kThreads;
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ int next;
  __shared__ std::uint32_t marks[4];  // columns whose values are not finite
  const typename F::QueryTile queries{shared_address(memory)};
  const typename F::KeyTile keys{queries.base + F::QueryTile::kBytes};
  const typename F::KeyTile values{keys.base + F::KeyTile::kBytes};
  if (threadIdx.x < 4) marks[threadIdx.x] = 0;
  for (int number; (number = take_number(schedule.counters, &next)) < order.items();) {
    const WorkOrder::Item item = order.item(number);
    const RowTile rows = schedule.rows[item.row_tile];
    const int kv = item.head / sharing;
    const auto copy_keys = [&](const ColumnTile& columns) {
      keys.template copy_in<kThreads>(at(p.k, columns.begin, afresh(kv)), static_cast<int>(p.k.row), columns.count,
                                      static_cast<int>(p.shape.width_qk));
      commit_copies();
    };
    F mine;
    if (rows.columns > 0) {
      queries.template copy_in<kThreads>(at(p.q, rows.begin, item.head), static_cast<int>(p.q.row), rows.count,
                                         static_cast<int>(p.shape.width_qk));
      copy_keys(schedule.columns[rows.first]);
    }
    mine.start(p, rows, item.head);
    for (int c = rows.first, end = c + rows.columns; c < end; ++c) {
      const ColumnTile& columns = schedule.columns[c];
      wait_copies<0>();
      __syncthreads();  // keys are here; the last values are no longer in use
      values.template copy_in<kThreads>(at(p.v, columns.begin, afresh(kv)), static_cast<int>(p.v.row), columns.count,
                                        static_cast<int>(p.shape.width_v));
      commit_copies();
      const bool masked = columns.masks > 0;
      if (masked) {
        mine.find_allowed(rows, columns, schedule.masks);
      } else {
        mine.touched = ~0u;
      }
      mine.multiply_keys(queries, keys);
      if (by.outer > 0) mine.cap(by);
      if (masked) mine.hide();
      wait_copies<0>();
      // Values are here; keys are no longer in use.
      const bool spoilt = __syncthreads_or(masked && values.template remove_non_finite<kThreads>(marks));
      if (c + 1 < end) copy_keys(schedule.columns[c + 1]);
      mine.weigh(by.factor);
      if (spoilt) {
        mine.find_allowed(rows, columns, schedule.masks);
        mine.spoil(marks);
        __syncthreads();
        if (threadIdx.x < 4) marks[threadIdx.x] = 0;
      }
      mine.add_values(values);
    }
    const WorkOrder::Item done = order.item(afresh(next));  // not kept in registers over the loop
    mine.finish(p, schedule.rows[done.row_tile], done.head);
  }
  if (threadIdx.x == 0) leave(schedule.counters);
}

}  // namespace

bool supports(const ForwardCall& call) { return supports(call.shape, call.block) && aligned(call.state.out, 8); }

void attend(const ForwardCall& call, StreamView stream) {
  const AttentionShape& shape = call.shape;
  const auto& [q, k, v, bands, scale, softcap] = call.block;
  for_type_and_width(q, shape, "attend", [&]<class Storage, int width>() {
    using T = DeviceValue<Storage>;
    using F = Forward<T, width>;
    const ForwardProblem<T, float> problem{shape,
                                           scale,
                                           softcap,
                                           strided<Storage>(q),
                                           strided<Storage>(k),
                                           strided<Storage>(v),
                                           strided<float>(call.state.out),
                                           strided<float>(call.state.lse),
                                           call.update == Update::overwrite};
    const ResidentSchedule schedule =
        resident_schedule(bands, RowAxis::query, shape.query_rows, shape.key_rows, {F::Tiles::kRows, F::Tiles::kColumns, false}, 0, stream);
    const auto kv_bytes = shape.key_rows * (shape.width_qk + shape.width_v) * static_cast<std::int64_t>(sizeof(T));
    const int sharing = static_cast<int>(shape.heads / shape.kv_heads);
    const WorkOrder order =
        even_order(schedule.row_tiles, static_cast<int>(shape.heads), sharing,
                   fitting_heads(shape.kv_heads, kv_bytes, static_cast<std::size_t>(attribute(cudaDevAttrL2CacheSize, stream))));
    launch_persistent(forward<T, width>, F::kThreads, F::kSharedBytes, order.items(), stream, problem, schedule, order,
                      scaling_of(call.block), sharing);
  });
}

}  // namespace periplus::kernels::cuda::portable
