#pragma once

#include "runtime/dtype.h"

namespace periplus::kernels::cpu {

/// Kernels of one instruction set for all storage types.
template <template <class> class Kernels>
struct KernelSet {
  Kernels<float> f32;
  Kernels<bfloat16> bf16;
  Kernels<float16> f16;
};

}  // namespace periplus::kernels::cpu
