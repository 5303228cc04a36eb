#pragma once

#include <cstdint>
#include <span>

#include "kernels/update.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

/// Linear attention and the delta rule on one device (algorithms.md 5, 6). Per head, a state S [D,E] passes through the tokens:
///
///   S' = diag(exp(log_decay_t)) S        decay: none, one number per head, or one per channel of the key
///   n  = v_t                             linear attention
///   n  = beta_t (v_t - k_t S')           delta rule
///   S  = S' + k_t^T n,   out_t = scale q_t S
///
/// What a unit (tokens that follow each other on one rank) does to a state is an affine map S -> T S + M, its *element*. Elements
/// are made without knowing the incoming state, and folded in order they give it: that is all ranks have to exchange.
/// Backward runs the transposed maps in falling order: D -> T^T D + N, D being the gradient of a state.
///
/// Shapes   N rows, H heads, U units. q, k [N,H,D]; v, out, dout [N,H,E]; log_decay [N,H,1] or [N,H,D]; beta [N,H,1];
///          elements [U,H,T+D*E]: T numbers of the transition, then M (or N) row by row; incoming, doutgoing [U,H,D*E].
///          Widths are contiguous; rows and heads have any strides, 0 included for operands that are read.
/// Types    q, k, v, out, dout and their gradients share a storage type: bf16, f16, f32 or f64. All else is of the accumulator
///          type: f32, or f64 for f64.
/// Ranks    Local, but for UnitFold, which indexes elements in the order of the sequence.
/// Effects  As attention.h: work is done when the stream has passed, the progress hook is called meanwhile, results do not depend
///          on the number of threads, bit for bit. Only non-positive numbers are exponentiated.
/// Errors   InvalidArgument on shape, dtype or device mismatch; on CUDA devices, on widths above 256.
namespace periplus::kernels {

/// What a unit's transition multiplies a state with, and how many numbers T say so.
enum class Transition : std::uint8_t {
  identity,  ///< No decay: T = 0.
  scalar,    ///< T = 1.
  diagonal,  ///< T = D: one number per row of the state.
  dense      ///< Delta rule: T = D*D, row by row.
};
std::int64_t transition_width(Transition transition, std::int64_t head_size) noexcept;

/// Consecutive tokens of one document inside one unit. Runs are in the order of their rows and rows > 0.
struct UnitRun {
  std::int64_t row0 = 0, rows = 0;
  std::int64_t unit = 0;  ///< Row of elements, incoming and doutgoing. Units of a call are numbered from 0.
  bool enters = false;    ///< The document began before the unit: the run starts from `incoming`; else from zero.
  bool leaves = false;    ///< Last of its unit: its state leaves the unit; the gradient `doutgoing` comes in here.
  friend bool operator==(const UnitRun&, const UnitRun&) = default;
};

struct LinearBlock {
  ConstTensorView q, k, v;
  ConstTensorView log_decay = {};  ///< <= 0; empty: no decay.
  ConstTensorView beta = {};       ///< Given: delta rule.
  std::span<const UnitRun> runs = {};
  double scale = 1;  ///< Of q.
};

/// elements := (T, M) of the run of each unit that leaves it: its transition, and the state it makes from zero. Needs k, v,
/// log_decay and beta; q may be empty. Units without such a run get T = 1 (I), M = 0.
/// Cost     2 D E flop per token and head; delta rule: see algorithms.md 6.4.
void unit_states(const LinearBlock& block, TensorView elements, StreamView stream);

/// elements := (T, N) of the run of each unit that `enters`: its transition, and the gradient of its incoming state if that of the
/// outgoing one is zero. Needs q, log_decay, dout; for the delta rule also k and beta. Units without such a run as above.
void unit_states_backward(const LinearBlock& block, ConstTensorView dout, TensorView elements, StreamView stream);

/// Row `target` of the result is the fold of the elements [begin, end): nothing folds to zero.
struct UnitFold {
  std::int64_t target = 0, begin = 0, end = 0;
  friend bool operator==(const UnitFold&, const UnitFold&) = default;
};

/// states[target] := fold of elements begin .. end-1, each S := T S + M (or with reverse: end-1 .. begin, S := T^T S + N), from zero;
/// with Update::accumulate from what states[target] holds. Folds that begin (reverse: end) where an earlier one does go on from
/// its result if they hold it.
/// Shapes   elements [n,H,T+D*E], states [m,H,D*E].
/// Cost     D E flop per element and head; dense 2 D D E.
void unit_scan(ConstTensorView elements, std::span<const UnitFold> folds, Transition transition, bool reverse, TensorView states,
               Update update, StreamView stream);

/// out := the recurrence over all runs.
/// Cost     4 D E + 2 C (D + E) flop per token and head with chunks of C tokens; the delta rule about twice that.
/// Source   Qin et al. 2024 (lightning attention), Yang et al. 2024 (GLA; delta rule in WY form).
void unit_apply(const LinearBlock& block, ConstTensorView incoming, TensorView out, StreamView stream);

struct LinearGradients {
  TensorView dq, dk, dv;       ///< Storage type.
  TensorView dlog_decay = {};  ///< As log_decay. At tokens that begin a document 0.
  TensorView dbeta = {};
};

/// Gradients of all inputs, given that of the state that leaves each unit. Everything is overwritten; rows in no run are left alone.
/// Cost     About 2.5 times that of unit_apply.
void unit_apply_backward(const LinearBlock& block, ConstTensorView incoming, ConstTensorView dout, ConstTensorView doutgoing,
                         const LinearGradients& gradients, StreamView stream);

}  // namespace periplus::kernels
