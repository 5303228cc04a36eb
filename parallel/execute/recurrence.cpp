#include "parallel/execute/recurrence.h"

#include <algorithm>
#include <vector>

#include <fmt/format.h>

#include "kernels/linear_attention.h"
#include "kernels/linear_tokens.h"
#include "kernels/transfer.h"
#include "parallel/plan/ops.h"
#include "runtime/error.h"

namespace periplus::execute {

using plan::Op;

namespace {

/// The same rows in falling order.
TensorView mirrored(const TensorView& view) {
  if (view.dims() == 0 || view.size(0) == 0) return view;
  Extents strides = view.strides();
  std::byte* last = view.bytes() + (view.size(0) - 1) * strides[0] * static_cast<std::int64_t>(size_of(view.dtype()));
  strides[0] = -strides[0];
  return {last, view.dtype(), view.shape(), strides};
}

std::vector<kernels::UnitRun> mirrored(std::span<const kernels::UnitRun> runs, std::int64_t rows) {
  std::vector<kernels::UnitRun> result;
  for (const kernels::UnitRun& run : runs) result.push_back({rows - run.row0 - run.rows, run.rows, run.unit, run.leaves, run.enters});
  std::ranges::reverse(result);
  return result;
}

/// A recurrence over the rows in falling order: all operands of tokens are views of them.
void run_mirrored(const plan::Program& program, const plan::Step& step, std::span<const TensorView> t, StreamView stream) {
  const auto runs = mirrored(program.runs_of(step), t[0].size(0));
  const auto at = [&](std::size_t operand) { return mirrored(t[operand]); };
  if (step.op == Op::unit_apply) {
    using namespace plan::unit_apply_operand;
    return kernels::unit_apply({at(q), at(k), at(v), at(log_decay), {}, runs, step.scale}, t[incoming], at(out), stream);
  }
  using namespace plan::unit_apply_backward_operand;
  kernels::unit_apply_backward({at(q), at(k), at(v), at(log_decay), {}, runs, step.scale}, t[incoming], at(dout), t[doutgoing],
                               {at(dq), at(dk), at(dv), at(dlog_decay)}, stream);
}

}  // namespace

void run_recurrence(const plan::Program& program, const plan::Step& step, std::span<const TensorView> t, StreamView stream) {
  const auto block = [&](const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& log_decay,
                         const TensorView& beta) {
    return kernels::LinearBlock{q, k, v, log_decay, beta, program.runs_of(step), step.scale};
  };
  if (step.mirrored) return run_mirrored(program, step, t, stream);
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
    case Op::mirror_decay: {
      namespace operand = plan::mirror_decay_operand;
      return kernels::mirror_decay(t[operand::log_decay], program.runs_of(step), t[operand::mirrored], stream);
    }
    case Op::decay_states: {
      using namespace plan::decay_states_operand;
      return kernels::decay_states(t[log_decay], program.runs_of(step), t[states], stream);
    }
    case Op::add_mirrored: {
      namespace operand = plan::add_mirrored_operand;
      return kernels::add_mirrored(block(t[operand::q], t[operand::k], t[operand::v], {}, {}), t[operand::mirrored], t[operand::out],
                                   stream);
    }
    case Op::add_mirrored_backward: {
      using namespace plan::add_mirrored_backward_operand;
      return kernels::add_mirrored_backward(block(t[q], t[k], t[v], {}, {}), t[dout],
                                            {t[mirrored_dq], t[mirrored_dk], t[mirrored_dv], t[mirrored_dlog_decay]},
                                            {t[dq], t[dk], t[dv], t[dlog_decay]}, stream);
    }
    case Op::extend_values:
      return kernels::extend_values(t[plan::extension_operand::from], t[plan::extension_operand::to], stream);
    case Op::cut_values: {
      const TensorView& to = t[plan::extension_operand::to];
      return kernels::copy(t[plan::extension_operand::from].slice(2, 0, to.size(2)), to, stream);
    }
    case Op::normalise: {
      using namespace plan::normalise_operand;
      return kernels::normalise(t[extended], step.epsilon, t[out], t[normaliser], stream);
    }
    case Op::normalise_backward: {
      using namespace plan::normalise_backward_operand;
      return kernels::normalise_backward(t[dout], t[out], t[normaliser], t[extended], stream);
    }
    default:
      throw InternalError(fmt::format("execute: {} stands in the compute queue", plan::info(step.op).name));
  }
}

}  // namespace periplus::execute
