#include "parallel/execute/recurrence.h"

#include "kernels/linear_attention.h"
#include "kernels/transfer.h"
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
    case Op::split_elements: {
      using namespace plan::split_elements_operand;
      const auto part = [&](std::int64_t first, const TensorView& to) {
        if (to.dims() > 0) kernels::copy(t[elements].slice(2, first, to.size(2)), to, stream);
      };
      part(0, t[transitions]);
      return part(t[added].dims() > 0 ? t[elements].size(2) - t[added].size(2) : 0, t[added]);
    }
    case Op::join_elements: {
      using namespace plan::join_elements_operand;
      const std::int64_t width = t[transitions].size(2);
      kernels::copy(t[transitions], t[elements].slice(2, 0, width), stream);
      return kernels::copy(t[added], t[elements].slice(2, width, t[added].size(2)), stream);
    }
    default:
      throw InternalError("execute: a step that is no recurrence was run as one");
  }
}

}  // namespace periplus::execute
