// What capability 9.0 has and CUDA C++ does not say: mbarriers, the bulk tensor copy engine (TMA), matrix products of a
// warpgroup (wgmma), named barriers and register reallocation, each as one function over one PTX instruction.
//
// Shared-memory tiles of 16-bit elements are cut into panels 64 elements (128 bytes) wide, [rows][64], written by TMA with
// the 128-byte swizzle and 1,024-byte aligned. A panel is read by wgmma in two ways:
//   rows are M or N, columns are K ("K-major"): the next 16 columns lie 32 bytes on; groups of 8 rows 1,024 bytes apart;
//   rows are K, columns are M or N ("MN-major", the transposed flag): the next 16 rows lie 2,048 bytes on; groups of 8 rows
//   1,024 bytes apart, panels of 64 columns `panel` bytes apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/softmax.cuh"

namespace periplus::kernels::cuda::hopper {

inline constexpr int kWarpgroup = 128;

#ifdef PERIPLUS_CHECKED_KERNELS
inline constexpr bool kChecked = true;
#else
inline constexpr bool kChecked = false;
#endif
/// Ends the kernel with an error where a build with checks finds that something does not hold (preset cuda-checked).
__device__ __forceinline__ void require(bool holds) {
  if constexpr (kChecked) {
    if (!holds) __trap();
  }
}

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// The block's dynamic shared memory as one struct. It starts at a multiple of 1,024, as swizzled panels need, as long as a
/// kernel has no other shared memory; knowing that lets addresses be constants.
template <class Shared>
__device__ inline Shared& shared_memory() {
  extern __shared__ __align__(1024) std::byte memory[];
  if ((shared_address(memory) & 1023) != 0) __trap();
  return *reinterpret_cast<Shared*>(memory);
}

// --- mbarriers ---

__device__ inline void barrier_init(std::uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
/// Makes initialised barriers visible to the copy engine.
__device__ inline void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void barrier_arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ inline void barrier_arrive_expecting(std::uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
__device__ inline bool barrier_try_wait(std::uint64_t* barrier, int parity) {
  std::uint32_t done;
  asm volatile("{.reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done;}"
               : "=r"(done)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return done != 0;
}
/// Returns when the phase with this parity has completed. With checks, a wait of some seconds is an error: a phase that never ends.
__device__ inline void barrier_wait(std::uint64_t* barrier, int parity) {
  if constexpr (kChecked) {
    constexpr long long kMostCycles = 1LL << 34;
    require(parity == 0 || parity == 1);
    const long long begin = clock64();
    while (!barrier_try_wait(barrier, parity)) require(clock64() - begin < kMostCycles);
  } else {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
  }
}

// --- the bulk tensor copy engine ---

/// A box of a [heads][rows][width] tensor map to shared memory; the barrier counts its bytes. Outside the tensor: zeros.
__device__ inline void load_box(void* destination, const CUtensorMap* map, std::uint64_t* barrier, int column, int row, int head) {
  require(shared_address(destination) % 1024 == 0);
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
                   shared_address(destination)),
               "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "r"(head)
               : "memory");
}
/// Some bytes, a multiple of 16 and aligned so, to shared memory; the barrier counts them.
__device__ inline void load_bytes(void* destination, const void* source, int bytes, std::uint64_t* barrier) {
  require(bytes > 0 && bytes % 16 == 0 && shared_address(destination) % 16 == 0);
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(destination)),
               "l"(source), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
/// A box from shared memory, stored or added (f32). Elements outside the tensor are dropped.
__device__ inline void store_box(const CUtensorMap* map, const void* source, int column, int row, int head) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(shared_address(source)),
               "r"(column), "r"(row), "r"(head)
               : "memory");
}
__device__ inline void add_box(const CUtensorMap* map, const void* source, int column, int row, int head) {
  asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(shared_address(source)), "r"(column), "r"(row), "r"(head)
               : "memory");
}
__device__ inline void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// The sources of all boxes but the last `N` groups may be overwritten.
template <int N>
__device__ inline void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
/// All but the last `N` groups are written.
template <int N>
__device__ inline void store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}
__device__ inline void prefetch_map(const CUtensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
/// The line of 128 bytes around an address to the second-level cache.
__device__ inline void prefetch_to_l2(const void* global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }
/// Ordinary stores to shared memory before it are seen by wgmma and the copy engine after it.
__device__ inline void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Four 8 x 8 matrices of 16-bit elements from registers; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void store_matrices(std::uint32_t address, std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}
/// Each matrix transposed: what lies in a row there is in a column of the registers' matrix.
__device__ inline void store_matrices_transposed(std::uint32_t address, std::uint32_t a, std::uint32_t b, std::uint32_t c,
                                                 std::uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}
/// An 8 x 8 matrix of 16-bit elements, transposed: lane 4 g + t has elements 2 t and 2 t + 1 of row g.
__device__ inline std::uint32_t transposed(std::uint32_t both) {
  std::uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(both));
  return result;
}
/// Byte offset of column chunk `chunk` (16 bytes) of `row` in a panel, as the 128-byte swizzle places it.
__device__ inline int swizzled(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

// --- warpgroups ---

/// The same for all lanes of a warp, which the compiler cannot tell of threadIdx.x / 128.
__device__ inline int warpgroup_index() { return __shfl_sync(0xFFFFFFFF, static_cast<int>(threadIdx.x) / kWarpgroup, 0); }

/// Whether one producer and some consumer warpgroups find what they ask for in what the block got at launch, which is the
/// same for all threads and a multiple of 8. If not, they wait for ever.
constexpr bool registers_fit(int consumers, int producer_registers, int consumer_registers) {
  const int at_launch = 65536 / (kWarpgroup * (1 + consumers)) / 8 * 8;
  return producer_registers + consumers * consumer_registers <= (1 + consumers) * at_launch;
}
template <int Registers>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
__device__ inline void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
__device__ inline void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// --- wgmma ---

/// 128-byte swizzle. `leading` is the distance of panels of an MN-major operand, unused for K-major ones.
__device__ inline std::uint64_t describe(std::uint32_t address, int leading) {
  require(address % 1024 == 0 && address < 228 * 1024 && leading % 1024 == 0);
  const auto encode = [](std::uint32_t bytes) { return static_cast<std::uint64_t>((bytes & 0x3FFFF) >> 4); };
  return encode(address) | encode(static_cast<std::uint32_t>(leading)) << 16 | encode(1024) << 32 | std::uint64_t{1} << 62;
}
/// The descriptor `bytes` further on.
__device__ inline std::uint64_t advanced(std::uint64_t descriptor, int bytes) {
  return descriptor + static_cast<std::uint64_t>(bytes >> 4);
}

__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ inline void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/// Keeps the compiler from moving uses of accumulators and operands across begin and wait.
template <int N>
__device__ inline void hold(float (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
template <int N>
__device__ inline void hold(std::uint32_t (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(values[i])::"memory");
}

// One instruction each. Its text: TYPE is bf16 or f16; NAMES are the accumulators, then come A, B, the predicate that says
// whether the old accumulators count, and the transposition flags.
#define PERIPLUS_F8(d, o) \
  "+f"(d[o]), "+f"(d[o + 1]), "+f"(d[o + 2]), "+f"(d[o + 3]), "+f"(d[o + 4]), "+f"(d[o + 5]), "+f"(d[o + 6]), "+f"(d[o + 7])
#define PERIPLUS_F32(d, o) PERIPLUS_F8(d, o), PERIPLUS_F8(d, o + 8), PERIPLUS_F8(d, o + 16), PERIPLUS_F8(d, o + 24)
#define PERIPLUS_NAMES_32                                                                                              \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30," \
  "%31"
#define PERIPLUS_NAMES_64                                                                                                     \
  PERIPLUS_NAMES_32                                                                                                           \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61," \
  "%62,%63"
#define PERIPLUS_TEXT(TYPE, SHAPE, NAMES, A, B, P, FLAGS)                                                                           \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\nwgmma.mma_async.sync.aligned." SHAPE ".f32." TYPE "." TYPE " {" NAMES "}, " A ", " B \
  ", p, 1, 1, " FLAGS ";\n}\n"
#define PERIPLUS_SHARED(TYPE, SHAPE, NAMES, A, B, P, FLAGS, ...) \
  asm volatile(PERIPLUS_TEXT(TYPE, SHAPE, NAMES, A, B, P, FLAGS) \
               : __VA_ARGS__                                     \
               : "l"(a), "l"(b), "r"(accumulate), "n"(TransposeA), "n"(TransposeB))
#define PERIPLUS_REGISTERS(TYPE, SHAPE, NAMES, A, B, P, FLAGS, ...) \
  asm volatile(PERIPLUS_TEXT(TYPE, SHAPE, NAMES, A, B, P, FLAGS)    \
               : __VA_ARGS__                                        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TransposeB))

template <class T>
inline constexpr bool kIsBfloat16 = std::is_same_v<T, __nv_bfloat16>;

/// d [64][2 N] (+)= A [64][16] B [16][2 N] with N accumulators a thread; the old d counts unless `accumulate` is 0.
/// Accumulator 4 j + 2 i + c of lane l in warp w is row 16 w + l / 4 + 8 i, column 8 j + 2 (l % 4) + c.
template <class T, int TransposeA, int TransposeB, int N>
__device__ inline void product(float (&d)[N], std::uint64_t a, std::uint64_t b, int accumulate) {
  static_assert(N == 32 || N == 64);
  if constexpr (N == 32 && kIsBfloat16<T>) {
    PERIPLUS_SHARED("bf16", "m64n64k16", PERIPLUS_NAMES_32, "%32", "%33", "%34", "%35, %36", PERIPLUS_F32(d, 0));
  } else if constexpr (N == 32) {
    PERIPLUS_SHARED("f16", "m64n64k16", PERIPLUS_NAMES_32, "%32", "%33", "%34", "%35, %36", PERIPLUS_F32(d, 0));
  } else if constexpr (kIsBfloat16<T>) {
    PERIPLUS_SHARED("bf16", "m64n128k16", PERIPLUS_NAMES_64, "%64", "%65", "%66", "%67, %68", PERIPLUS_F32(d, 0), PERIPLUS_F32(d, 32));
  } else {
    PERIPLUS_SHARED("f16", "m64n128k16", PERIPLUS_NAMES_64, "%64", "%65", "%66", "%67, %68", PERIPLUS_F32(d, 0), PERIPLUS_F32(d, 32));
  }
}

/// The same with A from registers: what packed() makes of the accumulators of columns 16 k .. 16 k + 15.
template <class T, int TransposeB, int N>
__device__ inline void product(float (&d)[N], const std::uint32_t* a, std::uint64_t b, int accumulate) {
  static_assert(N == 32 || N == 64);
  if constexpr (N == 32 && kIsBfloat16<T>) {
    PERIPLUS_REGISTERS("bf16", "m64n64k16", PERIPLUS_NAMES_32, "{%32,%33,%34,%35}", "%36", "%37", "%38", PERIPLUS_F32(d, 0));
  } else if constexpr (N == 32) {
    PERIPLUS_REGISTERS("f16", "m64n64k16", PERIPLUS_NAMES_32, "{%32,%33,%34,%35}", "%36", "%37", "%38", PERIPLUS_F32(d, 0));
  } else if constexpr (kIsBfloat16<T>) {
    PERIPLUS_REGISTERS("bf16", "m64n128k16", PERIPLUS_NAMES_64, "{%64,%65,%66,%67}", "%68", "%69", "%70", PERIPLUS_F32(d, 0),
                       PERIPLUS_F32(d, 32));
  } else {
    PERIPLUS_REGISTERS("f16", "m64n128k16", PERIPLUS_NAMES_64, "{%64,%65,%66,%67}", "%68", "%69", "%70", PERIPLUS_F32(d, 0),
                       PERIPLUS_F32(d, 32));
  }
}
#undef PERIPLUS_F8
#undef PERIPLUS_F32
#undef PERIPLUS_NAMES_32
#undef PERIPLUS_NAMES_64
#undef PERIPLUS_TEXT
#undef PERIPLUS_SHARED
#undef PERIPLUS_REGISTERS

template <class T>
__device__ inline std::uint32_t pack(float low, float high) {
  if constexpr (kIsBfloat16<T>) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const std::uint32_t&>(both);
  } else {
    const __half2 both = __floats2half2_rn(low, high);
    return reinterpret_cast<const std::uint32_t&>(both);
  }
}

template <class T>
__device__ inline float2 unpack(std::uint32_t both) {
  if constexpr (kIsBfloat16<T>) {
    return {__uint_as_float(both << 16), __uint_as_float(both & 0xFFFF0000)};
  } else {
    return __half22float2(reinterpret_cast<const __half2&>(both));
  }
}

}  // namespace periplus::kernels::cuda::hopper
