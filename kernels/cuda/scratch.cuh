#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include <cuda_runtime.h>

#include "runtime/cuda/check.h"

namespace periplus::kernels::cuda {

/// Device memory in the order of a stream: others get it once the stream has passed the destructor.
template <class T>
class Scratch {
 public:
  Scratch(std::int64_t count, cudaStream_t stream) : stream_(stream) {
    void* data = nullptr;
    periplus::cuda::check(cudaMallocAsync(&data, static_cast<std::size_t>(std::max<std::int64_t>(count, 1)) * sizeof(T), stream),
                          "cudaMallocAsync of a work area");
    data_ = static_cast<T*>(data);
  }
  /// A copy. Ordinary memory is staged before this returns.
  Scratch(std::span<const T> values, cudaStream_t stream) : Scratch(static_cast<std::int64_t>(values.size()), stream) {
    if (values.empty()) return;
    periplus::cuda::check(cudaMemcpyAsync(data_, values.data(), values.size_bytes(), cudaMemcpyHostToDevice, stream),
                          "cudaMemcpyAsync of a work area");
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
