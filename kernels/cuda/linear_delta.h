#pragma once

#include <cuda_runtime.h>

#include "kernels/attention_problem.h"
#include "kernels/cuda/linear_segments.h"

/// What the kernels of the delta rule on matrix instructions take (algorithms.md 6.2, 6.3). Chunks have kLinearChunk tokens and begin at
/// multiples of that in their run. Names are those of algorithms.md, where T is `inverse` and Nn `news`.
namespace periplus::kernels::cuda::portable {

/// Tensors between the kernels of a call, of storage type: rows are those of the operands, and states of chunks stand transposed, [E,D].
template <class T>
struct DeltaScratch {
  T* inverse;              ///< [chunk][head][row][column] of (I + Lm)^-1
  Strided<T> u, w;         ///< T diag(beta) V and T diag(beta exp(g)) K
  Strided<T> news, dnews;  ///< What tokens add under their keys, and its gradient.
  T *states, *dstates;     ///< [chunk][head][E][D]: S before, and dS behind each chunk.
  float* met;              ///< [chunk][head][warp]: <S before, dS behind>, by columns.
};

/// Where states of walks come from and go.
struct DeltaEnds {
  Strided<const float> start;  ///< Row by row, of the segment's unit; null: from zero.
  bool identity;               ///< From the identity, and nothing is added: the columns of the transition.
  Strided<float> end;          ///< Null: nowhere.
};

template <class T>
struct Delta {
  Strided<const T> q, k, v, dout;  ///< v null: of width width_v, and zero.
  Strided<const float> log_decay, beta;
  std::int32_t heads, width_k, width_v;
  float scale;
  const Segment* segments;  ///< chunk0 is the number of a segment's first chunk in the call.
  DeltaScratch<T> scratch;  ///< Null where it is not read or not wanted.
  DeltaEnds ends;
  Strided<T> out, dq, dk, dv;
  Strided<float> dlog_decay, dbeta;
};

/// One launch over `segments` segments and all heads. Widths up to 128.
/// inverse, u (where there is a v) and w; a segment is one chunk.
template <class T>
void launch_delta_prepare(const Delta<T>& delta, std::int64_t segments, cudaStream_t stream);
/// S from chunk to chunk, from u and w. With `out` the outputs; with scratch.news also news and states.
template <class T>
void launch_delta_forward(const Delta<T>& delta, std::int64_t segments, cudaStream_t stream);
/// dS from chunk to chunk, from the last one on. With scratch.dnews also dnews, dstates and met.
template <class T>
void launch_delta_backward(const Delta<T>& delta, std::int64_t segments, cudaStream_t stream);
/// Gradients of all operands, chunk by chunk, from all of scratch.
template <class T>
void launch_delta_gradients(const Delta<T>& delta, std::int64_t segments, cudaStream_t stream);

}  // namespace periplus::kernels::cuda::portable
