#include "launch/bench/paced_run.h"

#include <algorithm>
#include <chrono>

#include "parallel/execute/execute.h"
#include "parallel/simulate/simulate.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/memory.h"

namespace periplus::launch::bench {
namespace {

using Clock = std::chrono::steady_clock;

/// Tensors for all slots that the caller owns.
struct Operands {
  std::vector<Tensor> tensors;
  execute::Bindings bindings;

  Operands(const plan::Program& program, const Memory& memory) {
    for (const plan::Slot& slot : program.slots) {
      if (slot.role == plan::Role::scratch) continue;
      tensors.push_back(Tensor::zeros({slot.rows, slot.heads, slot.width}, slot.dtype, memory));
      bindings.output(slot.name, tensors.back());
    }
  }
};

}  // namespace

PacedRun run_paced(const plan::Plan& plan, const comm::Links& links, const StepTime& pace) {
  PacedRun run;
  const std::size_t ranks = plan.programs.size();
  run.step_seconds.resize(ranks);
  std::vector<Clock::time_point> begins(ranks), ends(ranks);
  std::vector<std::int64_t> bytes(ranks);
  const auto body = [&](const comm::Communicator& communicator) {
    const auto rank = static_cast<std::size_t>(communicator.rank());
    const plan::Program& program = plan.programs[rank];
    const Memory memory;
    const Operands operands(program, memory);
    const Tensor workspace({program.workspace_bytes}, DType::u8, memory);
    const execute::Context context{
        .communicator = communicator, .workspace = workspace, .pace = pace, .step_seconds = &run.step_seconds[rank]};
    communicator.barrier(Stream());
    const std::size_t before = communicator.traffic().bytes_sent;
    begins[rank] = Clock::now();
    execute::execute(program, operands.bindings, context);
    ends[rank] = Clock::now();
    bytes[rank] = static_cast<std::int64_t>(communicator.traffic().bytes_sent - before);
  };
  comm::run_thread_ranks(static_cast<int>(ranks), body, {.links = links});
  // A late starter was held up by the machine, not by the plan.
  run.seconds = std::chrono::duration<double>(std::ranges::max(ends) - std::ranges::max(begins)).count();
  for (const std::int64_t sent : bytes) run.bytes_sent += sent;
  return run;
}

Bounds bounds_of(const plan::Plan& plan, const comm::Links& links, const StepTime& pace) {
  Bounds bounds;
  std::vector<double> sends(plan.programs.size(), 0), receives(plan.programs.size(), 0);
  for (std::size_t rank = 0; rank < plan.programs.size(); ++rank) {
    const plan::Program& program = plan.programs[rank];
    double compute = 0;
    for (const plan::Step& step : program.steps) {
      if (step.op != plan::Op::exchange) compute += pace(program, step);
      for (const plan::Message& m : program.sends_of(step)) {
        const comm::Pacing& pacing = links.same_node(static_cast<int>(rank), m.peer) ? links.inside : links.between;
        const double seconds = static_cast<double>(program.bytes_of(m.view)) / pacing.bytes_per_second;
        sends[rank] += seconds, receives[static_cast<std::size_t>(m.peer)] += seconds;
      }
    }
    bounds.compute = std::max(bounds.compute, compute);
  }
  bounds.link = std::max(std::ranges::max(sends), std::ranges::max(receives));
  return bounds;
}

double simulated_seconds(const plan::Plan& plan, const comm::Links& links, const StepTime& pace) {
  return simulate::simulate(plan, {pace, links}).makespan;
}

StepTime measured_times(const PacedRun& run) {
  return [&run](const plan::Program& program, const plan::Step& step) {
    return run.step_seconds[static_cast<std::size_t>(program.rank)][static_cast<std::size_t>(&step - program.steps.data())];
  };
}

}  // namespace periplus::launch::bench
