// Vector instructions of the tile kernels on CPUs with AVX512-BF16, which all CPUs with AMX have: the part that unit_amx.h and unit_dot.h
// share.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/lanes.h"

namespace periplus::kernels::cpu {
namespace {

struct VectorUnit {
  /// x - floor(x); 0 for infinities.
  [[gnu::always_inline]] static Vec fraction(Vec x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
  /// x 2^floor(exponent), without overflow of the exponent on the way.
  [[gnu::always_inline]] static Vec scale_by_power(Vec x, Vec exponent) { return _mm512_scalef_ps(x, exponent); }
  /// 1 / x to 6.1e-5 relative, for normal x with a normal 1 / x.
  [[gnu::always_inline]] static Vec reciprocal(Vec x) { return _mm512_rcp14_ps(x); }
  /// `second` where one is NaN.
  [[gnu::always_inline]] static Vec larger(Vec first, Vec second) { return _mm512_max_ps(first, second); }
  [[gnu::always_inline]] static Vec ceil(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
  /// Lane n: `low` in its lower and `high` in its upper half, as bf16 rounded to nearest (ties away). NaN stays NaN.
  [[gnu::always_inline]] static Words pair(Vec low, Vec high) {
    const Words half = Words{} + 0x8000u;
    const __m512i upper = __m512i(Words(high) + half), lower = __m512i(Words(low) + half);
    return Words(_mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(lower, 16), upper));
  }
  /// bf16 of the lanes of `low`, then of `high`, rounded to nearest (even). NaN stays NaN, subnormals become 0.
  [[gnu::always_inline]] static Words narrow(Vec low, Vec high) { return Words(__m512i(_mm512_cvtne2ps_pbh(__m512(high), __m512(low)))); }
  /// The lower (upper) halves of two words: lane n is `first` in its lower and `second` in its upper half.
  [[gnu::always_inline]] static Words lower_halves(Words first, Words second) {
    return Words(_mm512_mask_blend_epi16(0xaaaaaaaau, __m512i(first), __m512i(second << 16)));
  }
  [[gnu::always_inline]] static Words upper_halves(Words first, Words second) {
    return Words(_mm512_mask_blend_epi16(0xaaaaaaaau, __m512i(first >> 16), __m512i(second)));
  }
  /// The lower (upper) halves of the lanes of two words one after the other.
  [[gnu::always_inline]] static Words even_halves(Words first, Words second) {
    return pick<0>(first, second, std::make_integer_sequence<int, 32>{});
  }
  [[gnu::always_inline]] static Words odd_halves(Words first, Words second) {
    return pick<1>(first, second, std::make_integer_sequence<int, 32>{});
  }
  /// sum + both halves of each lane.
  [[gnu::always_inline]] static Vec add_pair(Vec sum, Words pair) {
    const __m512i ones = _mm512_set1_epi32(0x3f803f80);
    return _mm512_dpbf16_ps(sum, __m512bh(__m512i(pair)), __m512bh(ones));
  }
  /// Lanes whose bit is 0 become `other`.
  [[gnu::always_inline]] static Vec keep(Vec x, std::uint32_t bits, Vec other) {
    return _mm512_mask_mov_ps(other, static_cast<__mmask16>(bits), x);
  }
  [[gnu::always_inline]] static bool any_greater(Vec x, Vec bound) { return _mm512_cmp_ps_mask(x, bound, _CMP_GT_OQ) != 0; }

  /// columns[c]: 4-byte words c of 16 rows in memory. A lane of 4 words is put into its place as it is loaded, which no shuffle does:
  /// 32 of them remain of the 64 that a transposition of registers takes for 16 words, and these are what limits it.
  template <int N>
  [[gnu::always_inline]] static void transpose_words(const void* rows, std::int64_t row_bytes, Vec (&columns)[N]) {
#pragma GCC unroll 4
    for (int c = 0; c < N; c += 4) {
      const std::byte* at = static_cast<const std::byte*>(rows) + 4 * c;
      __m512i x[4];
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r, at += row_bytes) {
        asm("" : "+r"(at));  // or the compiler keeps an address for each row, and has no registers for them
        x[r] = gather_lanes(at, 4 * row_bytes);
      }
      interleave(x[0], x[1], x[2], x[3], columns + c);
    }
  }
  /// columns[c]: 2-byte halves c of 32 rows in memory.
  [[gnu::always_inline]] static void transpose_halves(const void* rows, std::int64_t row_bytes, Vec (&columns)[8]) {
    __m512i low[4], high[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const std::byte* at = static_cast<const std::byte*>(rows) + 2 * r * row_bytes;
      const __m512i first = gather_lanes(at, 8 * row_bytes), second = gather_lanes(at + row_bytes, 8 * row_bytes);
      low[r] = _mm512_unpacklo_epi16(first, second);
      high[r] = _mm512_unpackhi_epi16(first, second);
    }
    interleave(low[0], low[1], low[2], low[3], columns);
    interleave(high[0], high[1], high[2], high[3], columns + 4);
  }

 private:
  /// 16 bytes of each of four rows.
  [[gnu::always_inline]] static __m512i gather_lanes(const std::byte* from, std::int64_t row_bytes) {
    const auto lane = [&](int row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + row * row_bytes)); };
    __m512i x = _mm512_castsi128_si512(lane(0));
    x = _mm512_mask_broadcast_i32x4(x, 0x00f0, lane(1));
    x = _mm512_mask_broadcast_i32x4(x, 0x0f00, lane(2));
    return _mm512_mask_broadcast_i32x4(x, 0xf000, lane(3));
  }
  /// columns[c], lane by lane of 4 words: word c of each.
  [[gnu::always_inline]] static void interleave(__m512i x0, __m512i x1, __m512i x2, __m512i x3, Vec* columns) {
    const __m512i low = _mm512_unpacklo_epi32(x0, x1), low_next = _mm512_unpacklo_epi32(x2, x3);
    const __m512i high = _mm512_unpackhi_epi32(x0, x1), high_next = _mm512_unpackhi_epi32(x2, x3);
    columns[0] = Vec(_mm512_unpacklo_epi64(low, low_next));
    columns[1] = Vec(_mm512_unpackhi_epi64(low, low_next));
    columns[2] = Vec(_mm512_unpacklo_epi64(high, high_next));
    columns[3] = Vec(_mm512_unpackhi_epi64(high, high_next));
  }

  template <int Odd, int... I>
  static Words pick(Words first, Words second, std::integer_sequence<int, I...>) {
    using Pieces = std::uint16_t __attribute__((vector_size(64)));
    return Words(__builtin_shufflevector(Pieces(first), Pieces(second), (2 * I + Odd)...));
  }
};

}  // namespace
}  // namespace periplus::kernels::cpu
