#include <algorithm>
#include <chrono>

#include <gtest/gtest.h>

#include "parallel/execute/execute.h"
#include "parallel/plan/ops.h"
#include "parallel/simulate/simulate.h"
#include "runtime/comm/thread_transport.h"
#include "tests/parallel/plan/plan_cases.h"

// The executor against the simulator: one execution model, two clocks.
namespace periplus::execute {
namespace {

struct PacedRun {
  double seconds = 0;  ///< Of the slowest rank.
  double exposed = 0;
  std::vector<std::vector<double>> steps;  ///< by rank
};

PacedRun run_paced(const plan::Plan& plan, const comm::Links& links,
                   const std::function<double(const plan::Program&, const plan::Step&)>& pace) {
  PacedRun run;
  run.steps.resize(plan.programs.size());
  std::vector<Statistics> all(plan.programs.size());
  comm::run_thread_ranks(static_cast<int>(plan.programs.size()),
                         [&](const comm::Communicator& communicator) {
                           const auto rank = static_cast<std::size_t>(communicator.rank());
                           const plan::Program& program = plan.programs[rank];
                           const Memory memory;
                           Bindings bindings;
                           std::vector<Tensor> tensors;
                           for (const plan::Slot& slot : program.slots) {
                             if (slot.role == plan::Role::scratch) continue;
                             tensors.push_back(Tensor::zeros({slot.rows, slot.heads, slot.width}, slot.dtype, memory));
                             bindings.output(slot.name, tensors.back());
                           }
                           const Tensor workspace({program.workspace_bytes}, DType::u8, memory);
                           Context context{
                               .communicator = communicator, .workspace = workspace, .pace = pace, .step_seconds = &run.steps[rank]};
                           communicator.barrier(Stream());
                           all[rank] = execute(program, bindings, context);
                         },
                         {.links = links});
  for (const Statistics& statistics : all) {
    run.seconds = std::max(run.seconds, statistics.seconds);
    run.exposed = std::max(run.exposed, statistics.exposed_seconds);
  }
  return run;
}

TEST(PacedExecution, TakesAsLongAsTheSimulatorSays) {
  const plan::Plan plan = make_plan(test::ring_problem(LayoutKind::zigzag, 4, {0, 4096}), {}, Pass::backward);
  const comm::Links links{{.bytes_per_second = 20e6, .sharing = comm::Sharing::port}};
  const auto pace = [](const plan::Program&, const plan::Step& step) { return step.op == plan::Op::attend_backward ? 0.02 : 0; };
  const PacedRun run = run_paced(plan, links, pace);
  const auto measured = [&](const plan::Program& program, const plan::Step& step) {
    return run.steps[static_cast<std::size_t>(program.rank)][static_cast<std::size_t>(&step - program.steps.data())];
  };
  const double simulated = simulate::simulate(plan, {measured, links}).makespan;
  EXPECT_GE(run.seconds, 0.95 * simulated);
  EXPECT_LE(run.seconds, 1.25 * simulated + 0.05) << "a busy machine may add to it, but not this much";
  EXPECT_GT(run.exposed, 0) << "the links are too slow to hide";
}

}  // namespace
}  // namespace periplus::execute
