#pragma once

#include "kernels/linear_attention_problem.h"
#include "runtime/device.h"

/// Linear attention and the delta rule chunk by chunk (algorithms.md 5 and 6): storage S = float, bfloat16 or float16, arithmetic
/// and states f32, instruction set by cpu_level(). Arguments are already checked.
///
/// Work     Items are (run, head): a call uses as many threads as it has of them.
/// Memory   Scratch per thread: a few dozen chunks, and in backward a state for every 512 rows of the longest run, 512 at most.
/// Errors   NaN and infinity may reach rows of their chunk that come before them, besides those behind.
namespace periplus::kernels::cpu {

template <class S>
void unit_states(const LinearProblem<S, float>& problem, Strided<float> elements, StreamView stream);

template <class S>
void unit_states_backward(const LinearProblem<S, float>& problem, Strided<const S> dout, Strided<float> elements, StreamView stream);

template <class S>
void unit_apply(const LinearProblem<S, float>& problem, Strided<const float> incoming, Strided<S> out, StreamView stream);

template <class S>
void unit_apply_backward(const LinearProblem<S, float>& problem, Strided<const float> incoming, Strided<const S> dout,
                         Strided<const float> doutgoing, const LinearResults<S, float>& results, StreamView stream);

}  // namespace periplus::kernels::cpu
