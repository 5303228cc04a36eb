#pragma once

#include <source_location>
#include <string_view>

#include <cuda_runtime.h>

/// For the CUDA leaf files of runtime/ and kernels/ only.
namespace periplus::cuda {

/// Throws DeviceError with the call, what CUDA says of it, and the place, unless `status` is success.
void check(cudaError_t status, std::string_view call, std::source_location place = std::source_location::current());

}  // namespace periplus::cuda
