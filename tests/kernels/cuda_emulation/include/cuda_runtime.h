#pragma once
// What the kernels under emulation use of the CUDA runtime. Device memory is ordinary memory, and all work is done at once.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "tests/kernels/cuda_emulation/emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

inline const auto& threadIdx = periplus::emulation::place().thread;
inline const auto& blockIdx = periplus::emulation::place().block;
inline const auto& blockDim = periplus::emulation::place().block_extent;
inline const auto& gridDim = periplus::emulation::place().grid_extent;

using std::max;
using std::min;

struct dim3 : periplus::emulation::Index {
  dim3(unsigned x_extent = 1, unsigned y_extent = 1, unsigned z_extent = 1) : Index{x_extent, y_extent, z_extent} {}
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), const Arguments&... arguments) {
  periplus::emulation::run_grid(config->gridDim, config->blockDim, config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
using cudaMemPool_t = void*;
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold };
inline cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t*, int) { return cudaSuccess; }
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
/// Uninitialised memory holds NaN.
inline cudaError_t cudaMallocAsync(void** data, std::size_t bytes, cudaStream_t) {
  *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*data, 0xff, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void* data, cudaStream_t) {
  std::free(data);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

inline void __syncthreads() { periplus::emulation::wait_for_block(); }
inline void __syncwarp() {
  periplus::emulation::with_warp(nullptr, nullptr, [](const void* const*, void* const*) {});
}

namespace periplus::emulation {
template <class T>
struct Shuffled {
  T value;
  int mask;
};
/// Lane l gets the value of lane source(l, mask).
template <class T, unsigned (*source)(unsigned lane, int mask)>
T shuffle(T value, int mask) {
  const Shuffled<T> operand{value, mask};
  T result;
  with_warp(&operand, &result, [](const void* const* operands, void* const* results) {
    for (unsigned lane = 0; lane < 32; ++lane) {
      const auto* const own = static_cast<const Shuffled<T>*>(operands[lane]);
      *static_cast<T*>(results[lane]) = static_cast<const Shuffled<T>*>(operands[source(lane, own->mask)])->value;
    }
  });
  return result;
}
inline unsigned other_lane(unsigned lane, int mask) { return lane ^ static_cast<unsigned>(mask); }
inline unsigned that_lane(unsigned, int lane) { return static_cast<unsigned>(lane) % 32; }
inline unsigned lower_lane(unsigned lane, int distance) {
  return lane >= static_cast<unsigned>(distance) ? lane - static_cast<unsigned>(distance) : lane;
}
}  // namespace periplus::emulation

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return periplus::emulation::shuffle<T, periplus::emulation::other_lane>(value, mask);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return periplus::emulation::shuffle<T, periplus::emulation::that_lane>(value, lane);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
  return periplus::emulation::shuffle<T, periplus::emulation::lower_lane>(value, distance);
}

/// Fibers do not run at the same time.
inline unsigned atomicOr(unsigned* to, unsigned bits) {
  const unsigned before = *to;
  *to |= bits;
  return before;
}

namespace periplus::kernels::cuda {
using std::exp;
using std::fabs;
using std::fmax;
using std::log1p;
using std::sqrt;
}  // namespace periplus::kernels::cuda
