#pragma once
// Stands for kernels/cuda/mma.cuh: the same instructions as functions of a warp's fibers, for tiles in emulated shared memory.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace periplus::kernels::cuda {

struct FragmentA {
  std::uint32_t part[4];
};

template <class Word>
Word afresh(Word value) {
  return value;
}
inline int lane_afresh() { return static_cast<int>(threadIdx.x % 32); }
inline int warp_afresh() { return static_cast<int>(threadIdx.x / 32); }

inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(static_cast<const unsigned char*>(pointer) - emulation::shared_memory());
}
inline unsigned char* shared_bytes(std::uint32_t address, std::size_t count) {
  if (address + count > emulation::shared_memory_bytes() || address % count != 0) {
    std::fprintf(stderr, "CUDA emulation: %zu bytes at %u of %zu of shared memory\n", count, address, emulation::shared_memory_bytes());
    std::abort();
  }
  return emulation::shared_memory() + address;
}

struct FourWords {
  std::uint32_t word[4];
};

template <bool transposed>
void load_four_matrices(std::uint32_t (&to)[4], std::uint32_t address) {
  const unsigned char* const own = shared_bytes(address, 16);
  FourWords loaded;
  emulation::with_warp(&own, &loaded, [](const void* const* operands, void* const* results) {
    for (unsigned lane = 0; lane < 32; ++lane) {
      for (unsigned matrix = 0; matrix < 4; ++matrix) {
        std::uint16_t pair[2];
        for (unsigned i = 0; i < 2; ++i) {
          const unsigned outer = lane / 4, inner = lane % 4 * 2 + i;
          const unsigned row = transposed ? inner : outer, column = transposed ? outer : inner;
          std::memcpy(&pair[i], *static_cast<const unsigned char* const*>(operands[matrix * 8 + row]) + 2 * column, 2);
        }
        std::memcpy(&static_cast<FourWords*>(results[lane])->word[matrix], pair, 4);
      }
    }
  });
  std::memcpy(to, loaded.word, 16);
}
inline void load_matrices(std::uint32_t (&to)[4], std::uint32_t address) { load_four_matrices<false>(to, address); }
inline void load_matrices_transposed(std::uint32_t (&to)[4], std::uint32_t address) { load_four_matrices<true>(to, address); }

inline uint4 load_shared_16(std::uint32_t address) {
  uint4 word;
  std::memcpy(&word, shared_bytes(address, 16), 16);
  return word;
}
inline std::uint32_t load_shared_4(std::uint32_t address) {
  std::uint32_t word;
  std::memcpy(&word, shared_bytes(address, 4), 4);
  return word;
}
inline void clear_shared_16(std::uint32_t address) { std::memset(shared_bytes(address, 16), 0, 16); }
inline void store_shared_4(std::uint32_t address, std::uint32_t word) { std::memcpy(shared_bytes(address, 4), &word, 4); }

inline void copy_16_or_zero(std::uint32_t to, const void* from, bool copies) {
  emulation::start_copy(shared_bytes(to, 16), from, 16, copies);
}
inline void copy_4_or_zero(std::uint32_t to, const void* from, bool copies) { emulation::start_copy(shared_bytes(to, 4), from, 4, copies); }
inline void commit_copies() { emulation::close_copy_group(); }
template <int pending>
void wait_copies() {
  emulation::finish_copies(pending);
}

template <class Value>
struct NumbersOf {
  static float number(std::uint32_t both, unsigned half) {
    Value value;
    value.bits = static_cast<std::uint16_t>(both >> 16 * half);
    return static_cast<float>(value);
  }
  static std::uint32_t pack(float low, float high) { return Value(low).bits | static_cast<std::uint32_t>(Value(high).bits) << 16; }

  struct Operands {
    std::uint32_t a[4], b[2];
    float c[4];
  };
  struct Sums {
    float c[4];
  };
  static void multiply(float (&sum)[4], const FragmentA& a, std::uint32_t b0, std::uint32_t b1) {
    const Operands operands{{a.part[0], a.part[1], a.part[2], a.part[3]}, {b0, b1}, {sum[0], sum[1], sum[2], sum[3]}};
    Sums sums;
    emulation::with_warp(&operands, &sums, multiply_warp);
    std::memcpy(sum, sums.c, sizeof sum);
  }
  static void multiply_warp(const void* const* operands, void* const* results) {
    static float left[16][16], right[16][8];
    for (unsigned lane = 0; lane < 32; ++lane) {
      const auto& own = *static_cast<const Operands*>(operands[lane]);
      const unsigned g = lane / 4, t = lane % 4;
      for (unsigned i = 0; i < 2; ++i) {
        for (unsigned part = 0; part < 4; ++part) left[g + part % 2 * 8][2 * t + i + part / 2 * 8] = number(own.a[part], i);
        for (unsigned part = 0; part < 2; ++part) right[2 * t + i + part * 8][g] = number(own.b[part], i);
      }
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
      const auto& own = *static_cast<const Operands*>(operands[lane]);
      for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = own.c[i];
        for (unsigned inner = 0; inner < 16; ++inner) sum += left[row][inner] * right[inner][column];
        static_cast<Sums*>(results[lane])->c[i] = sum;
      }
    }
  }
};

template <class T>
struct Numbers;
template <>
struct Numbers<__nv_bfloat16> : NumbersOf<__nv_bfloat16> {
  static constexpr std::uint32_t kExponents = 0x7f807f80u;
};
template <>
struct Numbers<__half> : NumbersOf<__half> {
  static constexpr std::uint32_t kExponents = 0x7c007c00u;
};

template <class T>
bool holds_non_finite(std::uint32_t both) {
  constexpr std::uint32_t ones = Numbers<T>::kExponents;
  constexpr std::uint32_t lowest = ones & ~(ones << 1);
  return (((both & ones) + lowest) & 0x80008000u) != 0;
}

}  // namespace periplus::kernels::cuda
