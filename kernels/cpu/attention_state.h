#pragma once

#include "kernels/attention_problem.h"

/// The row-wise steps around blockwise attention: merge, finish, delta (algorithms.md 1.2, 1.4, 1.5). The f64
/// instantiations are the reference. Arguments are already checked.
namespace periplus::kernels::cpu {

struct RowShape {
  std::int64_t rows, heads, width;
};

template <class A>
void merge(const RowShape& shape, Strided<const A> part_out, Strided<const A> part_lse, Strided<A> out, Strided<A> lse, StreamView stream);

/// sink.data may be null.
template <class A, class S>
void finish(const RowShape& shape, Strided<const A> state_out, Strided<const A> state_lse, Strided<const A> sink, Strided<S> out,
            Strided<A> lse, StreamView stream);

/// dlse.data may be null.
template <class A, class S, class O>
void delta(const RowShape& shape, Strided<const S> dout, Strided<const O> out, Strided<const A> dlse, Strided<A> delta, StreamView stream);

template <class A>
void sink_gradient(const RowShape& shape, Strided<const A> lse, Strided<const A> sink, Strided<const A> delta, Strided<A> dsink,
                   StreamView stream);

}  // namespace periplus::kernels::cpu
