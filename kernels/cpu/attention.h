#pragma once

#include <span>

#include "kernels/attention_problem.h"

/// Vectorised blockwise attention: storage S = float, bfloat16 or float16, arithmetic and state f32, instruction set by cpu_level().
/// Arguments are already checked.
namespace periplus::kernels::cpu {

template <class S>
void attend(const ForwardProblem<S, float>& problem, std::span<const Band> bands, StreamView stream);

template <class S>
void attend_backward(const BackwardProblem<S, float>& problem, std::span<const Band> bands, StreamView stream);

}  // namespace periplus::kernels::cpu
