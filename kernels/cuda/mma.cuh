#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/softmax.cuh"

/// The instructions of capability 8.0 that the portable kernels are made of. Fragments are those of mma.m16n8k16 (PTX ISA,
/// "Matrix Fragments for mma.m16n8k16"): with g = lane / 4 and t = lane % 4,
///   A 16x16  [0] row g, [1] row g + 8, both columns 2t and 2t + 1; [2], [3] the same rows, 8 columns later
///   B 16x8   [0] rows 2t and 2t + 1, [1] 8 rows later, column g
///   C 16x8   [0], [1] row g, columns 2t and 2t + 1; [2], [3] row g + 8
/// So C, rounded, is half of the A of a following product.
namespace periplus::kernels::cuda {

struct FragmentA {
  std::uint32_t part[4];
};

/// The same value, but what follows from it is worked out again here instead of being kept in registers since before a loop.
template <class Word>
__device__ __forceinline__ Word afresh(Word value) {
  static_assert(sizeof(Word) == 4);
  asm volatile("" : "+r"(value));
  return value;
}
/// Unsigned on the way: the compiler no longer knows that a thread's number is not negative.
__device__ __forceinline__ int lane_afresh() { return static_cast<int>(afresh(threadIdx.x) % 32); }
__device__ __forceinline__ int warp_afresh() { return static_cast<int>(afresh(threadIdx.x) / 32); }

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8. Each register: row g, columns
/// 2t and 2t + 1 of one matrix, or of its transpose.
__device__ __forceinline__ void load_matrices(std::uint32_t (&to)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&to)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ uint4 load_shared_16(std::uint32_t address) {
  uint4 word;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w) : "r"(address) : "memory");
  return word;
}
__device__ __forceinline__ std::uint32_t load_shared_4(std::uint32_t address) {
  std::uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}
__device__ __forceinline__ void clear_shared_16(std::uint32_t address) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(address), "r"(0) : "memory");
}
__device__ __forceinline__ void store_shared_4(std::uint32_t address, std::uint32_t word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

/// 16 bytes from global to shared memory, or 16 zeros without a look at `from`. Complete after wait_copies().
__device__ __forceinline__ void copy_16_or_zero(std::uint32_t to, const void* from, bool copies) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(copies ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_4_or_zero(std::uint32_t to, const void* from, bool copies) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(copies ? 4 : 0) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Until at most the `pending` youngest groups of this thread's copies are still under way.
template <int pending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/// Two neighbouring numbers, by a predicated instruction: as a branch it would keep the compiler from unrolling a loop around
/// it, and what such a loop indexes from registers.
__device__ __forceinline__ void store_if(bool stores, float* to, float first, float second) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.v2.f32 [%1], {%2,%3};}" ::"r"(static_cast<int>(stores)), "l"(to),
               "f"(first), "f"(second)
               : "memory");
}
__device__ __forceinline__ void store_if(bool stores, float* to, float value) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.f32 [%1], %2;}" ::"r"(static_cast<int>(stores)), "l"(to), "f"(value)
               : "memory");
}
/// Zeros if not. From the L2, where other multiprocessors' stores are seen.
__device__ __forceinline__ float2 load_if(bool loads, const float* from) {
  float2 pair;
  asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; mov.b32 %0, 0; mov.b32 %1, 0; @p ld.global.cg.v2.f32 {%0,%1}, [%3];}"
               : "=&f"(pair.x), "=&f"(pair.y)
               : "r"(static_cast<int>(loads)), "l"(from)
               : "memory");
  return pair;
}

/// What differs between the two storage types.
template <class T>
struct Numbers;

template <>
struct Numbers<__nv_bfloat16> {
  static constexpr std::uint32_t kExponents = 0x7f807f80u;
  /// `low` in the lower half.
  static __device__ __forceinline__ std::uint32_t pack(float low, float high) {
    std::uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
  }
  /// sum += a b
  static __device__ __forceinline__ void multiply(float (&sum)[4], const FragmentA& a, std::uint32_t b0, std::uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a.part[0]), "r"(a.part[1]), "r"(a.part[2]), "r"(a.part[3]), "r"(b0), "r"(b1));
  }
};

template <>
struct Numbers<__half> {
  static constexpr std::uint32_t kExponents = 0x7c007c00u;
  static __device__ __forceinline__ std::uint32_t pack(float low, float high) {
    std::uint32_t both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
  }
  static __device__ __forceinline__ void multiply(float (&sum)[4], const FragmentA& a, std::uint32_t b0, std::uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a.part[0]), "r"(a.part[1]), "r"(a.part[2]), "r"(a.part[3]), "r"(b0), "r"(b1));
  }
};

/// Whether one of two packed numbers is infinite or NaN: adding one to an exponent of all ones carries into the sign's place.
template <class T>
__device__ __forceinline__ bool holds_non_finite(std::uint32_t both) {
  constexpr std::uint32_t ones = Numbers<T>::kExponents;
  constexpr std::uint32_t lowest = ones & ~(ones << 1);
  return (((both & ones) + lowest) & 0x80008000u) != 0;
}

/// tanh to about 2e-7 absolute: tanh.approx keeps only eleven bits, which a cap of 50 would turn into errors of 0.02.
__device__ __forceinline__ float tanh_fast(float x) {
  constexpr float kTwoLog2E = 2.885390081777927f;
  return 1.0f - __fdividef(2.0f, 1.0f + exp2_fast(kTwoLog2E * x));
}

}  // namespace periplus::kernels::cuda
