#pragma once

#include <span>

#include "kernels/attention_problem.h"

/// Attention as algorithms.md 1.1 and 1.2 write it: plain loops over allowed pairs, all arithmetic f64. It is what f64
/// tensors run on and what faster implementations are tested against. Arguments are already checked.
namespace periplus::kernels::reference {

/// Instantiated for (S, A) = (double, double), (float, float), (bfloat16, float).
template <class S, class A>
void attend(const ForwardProblem<S, A>& problem, std::span<const Band> bands, StreamView stream);

template <class S, class A>
void attend_backward(const BackwardProblem<S, A>& problem, std::span<const Band> bands, StreamView stream);

}  // namespace periplus::kernels::reference
