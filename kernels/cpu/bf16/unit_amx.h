// The tile unit of CPUs with AMX. Included by level_amx.cpp only, which is compiled for it; unit_dot.h and unit_emulated.h
// are its twins.
// Inline assembly and not the intrinsics: these expand to the same, but with register numbers that templates cannot give.
#pragma once

#include "kernels/cpu/bf16/vector_unit.h"

namespace periplus::kernels::cpu {
namespace {

/// Eight registers of 16 rows of 64 bytes. The compiler knows nothing of what they read from memory: put fence() between
/// vector stores and the tile loads that read them. It does know what tile stores write.
struct Unit : VectorUnit {
  static constexpr bool kHasTiles = true;  ///< Products cost little beside everything else.

  /// Tile state is on while this lives: a thread that keeps it on pays for 8 KiB more at every context switch.
  class Session {
   public:
    Session() {
      alignas(64) std::uint8_t config[64] = {};
      config[0] = 1;
      for (int tile = 0; tile < 8; ++tile) {
        config[16 + 2 * tile] = 64;  // bytes in a row
        config[48 + tile] = 16;      // rows
      }
      fence();
      _tile_loadconfig(config);
    }
    ~Session() { _tile_release(); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
  };

  [[gnu::always_inline]] static void fence() { asm volatile("" ::: "memory"); }

  /// Reads a packed tile (1 KiB).
  template <int T>
  [[gnu::always_inline]] static void load(const void* tile) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(tile), "r"(kRowBytes), "i"(T));
  }
  /// The same for data that is not read again soon: keeps it from pushing the working set out of the first-level cache.
  template <int T>
  [[gnu::always_inline]] static void load_streamed(const void* tile) {
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(tile), "r"(kRowBytes), "i"(T));
  }
  template <int T>
  [[gnu::always_inline]] static void store(void* tile) {
    asm volatile("tilestored %%tmm%c3, (%1,%2,1)" : "=m"(*static_cast<TileMemory*>(tile)) : "r"(tile), "r"(kRowBytes), "i"(T));
  }
  /// A tile whose rows are `row_bytes` apart. The compiler does not know what the store writes: put fence() behind it too.
  template <int T>
  [[gnu::always_inline]] static void load_rows(const void* tile, long row_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(tile), "r"(row_bytes), "i"(T));
  }
  template <int T>
  [[gnu::always_inline]] static void store_rows(void* tile, long row_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(tile), "r"(row_bytes), "i"(T));
  }
  template <int T>
  [[gnu::always_inline]] static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  /// C[m][n] += sum over t < 32 of A[m][t] B[t / 2][2 n + t % 2], bf16 products summed in f32.
  template <int C, int A, int B>
  [[gnu::always_inline]] static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

 private:
  static constexpr long kRowBytes = 64;
  using TileMemory = char[1024];
};

}  // namespace
}  // namespace periplus::kernels::cpu
