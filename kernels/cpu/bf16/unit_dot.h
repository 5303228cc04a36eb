// The tile unit on CPUs that have AVX512-BF16 and no AMX (AMD since Zen 4, Intel's Cooper Lake): a product of two tiles is 256 dot products
// of pairs, which take two bf16 multiply-adds a lane where those of f32 take one. Twin of unit_amx.h, where the contracts are. Softmax and
// products share the vector unit here, so running them between each other gains nothing and costs little.
#pragma once

#include "kernels/cpu/bf16/vector_unit.h"

namespace periplus::kernels::cpu {
namespace {

/// Unlike the hardware, load() only notes where a tile lies: the memory must stay as it is until the last product or store that reads it.
struct Unit : VectorUnit {
  static constexpr bool kHasTiles = false;

  struct Tile {
    const float* at;  ///< Its 16 rows, whatever their type.
    alignas(64) float own[256];
  };

  class Session {
   public:
    Session() {
      for (Tile& tile : all_) tile.at = kZeros;
      tiles = all_;
    }
    ~Session() { tiles = nullptr; }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

   private:
    Tile all_[8];
  };

  [[gnu::always_inline]] static void fence() {}

  template <int T>
  [[gnu::always_inline]] static void load(const void* tile) {
    tiles[T].at = static_cast<const float*>(tile);
  }
  template <int T>
  [[gnu::always_inline]] static void load_streamed(const void* tile) {
    load<T>(tile);
  }
  template <int T>
  [[gnu::always_inline]] static void store(void* tile) {
    copy_rows(tile, kRowBytes, tiles[T].at, kRowBytes);
  }
  template <int T>
  [[gnu::always_inline]] static void load_rows(const void* tile, long row_bytes) {
    copy_rows(tiles[T].own, kRowBytes, tile, row_bytes);
    tiles[T].at = tiles[T].own;
  }
  template <int T>
  [[gnu::always_inline]] static void store_rows(void* tile, long row_bytes) {
    copy_rows(tile, row_bytes, tiles[T].at, kRowBytes);
  }
  template <int T>
  [[gnu::always_inline]] static void zero() {
    load<T>(kZeros);
  }
  template <int C, int A, int B>
  [[gnu::always_inline]] static void multiply() {
    multiply_tiles(tiles[C].own, tiles[C].at, tiles[A].at, tiles[B].at);
    tiles[C].at = tiles[C].own;
  }

 private:
  static constexpr long kRowBytes = 64;
  alignas(64) static constexpr float kZeros[256] = {};

  /// Of the thread's session. Near enough to need no call to find it, as a pointer in any shared library may be.
  [[gnu::tls_model("initial-exec")]] static thread_local Tile* tiles;

  [[gnu::always_inline]] static void copy_rows(void* to, long to_bytes, const void* from, long from_bytes) {
#pragma GCC unroll 4
    for (int row = 0; row < 16; ++row) {
      _mm512_storeu_ps(static_cast<char*>(to) + row * to_bytes, _mm512_loadu_ps(static_cast<const char*>(from) + row * from_bytes));
    }
  }

  /// c := sums + A B. 16 rows of sums in registers are as many independent chains; each row of B is loaded once. Assembly, because
  /// g++ 12 does not let the instruction broadcast its operand, and an instruction that does so for it costs a quarter of the speed.
  [[gnu::noinline]] static void multiply_tiles(float* c, const float* sums, const float* a, const float* b) {
    __m512 sum[16];
#pragma GCC unroll 16
    for (int m = 0; m < 16; ++m) sum[m] = _mm512_loadu_ps(sums + m * 16);
    for (int pair = 0; pair < 16; ++pair) {
      const __m512 right = _mm512_loadu_ps(b + pair * 16);
#pragma GCC unroll 16
      for (int m = 0; m < 16; ++m) asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum[m]) : "v"(right), "m"(a[m * 16 + pair]));
    }
#pragma GCC unroll 16
    for (int m = 0; m < 16; ++m) _mm512_storeu_ps(c + m * 16, sum[m]);
  }
};

thread_local Unit::Tile* Unit::tiles;

}  // namespace
}  // namespace periplus::kernels::cpu
