#pragma once

#include "kernels/linear_attention_problem.h"

/// Linear attention and the delta rule token by token, as linear_attention.h writes the recurrence: all arithmetic f64, every
/// decay with and without the delta rule. It is what f64 tensors run on and what faster implementations are tested against.
/// Arguments are already checked. A decay per channel under the delta rule is Kimi delta attention.
namespace periplus::kernels::reference {

/// Instantiated for (S, A) = (double, double), (float, float), (bfloat16, float), (float16, float).
template <class S, class A>
void unit_states(const LinearProblem<S, A>& problem, Strided<A> elements, StreamView stream);

template <class S, class A>
void unit_states_backward(const LinearProblem<S, A>& problem, Strided<const S> dout, Strided<A> elements, StreamView stream);

template <class S, class A>
void unit_apply(const LinearProblem<S, A>& problem, Strided<const A> incoming, Strided<S> out, StreamView stream);

template <class S, class A>
void unit_apply_backward(const LinearProblem<S, A>& problem, Strided<const A> incoming, Strided<const S> dout, Strided<const A> doutgoing,
                         const LinearResults<S, A>& results, StreamView stream);

}  // namespace periplus::kernels::reference
