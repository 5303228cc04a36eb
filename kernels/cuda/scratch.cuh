#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <span>

#include <cuda_runtime.h>

#include "kernels/cuda/staging.h"
#include "runtime/cuda/check.h"

namespace periplus::kernels::cuda {

/// Lets the current device keep this much of what was freed: else every wait gives it back, and the next call has to get it anew, which
/// takes longer than many a kernel.
inline void keep_freed_memory() {
  constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 30;
  constexpr int kMostDevices = 64;
  static std::atomic<bool> done[kMostDevices];
  int device = 0;
  periplus::cuda::check(cudaGetDevice(&device), "cudaGetDevice");
  if (device >= kMostDevices || done[device].exchange(true)) return;
  cudaMemPool_t pool = nullptr;
  periplus::cuda::check(cudaDeviceGetDefaultMemPool(&pool, device), "cudaDeviceGetDefaultMemPool");
  std::uint64_t bytes = kMostBytes;
  periplus::cuda::check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &bytes), "cudaMemPoolSetAttribute");
}

/// Device memory in the order of a stream: others get it once the stream has passed the destructor.
template <class T>
class Scratch {
 public:
  Scratch(std::int64_t count, cudaStream_t stream) : stream_(stream) {
    keep_freed_memory();
    void* data = nullptr;
    periplus::cuda::check(cudaMallocAsync(&data, static_cast<std::size_t>(std::max<std::int64_t>(count, 1)) * sizeof(T), stream),
                          "cudaMallocAsync of a work area");
    data_ = static_cast<T*>(data);
  }
  /// A copy of ordinary memory as it is now.
  Scratch(std::span<const T> values, cudaStream_t stream) : Scratch(static_cast<std::int64_t>(values.size()), stream) {
    copy_from_host(data_, values.data(), values.size_bytes(), stream);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { cudaFreeAsync(data_, stream_); }

  T* data() const noexcept { return data_; }

 private:
  T* data_ = nullptr;
  cudaStream_t stream_;
};

}  // namespace periplus::kernels::cuda
