#pragma once

#include <cstddef>

#include <cuda_runtime.h>

namespace periplus::kernels::cuda {

/// Ordinary memory to the current device, in the order of `stream`. The host goes on at once, and `from` may change: a copy that the
/// driver would hold until the stream gets there goes by way of page-locked memory, which is kept for later copies.
void copy_from_host(void* to, const void* from, std::size_t bytes, cudaStream_t stream);

}  // namespace periplus::kernels::cuda
