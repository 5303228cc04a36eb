// Instructions that the compiler does not find by itself behind its vector types, with their plain forms.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace periplus::kernels::cpu {
namespace {

/// The larger of two, b where one is NaN: one instruction on x86, two if written out with a constant operand.
template <class Vec>
[[gnu::always_inline]] inline Vec greater_or_second(Vec a, Vec b) {
#if defined(__AVX512F__)
  // All lanes of a mask: the plain forms make GCC 12 warn of an uninitialised value.
  if constexpr (sizeof(Vec) == 64) return Vec(_mm512_maskz_max_ps(0xffff, __m512(a), __m512(b)));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(Vec) == 32) return Vec(_mm256_max_ps(__m256(a), __m256(b)));
#endif
  return a > b ? a : b;
}

/// Zero-extends 16-bit lanes: GCC 12 takes four instructions for 512 bits of them.
template <class Words, class Halves>
[[gnu::always_inline]] inline Words widen_words(Halves half) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Words) == 64) return Words(_mm512_maskz_cvtepu16_epi32(0xffff, __m256i(half)));
#endif
  return __builtin_convertvector(half, Words);
}

/// f16 in 16-bit lanes to f32.
template <class Vec, class Words, class Halves>
[[gnu::always_inline]] inline Vec widen_f16(Halves half) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Vec) == 64) return Vec(_mm512_maskz_cvtph_ps(0xffff, __m256i(half)));
#endif
#if defined(__F16C__)
  if constexpr (sizeof(Vec) == 32) return Vec(_mm256_cvtph_ps(__m128i(half)));
#endif
  // The exponent is in place once multiplied by 2^112; those of infinity and NaN must become all ones.
  const Words word = __builtin_convertvector(half, Words);
  const Words magnitude = (word & 0x7fffu) << 13;
  const Words number = Words(Vec(magnitude) * 0x1p112f);
  return Vec((magnitude >= 0x0f800000u ? magnitude + 0x70000000u : number) | (word & 0x8000u) << 16);
}

/// f32 to bf16 in 16-bit lanes, rounded to nearest even; NaN stays NaN. With the CPU's own instruction subnormals become 0.
template <class Vec, class Words, class Halves>
[[gnu::always_inline]] inline Halves narrow_bf16(Vec x) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(Vec) == 64) {
    const __m256bh half = _mm512_cvtneps_pbh(__m512(x));
    Halves result;
    __builtin_memcpy(&result, &half, sizeof result);
    return result;
  }
#endif
  const Words bits = Words(x), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, quiet = (bits >> 16) | 0x40u;
  return __builtin_convertvector(x == x ? rounded : quiet, Halves);
}

/// f32 to f16 in 16-bit lanes, rounded to nearest even; subnormals are kept, NaN stays NaN.
template <class Vec, class Words, class Halves>
[[gnu::always_inline]] inline Halves narrow_f16(Vec x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Vec) == 64) return Halves(_mm512_maskz_cvtps_ph(0xffff, __m512(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
#if defined(__F16C__)
  if constexpr (sizeof(Vec) == 32) return Halves(_mm256_cvtps_ph(__m256(x), _MM_FROUND_TO_NEAREST_INT));
#endif
  // As float16's own conversion, dtype.h.
  const Words word = Words(x), magnitude = word & 0x7fffffffu;
  const Words tiny = Words(Vec(magnitude) + 0.5f) - 0x3f000000u;
  const Words rounded = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  const Words number = magnitude < 0x38800000u ? tiny : rounded;
  const Words special = magnitude > 0x7f800000u ? 0x7e00u | (magnitude >> 13 & 0x1ffu) : Words{} + 0x7c00u;
  return __builtin_convertvector((magnitude >= 0x477ff000u ? special : number) | (word >> 16 & 0x8000u), Halves);
}

}  // namespace
}  // namespace periplus::kernels::cpu
