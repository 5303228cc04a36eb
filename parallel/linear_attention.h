#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/linear_attention.h"
#include "parallel/attention.h"
#include "parallel/layout.h"
#include "parallel/plan/plan.h"
#include "parallel/problem.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor.h"
#include "runtime/trace.h"

namespace periplus {

/// log_decay of a problem: absent, one number per token and head, or one per channel of the key too.
enum class Decay : std::uint8_t { none, scalar, diagonal };

/// What is added to sums of weights before they divide, if nothing else is said.
inline constexpr double kNormaliserEpsilon = 1e-6;

/// One distributed linear attention or delta rule (kernels/linear_attention.h): what is computed. Equal on all ranks. A state
/// ends with its document.
struct LinearAttentionProblem {
  SequenceLayout layout;
  int heads = 1;
  int head_size = 64;
  int value_size = 0;        ///< 0: the head size.
  DType dtype = DType::f32;  ///< Storage type of q, k, v, out: f64, f32, bf16 or f16.
  Decay decay = Decay::none;
  bool delta_rule = false;  ///< beta is given.
  /// A token attends to all of its document: sums run over the tokens behind it too, which decay as those before it do
  /// (kernels/linear_tokens.h). Not with the delta rule, as normalise.
  bool bidirectional = false;
  bool normalise = false;  ///< out is divided by epsilon + the sum of the weights, which is what out is for values of 1.
  double epsilon = kNormaliserEpsilon;
  double scale = 0;  ///< 0: 1/sqrt(head_size).

  int value() const noexcept { return value_size != 0 ? value_size : head_size; }
  double scale_or_default() const { return scale != 0 ? scale : 1 / std::sqrt(static_cast<double>(head_size)); }
  kernels::Transition transition() const noexcept;
  /// Columns of a state: those of v, and one for the sum of the weights.
  int state_columns() const noexcept { return value() + (normalise ? 1 : 0); }
  /// Numbers of one state, and of one element: the state with its transition.
  std::int64_t state_width() const noexcept { return static_cast<std::int64_t>(head_size) * state_columns(); }
  std::int64_t element_width() const noexcept { return kernels::transition_width(transition(), head_size) + state_width(); }
  std::uint64_t digest() const;
};

/// How states get from rank to rank. Equal on all ranks.
struct LinearAttentionOptions {
  /// lasp2: one all-gather of elements, every rank folds them; lasp: a state goes from unit to unit; all_scan: the same in slices
  /// that follow each other.
  std::string strategy = "lasp2";
  /// Groups of heads: while the states of one travel, another is computed. 0: the strategy's own choice.
  int pieces = 0;
  /// Plan layouts that cut a rank's tokens into more than two units, although each moves a state of its own.
  bool any_layout = false;
  /// Delta rule by lasp2: forward keeps the transitions that it gathers, and backward does not gather them again. Costs memory for
  /// head_size^2 accumulator numbers per unit of any rank and head, and spares as many in every message of backward.
  bool keep_transitions = false;
  std::uint64_t digest() const;
};

plan::Program make_program(const LinearAttentionProblem& problem, const LinearAttentionOptions& options, Pass pass, int rank);
plan::Plan make_plan(const LinearAttentionProblem& problem, const LinearAttentionOptions& options, Pass pass);
/// The same for many plans: see PlanMaker.
plan::Plan& make_plan(const LinearAttentionProblem& problem, const LinearAttentionOptions& options, Pass pass, plan::PlanMaker& maker);

/// Rows and heads of inputs and of out may have any strides; widths are contiguous.
struct LinearAttentionInputs {
  ConstTensorView q, k;            ///< [rows, heads, head_size], this rank's rows of the layout
  ConstTensorView v;               ///< [rows, heads, value_size]
  ConstTensorView log_decay = {};  ///< [rows, heads, 1 or head_size], accumulator type, natural log, <= 0; empty unless problem.decay
  ConstTensorView beta = {};       ///< [rows, heads, 1], accumulator type; empty unless problem.delta_rule
};
struct LinearAttentionOutputs {
  TensorView out;               ///< [rows, heads, value_size], storage type
  TensorView incoming;          ///< [units, heads, state_width], accumulator type: the state at the start of each of the rank's
                                ///< units, which backward needs
  TensorView transitions = {};  ///< [transition_rows, heads, head_size^2], accumulator type; empty unless options.keep_transitions
  TensorView following = {};    ///< As incoming, of the tokens behind the units; empty unless problem.bidirectional
  TensorView normaliser = {};   ///< [rows, heads, 1], accumulator type: the divisors; empty unless problem.normalise
};
/// Memory of what forward leaves for backward beside out; empty tensors where there is nothing.
struct LinearAttentionStates {
  Tensor incoming, transitions, following, normaliser;
  LinearAttentionOutputs outputs(TensorView out) const;
};
/// Dense. Neither these nor LinearAttentionOutputs may share memory with anything else.
struct LinearAttentionGradients {
  TensorView dq, dk, dv;                   ///< As q, k, v, in storage type.
  TensorView dlog_decay = {}, dbeta = {};  ///< As log_decay and beta.
};

/// Linear attention over the ranks of a communicator: plans once, then runs forward and backward as often as wanted. Collective
/// as DistributedAttention is.
class DistributedLinearAttention {
 public:
  DistributedLinearAttention(LinearAttentionProblem problem, LinearAttentionOptions options, comm::Communicator communicator, Memory memory,
                             Tracer* tracer = nullptr, Stream stream = {});
  ~DistributedLinearAttention();
  DistributedLinearAttention(DistributedLinearAttention&&) noexcept;
  DistributedLinearAttention& operator=(DistributedLinearAttention&&) noexcept;

  const LinearAttentionProblem& problem() const noexcept;
  /// Units of this rank: rows of `incoming`.
  std::int64_t units() const noexcept;
  /// Rows of `transitions`: units of all ranks; 0 where none are gathered, or none are kept.
  std::int64_t transition_rows() const noexcept;
  LinearAttentionStates make_states(const Memory& memory) const;
  void forward(const LinearAttentionInputs& inputs, const LinearAttentionOutputs& outputs);
  /// Needs what forward was given and its outputs as it left them (out only with a normaliser); nothing of forward is run again.
  void backward(const LinearAttentionInputs& inputs, const LinearAttentionOutputs& outputs, ConstTensorView dout,
                const LinearAttentionGradients& results);
  const plan::Program& program(Pass pass) const;
  AttentionStatistics statistics() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace periplus
