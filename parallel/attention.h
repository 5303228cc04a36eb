#pragma once

#include <memory>

#include "parallel/plan/plan.h"
#include "parallel/problem.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor.h"
#include "runtime/trace.h"

namespace periplus {
namespace plan {
class PlanMaker;
}

/// This rank's program of one pass. Throws InvalidArgument, with the reason and the nearest supported choice, if the
/// combination cannot be planned. Cost: at most a millisecond for 64 ranks and 100 documents, but for
/// strategy "auto", which makes the plans of all of them first (choose.h).
plan::Program make_program(const AttentionProblem& problem, const AttentionOptions& options, Pass pass, int rank);
/// The programs of all ranks and the claim that verify() holds them to.
plan::Plan make_plan(const AttentionProblem& problem, const AttentionOptions& options, Pass pass);
/// The same for many plans: see PlanMaker.
plan::Plan& make_plan(const AttentionProblem& problem, const AttentionOptions& options, Pass pass, plan::PlanMaker& maker);

/// What a running plan costs this rank, summed over calls.
struct AttentionStatistics {
  double seconds = 0;          ///< In forward() and backward(); on a device that is enqueuing only.
  double exposed_seconds = 0;  ///< Of these, waiting for messages with no kernel running; 0 on a device.
  double flops = 0;            ///< Counted from the bands: 2(D+E)H forward, (6D+4E)H backward, per allowed pair.
};

/// Rows and heads of inputs and outputs may have any strides (k and v only without problem.contiguous_kv); widths are contiguous.
struct AttentionInputs {
  ConstTensorView q;          ///< [rows, q_heads, head_size], this rank's rows of the layout
  ConstTensorView k;          ///< [rows, kv_heads, head_size]
  ConstTensorView v;          ///< [rows, kv_heads, value_size]
  ConstTensorView sink = {};  ///< [1, q_heads, 1], accumulator type; empty unless problem.sink
};
struct AttentionOutputs {
  TensorView out;  ///< [rows, q_heads, value_size], storage type
  TensorView lse;  ///< [rows, q_heads, 1], accumulator type (f32; f64 for f64), natural log
};
struct AttentionOutputGradients {
  ConstTensorView dout;       ///< As out.
  ConstTensorView dlse = {};  ///< As lse; empty unless problem.lse_gradient.
};
/// Dense. Neither these nor AttentionOutputs may share memory with anything else.
struct AttentionInputGradients {
  TensorView dq, dk, dv;  ///< As q, k, v, in storage type.
  TensorView dsink = {};  ///< As sink: this rank's part; the caller sums it over ranks with its parameter gradients.
};

/// Softmax attention over the ranks of a communicator: plans once, then runs forward and backward as often as wanted.
/// Collective: every rank of the communicator makes the same one and calls the same methods in the same order.
/// On a CUDA stream tensors are in memory of its device, calls return when all is enqueued, and results are there once the
/// stream has passed; until then tensors and this object must live.
class DistributedAttention {
 public:
  /// problem.layout.ranks() == communicator.size(). Compares the problem's digest with all ranks unless told not to.
  /// `memory` is of the stream's device; the workspace comes from it.
  DistributedAttention(AttentionProblem problem, AttentionOptions options, comm::Communicator communicator, Memory memory,
                       Tracer* tracer = nullptr, Stream stream = {});
  ~DistributedAttention();
  DistributedAttention(DistributedAttention&&) noexcept;
  DistributedAttention& operator=(DistributedAttention&&) noexcept;

  const AttentionProblem& problem() const noexcept;
  /// The progress of messages is driven from inside the kernels. On the CPU returns when outputs are complete and inputs may
  /// change.
  void forward(const AttentionInputs& inputs, const AttentionOutputs& outputs);
  /// Needs what forward was given and returned; nothing of forward is run again.
  void backward(const AttentionInputs& inputs, const AttentionOutputs& outputs, const AttentionOutputGradients& gradients,
                const AttentionInputGradients& results);
  const plan::Program& program(Pass pass) const;
  AttentionStatistics statistics() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace periplus
