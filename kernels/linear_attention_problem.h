#pragma once

#include <cstdint>

#include "kernels/attention_problem.h"
#include "kernels/linear_attention.h"

/// What a checked call of linear_attention.h hands to an implementation: plain data, as in attention_problem.h.
namespace periplus::kernels {

struct LinearShape {
  std::int64_t rows, units, heads;
  std::int64_t width_qk, width_v;  ///< D, E
  std::int64_t decay_width;        ///< 0, 1 or D
  Transition transition;
};

/// S is the storage type, A the accumulator type. Operands that were not given have data == nullptr.
template <class S, class A>
struct LinearProblem {
  LinearShape shape;
  double scale;
  Strided<const S> q, k, v;
  Strided<const A> log_decay, beta;
  const UnitRun* runs;
  std::int64_t run_count;
};

template <class S, class A>
struct LinearResults {
  Strided<S> dq, dk, dv;
  Strided<A> dlog_decay, dbeta;
};

}  // namespace periplus::kernels
