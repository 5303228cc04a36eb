// The tile unit in plain loops, for any CPU: lets the packing, masking and order of the tile kernels be tested where the
// hardware is absent. Twin of unit_amx.h, where the contracts are.
#pragma once

#include "kernels/cpu/lanes.h"

namespace periplus::kernels::cpu {
namespace {

struct Unit {
  static constexpr bool kHasTiles = true;

  class Session {
   public:
    Session() {}
    ~Session() {}
  };

  static void fence() {}

  template <int T>
  static void load(const void* tile) {
    __builtin_memcpy(tiles()[T], tile, sizeof tiles()[T]);
  }
  template <int T>
  static void load_streamed(const void* tile) {
    load<T>(tile);
  }
  template <int T>
  static void store(void* tile) {
    __builtin_memcpy(tile, tiles()[T], sizeof tiles()[T]);
  }
  template <int T>
  static void load_rows(const void* tile, long row_bytes) {
    for (int row = 0; row < 16; ++row) __builtin_memcpy(tiles()[T][row], static_cast<const char*>(tile) + row * row_bytes, 64);
  }
  template <int T>
  static void store_rows(void* tile, long row_bytes) {
    for (int row = 0; row < 16; ++row) __builtin_memcpy(static_cast<char*>(tile) + row * row_bytes, tiles()[T][row], 64);
  }
  template <int T>
  static void zero() {
    __builtin_memset(tiles()[T], 0, sizeof tiles()[T]);
  }
  template <int C, int A, int B>
  static void multiply() {
    for (int m = 0; m < 16; ++m) {
      Vec sum = load_row(tiles()[C][m]);
      for (int pair = 0; pair < 16; ++pair) {
        const Words right = Words(load_row(tiles()[B][pair]));
        const std::uint32_t left = tiles()[A][m][pair];
        sum += as_float(left << 16) * Vec(right << 16) + as_float(left & 0xffff0000u) * Vec(right & 0xffff0000u);
      }
      __builtin_memcpy(tiles()[C][m], &sum, sizeof sum);
    }
  }

  static Vec fraction(Vec x) {
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = __builtin_isinf(x[lane]) ? 0.0f : x[lane] - __builtin_floorf(x[lane]);
    return x;
  }
  static Vec scale_by_power(Vec x, Vec exponent) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float power = exponent[lane];
      if (power != power)
        x[lane] = power;
      else if (power < -300)
        x[lane] = 0;
      else
        x[lane] = __builtin_ldexpf(x[lane], power > 300 ? 300 : static_cast<int>(__builtin_floorf(power)));
    }
    return x;
  }
  static Vec reciprocal(Vec x) { return 1.0f / x; }
  static Vec larger(Vec first, Vec second) { return first > second ? first : second; }
  static Vec ceil(Vec x) {
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = __builtin_ceilf(x[lane]);
    return x;
  }
  static Words pair(Vec low, Vec high) {
    const Words half = Words{} + 0x8000u;
    return ((Words(low) + half) >> 16) | ((Words(high) + half) & 0xffff0000u);
  }
  static Words narrow(Vec low, Vec high) {
    const Halves halves[2] = {narrow_bf16<Vec, Words, Halves>(low), narrow_bf16<Vec, Words, Halves>(high)};
    Words result;
    __builtin_memcpy(&result, halves, sizeof result);
    return result;
  }
  static Words lower_halves(Words first, Words second) { return (first & 0xffffu) | (second << 16); }
  static Words upper_halves(Words first, Words second) { return (first >> 16) | (second & 0xffff0000u); }
  static Words even_halves(Words first, Words second) { return pick<0>(first, second, std::make_integer_sequence<int, 32>{}); }
  static Words odd_halves(Words first, Words second) { return pick<1>(first, second, std::make_integer_sequence<int, 32>{}); }
  static Vec add_pair(Vec sum, Words pair) { return sum + (Vec(pair << 16) + Vec(pair & 0xffff0000u)); }
  static Vec keep(Vec x, std::uint32_t bits, Vec other) {
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = (bits >> lane & 1) != 0 ? x[lane] : other[lane];
    return x;
  }
  static bool any_greater(Vec x, Vec bound) { return any(x > bound); }
  template <int N>
  static void transpose_words(const void* rows, std::int64_t row_bytes, Vec (&columns)[N]) {
    for (int c = 0; c < N; ++c) {
      for (int r = 0; r < 16; ++r) {
        __builtin_memcpy(reinterpret_cast<char*>(columns + c) + 4 * r, static_cast<const char*>(rows) + r * row_bytes + 4 * c, 4);
      }
    }
  }
  static void transpose_halves(const void* rows, std::int64_t row_bytes, Vec (&columns)[8]) {
    for (int c = 0; c < 8; ++c) {
      for (int r = 0; r < 32; ++r) {
        __builtin_memcpy(reinterpret_cast<char*>(columns + c) + 2 * r, static_cast<const char*>(rows) + r * row_bytes + 2 * c, 2);
      }
    }
  }

 private:
  template <int Odd, int... I>
  static Words pick(Words first, Words second, std::integer_sequence<int, I...>) {
    using Pieces = std::uint16_t __attribute__((vector_size(64)));
    return Words(__builtin_shufflevector(Pieces(first), Pieces(second), (2 * I + Odd)...));
  }

  using Tile = std::uint32_t[16][16];
  static Tile* tiles() {
    alignas(64) static thread_local Tile all[8];
    return all;
  }
  static Vec load_row(const std::uint32_t* row) {
    Vec x;
    __builtin_memcpy(&x, row, sizeof x);
    return x;
  }
  static float as_float(std::uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
  }
};

}  // namespace
}  // namespace periplus::kernels::cpu
