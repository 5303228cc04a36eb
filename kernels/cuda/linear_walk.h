#pragma once

#include <cuda_runtime.h>

#include "kernels/attention_problem.h"
#include "kernels/cuda/linear_segments.h"

/// What the kernels of portable_linear.cuh take.
namespace periplus::kernels::cuda::portable {

/// What the two walks that give dq (rising) and dk (falling) note down for the gradient of a decay. With
/// u = q dq - k dk of a token, it is that of the next token plus u; every kDecayBlock tokens it starts anew from <S, dS>, so that
/// rounding does not add up along the run.
template <class T>
struct DecayGradient {
  Strided<const T> partner;  ///< The q or k to multiply results with.
  float* dots;               ///< [part][head][row]: partner times results of some columns, as warps have them. Of a decay per channel:
                             ///< [row][head][channel].
  std::int64_t rows;
  std::uint32_t* states;  ///< [block][head][pairs of numbers of a state]: behind each block, by the rising walk.
  float* ends;            ///< [block][head][part]: <S, dS> of some columns behind each block. dS at the next token, or behind the run.
                          ///< Of a decay per channel: [block][head][channel].
  Strided<const float> doutgoing;
};

/// Operands in their roles, and where states are.
template <class T>
struct Walk {
  Strided<const T> q, k, v;
  Strided<const float> log_decay;  ///< Null: no decay.
  bool by_channel;                 ///< Of the decay: one number for each channel of keys.
  Strided<T> out;
  const Segment* segments;
  Strided<const float> incoming;
  std::int32_t state_row, state_column;  ///< Strides of the state's rows and columns in `incoming`.
  float* slots;                          ///< [slot][head][width_k * width_v]
  std::int32_t slot_row, slot_column;    ///< Strides in a slot.
  float* totals;                         ///< [slot][head], by_channel [slot][head][width_k]: decay of the slot's segment.
  std::int32_t heads, width_k, width_v;
  float scale_values, scale_out, scale_incoming;
  bool reverse;
  DecayGradient<T> decay_gradient;
};

/// Walks over the same segments that one launch takes.
template <class T, int groups>
struct WalkSet {
  Walk<T> walk[groups];
};

/// One launch over `segments` segments and all heads. Instantiated for the device's bf16 and f16; widths up to 128.
/// States behind the segments alone, into slots of the same numbers.
template <class T>
void launch_states(const Walk<T>& walk, std::int64_t segments, cudaStream_t stream);
template <class T>
void launch_results(const Walk<T>& walk, std::int64_t segments, cudaStream_t stream);
/// With notes for the gradient of the decay, if there is room for them.
template <class T>
void launch_gradients(const Walk<T>& walk, std::int64_t segments, cudaStream_t stream);
/// Two walks of which one's k and v are the other's v and k.
template <class T>
void launch_gradients(const WalkSet<T, 2>& walks, std::int64_t segments, cudaStream_t stream);

/// The same where the decay is by channel: results by the channels of the walk's k, gradients by those of its v.
template <class T>
void launch_channel_states(const Walk<T>& walk, std::int64_t segments, cudaStream_t stream);
template <class T>
void launch_channel_results(const Walk<T>& walk, std::int64_t segments, cudaStream_t stream);
template <class T>
void launch_channel_gradients(const Walk<T>& walk, std::int64_t segments, cudaStream_t stream);

}  // namespace periplus::kernels::cuda::portable
