#pragma once

#include <span>

#include "kernels/linear_attention.h"

/// What stands around the recurrence of linear_attention.h, token by token: the other half of bidirectional attention, and the
/// normaliser (algorithms.md 5.4).
///
/// Bidirectional. out_t = scale q_t sum_s W_ts k_s^T v_s over all tokens s of the document, W_ts the product of the decays of the
/// tokens behind the earlier of the two up to the later one. That is the recurrence, and the same over the rows in falling order without
/// the token itself: the *mirrored* pass. It runs on views with negative row strides and a scale of 1, with the token itself, which
/// add_mirrored takes away. Between s > t it decays at t where the recurrence decays at t + 1: by mirror_decay.
///
/// Shapes, types and effects as linear_attention.h.
/// Errors   InvalidArgument on shape or dtype mismatch.
namespace periplus::kernels {

/// mirrored [N,H,T] := the log_decay of the next row, and 0 in the last row of each run: states are handed over decayed.
void mirror_decay(ConstTensorView log_decay, std::span<const UnitRun> runs, TensorView mirrored, StreamView stream);

/// states [U,H,D*E] of the units whose first run `enters` *= the decay of its first row: what the unit before is handed, or, the other
/// way, the gradient of the state in the row from that of what is handed over.
void decay_states(ConstTensorView log_decay, std::span<const UnitRun> runs, TensorView states, StreamView stream);

/// out += scale (mirrored - (q.k) v). Of `block`, q, k, v and scale are read.
void add_mirrored(const LinearBlock& block, ConstTensorView mirrored, TensorView out, StreamView stream);

/// gradients += scale times those of the mirrored pass, without what went through the token itself. `mirrored` holds what
/// unit_apply_backward made of the mirrored pass from dout, dlog_decay that of mirror_decay's result. The decay of the first row of a
/// run that `enters` multiplies the state handed over to the unit before: its gradient is that of the decay behind it, less what the
/// row itself sends there (5.3).
void add_mirrored_backward(const LinearBlock& block, ConstTensorView dout, const LinearGradients& mirrored,
                           const LinearGradients& gradients, StreamView stream);

/// extended [N,H,E+1] := values [N,H,E] and a 1: the recurrence sums the weights beside the values.
void extend_values(ConstTensorView values, TensorView extended, StreamView stream);

/// normaliser [N,H,1] := z + epsilon with z the last column of extended [N,H,E+1]; out [N,H,E] := its others / normaliser. normaliser
/// is of the accumulator type.
void normalise(ConstTensorView extended, double epsilon, TensorView out, TensorView normaliser, StreamView stream);

/// dextended := the gradient of `extended`, given those of out.
void normalise_backward(ConstTensorView dout, ConstTensorView out, ConstTensorView normaliser, TensorView dextended, StreamView stream);

}  // namespace periplus::kernels
