#pragma once

#include <cuda_runtime.h>

#include "kernels/attention_problem.h"
#include "kernels/cuda/linear_segments.h"

/// What becomes of the states of segments.
namespace periplus::kernels::cuda {

/// slots [slot][head][numbers] and totals [slot][head][decays] of segments in the order of a pass: with as many decays as a state has
/// rows, each is that of a row; else there is one.
struct SlotStates {
  float* slots;
  const float* totals;
  std::int64_t heads, numbers, decays;
};

/// Each slot of a fold but its first := state behind its segment: total * slot before + slot. Device memory.
void fold_slots(const SlotStates& states, const Segments::Fold* folds, std::int64_t count, cudaStream_t stream);

/// Row `unit` of elements := the transition of `decay_width` numbers (0, or states.decays), then the fold of its slots; of none: what
/// changes nothing. `closing` [unit]: a row of log_decay that is to act on all of it, or -1.
void fold_elements(const SlotStates& states, const Segments::Fold* folds, std::int64_t units, std::int64_t decay_width,
                   Strided<const float> log_decay, const std::int64_t* closing, Strided<float> elements, cudaStream_t stream);

/// Into how many sums over some of the columns those over a row of results, or over a state, are split.
struct NoteParts {
  std::int64_t of_q, of_k, of_ends;
};
/// dots of the two walks [part][head][row] and ends [block][head][part] as in DecayGradient (linear_walk.h).
struct DecayNotes {
  const float *dots_of_q, *dots_of_k, *ends;
  std::int64_t rows, heads;
  NoteParts parts;
};
/// dlog_decay of every token of the blocks.
void sum_decay_gradient(const DecayNotes& notes, const DecayBlock* blocks, std::int64_t count, Strided<const float> log_decay,
                        Strided<float> dlog_decay, cudaStream_t stream);

/// The same by channel: products of the two walks [row][head][channel], ends [block][head][channel].
struct ChannelNotes {
  const float *products_of_q, *products_of_k, *ends;
  std::int64_t heads, channels;
};
void sum_channel_gradient(const ChannelNotes& notes, const DecayBlock* blocks, std::int64_t count, Strided<const float> log_decay,
                          Strided<float> dlog_decay, cudaStream_t stream);

}  // namespace periplus::kernels::cuda
