#include "parallel/execute/recurrence.h"

#include "kernels/linear_attention.h"
#include "parallel/plan/ops.h"
#include "runtime/error.h"

namespace periplus::execute {

using plan::Op;

void run_recurrence(const plan::Program& program, const plan::Step& step, std::span<const TensorView> t, StreamView stream) {
  const auto block = [&](const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& log_decay,
                         const TensorView& beta) {
    return kernels::LinearBlock{q, k, v, log_decay, beta, program.runs_of(step), step.scale};
  };
  switch (step.op) {
    case Op::unit_states: {
      using namespace plan::unit_states_operand;
      return kernels::unit_states(block({}, t[k], t[v], t[log_decay], t[beta]), t[elements], stream);
    }
    case Op::unit_states_backward: {
      using namespace plan::unit_states_backward_operand;
      return kernels::unit_states_backward(block(t[q], t[k], {}, t[log_decay], t[beta]), t[dout], t[elements], stream);
    }
    case Op::unit_scan: {
      using namespace plan::unit_scan_operand;
      const bool adds = program.accesses_of(step)[states].mode == plan::Mode::add;
      return kernels::unit_scan(t[elements], program.folds_of(step), step.transition, step.reverse, t[states],
                                adds ? kernels::Update::accumulate : kernels::Update::overwrite, stream);
    }
    case Op::unit_apply: {
      using namespace plan::unit_apply_operand;
      return kernels::unit_apply(block(t[q], t[k], t[v], t[log_decay], t[beta]), t[incoming], t[out], stream);
    }
    case Op::unit_apply_backward: {
      using namespace plan::unit_apply_backward_operand;
      return kernels::unit_apply_backward(block(t[q], t[k], t[v], t[log_decay], t[beta]), t[incoming], t[dout], t[doutgoing],
                                          {t[dq], t[dk], t[dv], t[dlog_decay], t[dbeta]}, stream);
    }
    default:
      throw InternalError("execute: a step that is no recurrence was run as one");
  }
}

}  // namespace periplus::execute
