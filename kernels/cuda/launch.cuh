#pragma once

#include <cstddef>
#include <string_view>

#include <cuda_runtime.h>

#include "runtime/cuda/check.h"

namespace periplus::kernels::cuda {

/// kernel<<<grid, threads, shared_bytes, stream>>>(arguments...) as a call, so that host compilers can read it too. Nothing if the grid
/// is empty.
template <class... Parameters, class... Arguments>
void launch(std::string_view what, void (*kernel)(Parameters...), dim3 grid, unsigned threads, std::size_t shared_bytes,
            cudaStream_t stream, const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  periplus::cuda::check(cudaLaunchKernelEx(&config, kernel, arguments...), what);
}

}  // namespace periplus::kernels::cuda
