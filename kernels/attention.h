#pragma once

#include <span>

#include "kernels/band.h"
#include "kernels/update.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

/// Blockwise softmax attention: the maths of one (query block, key/value block) pair on one device.
///
/// Shapes   Every operand is [rows, heads, width] with contiguous width and any row and head strides. q [Nq,H,D];
///          k [Nk,Hkv,D], v [Nk,Hkv,E]; out, dout [Nq,H,E]; lse, delta [Nq,H,1]; query head h uses KV head h / (H/Hkv).
/// Types    q, k, v, dout share a storage type: bf16, f16 or f32 (state and gradients f32), or f64 (all f64).
/// Units    lse is the natural-log sum of exp of scaled, masked scores. The empty state is out = 0, lse = -inf.
/// Ranks    Local. Nothing here knows of ranks or of global positions: bands are in rows of the views.
/// Effects  Work is done when the stream has passed; the progress hook of the stream is called meanwhile. Results do not
///          depend on the number of threads, bit for bit.
/// Errors   InvalidArgument on shape, dtype or device mismatch; BackendUnavailable if the device is not built in.
namespace periplus::kernels {

struct AttentionBlock {
  ConstTensorView q, k, v;
  std::span<const Band> bands;  ///< Disjoint; rows and keys no band mentions do not attend.
  double scale = 1;
  double softcap = 0;  ///< c > 0: scores become c tanh(s/c) before the mask (algorithms.md 1.8); 0: off.
};

struct AttentionState {
  TensorView out;  ///< Normalised.
  TensorView lse;
};

/// Folds one key/value block into the running state (online softmax), or starts it with Update::overwrite: rows that no
/// band allows then become empty.
/// Cost     2 (D+E) H area flop. Allocates at most per-thread scratch that it keeps.
/// Source   Milakov & Gimelshein 2018 (online softmax); Dao et al. 2022 (tiling).
void attend(const AttentionBlock& block, const AttentionState& state, Update update, StreamView stream);

struct AttentionGradients {
  TensorView dq, dk, dv;
  Update update_dq = Update::overwrite;
  Update update_dkdv = Update::overwrite;
};

/// Gradients of one block given the *global* lse and delta of its query rows, so that blocks may be computed anywhere
/// and added (algorithms.md 1.2). Rows with lse = -inf contribute nothing.
/// Cost     (6D + 4E) H area flop.
void attend_backward(const AttentionBlock& block, ConstTensorView dout, ConstTensorView lse, ConstTensorView delta,
                     const AttentionGradients& gradients, StreamView stream);

/// state := merge(state, part) of two disjoint key sets (algorithms.md 1.4). Two empty states stay empty.
void merge(ConstTensorView part_out, ConstTensorView part_lse, const AttentionState& state, StreamView stream);

/// Ends a pass: applies the learnable sink logit (one per head, [1,H,1], may be an empty view; algorithms.md 1.5) and
/// casts to the storage type of `out`. `state` is left alone; out and lse may not alias it.
void finish(ConstTensorView state_out, ConstTensorView state_lse, ConstTensorView sink, TensorView out, TensorView lse, StreamView stream);

/// delta = <dout, out> - dlse per row and head; with a sink also dsink [1,H,1] := -sum_i exp(sink - lse_i) delta_i over
/// the local rows (to be summed over ranks by the caller). dlse, sink and dsink may be empty views.
void delta(ConstTensorView dout, ConstTensorView out, ConstTensorView lse, ConstTensorView dlse, ConstTensorView sink, TensorView delta,
           TensorView dsink, StreamView stream);

}  // namespace periplus::kernels
