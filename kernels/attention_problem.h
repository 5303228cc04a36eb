#pragma once

#include <cstdint>

#include "kernels/attention.h"

/// What a checked attention call hands to an implementation: plain data, no member functions, so that code compiled for
/// different instruction sets can share it.
namespace periplus::kernels {

/// [rows, heads, width] with contiguous width; strides count elements.
template <class T>
struct Strided {
  T* data;
  std::int64_t row, head;
};

struct AttentionShape {
  std::int64_t query_rows, key_rows;
  std::int64_t heads, kv_heads;
  std::int64_t width_qk, width_v;  ///< D, E
};

/// S is the storage type, A the type of state and gradients.
template <class S, class A>
struct ForwardProblem {
  AttentionShape shape;
  double scale, softcap;
  Strided<const S> q, k, v;
  Strided<A> out, lse;
  bool overwrite;
};

template <class S, class A>
struct BackwardProblem {
  AttentionShape shape;
  double scale, softcap;
  Strided<const S> q, k, v, dout;
  Strided<const A> lse, delta;
  Strided<A> dq, dk, dv;
  bool overwrite_dq, overwrite_dkdv;
};

}  // namespace periplus::kernels
