#pragma once

#include <string_view>

namespace periplus::kernels::no_cuda {

/// Throws BackendUnavailable that names the CMake option which would build the operation for CUDA devices.
[[noreturn]] void refuse(std::string_view operation);

}  // namespace periplus::kernels::no_cuda
