// The kernels of one instruction set. Included once by each source of a level, after its products.
#pragma once

#include "kernels/cpu/linear/backward.h"

namespace periplus::kernels::cpu {
namespace {

template <class P, class S>
constexpr linear::Kernels<S> kRunKernels{scratch_bytes<P, S>, backward_scratch_bytes<P, S>, run_states<P, S>, run_states_backward<P, S>,
                                         run_apply<P, S>,     run_apply_backward<P, S>};
template <class P>
constexpr KernelSet<linear::Kernels> kAllRunKernels{kRunKernels<P, float>, kRunKernels<P, bfloat16>, kRunKernels<P, float16>};

}  // namespace
}  // namespace periplus::kernels::cpu
