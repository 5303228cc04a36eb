#pragma once

namespace periplus::kernels {

/// Whether a result replaces what the destination holds or is folded into it.
enum class Update { overwrite, accumulate };

}  // namespace periplus::kernels
