#include "launch/bench/planned_run.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>

#include "parallel/attention.h"
#include "parallel/execute/rehearse.h"
#include "parallel/plan/ops.h"
#include "parallel/simulate/simulate.h"
#include "parallel/train/step_plan.h"
#include "runtime/comm/thread_transport.h"

namespace periplus::launch::bench {
namespace {

using Clock = std::chrono::steady_clock;

void sleep_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

}  // namespace

planner::Model PacedModel::for_planner() const {
  planner::Model model{.name = "paced", .layers = layers, .heads = heads, .kv_heads = heads};
  model.hidden = heads * head_size;
  // Of a causal pair 4 flops a channel forward and 10 backward.
  model.seconds_per_pair = layers * 14.0 * model.hidden / 2 / attention_flops_per_second;
  model.seconds_per_token = 3 * layers * matrix_seconds_per_token;
  model.activation_bytes = 1;
  return model;
}

planner::Machine PacedModel::machine(int ranks, std::int64_t tokens_per_rank) const {
  planner::Machine machine{.name = "paced", .devices = ranks, .devices_per_node = ranks, .all_to_all = {}};
  machine.memory_bytes = static_cast<double>(tokens_per_rank);
  const double rate = links.inside.bytes_per_second;
  machine.link_bytes_per_second = machine.stream_bytes_per_second = machine.node_bytes_per_second = rate;
  machine.hop_seconds = links.inside.latency_seconds;
  for (int degree = 2; degree <= ranks; ++degree) machine.all_to_all.push_back({degree, rate});
  return machine;
}

PacedBatch::PacedBatch(const PacedModel& model, const planner::BatchPlan& plan, const planner::CostModel& cost,
                       std::span<const std::int64_t> lengths)
    : model_(model), ranks_(cost.devices()) {
  for (const planner::PlannedMicroBatch& micro_batch : plan.micro_batches) {
    for (const planner::PlannedGroup& planned : micro_batch.groups) {
      const planner::Kind& kind = cost.kinds()[static_cast<std::size_t>(planned.kind)];
      std::vector<std::int64_t> borders = {0};
      for (const int k : planned.sequences) borders.push_back(borders.back() + lengths[static_cast<std::size_t>(k)]);
      AttentionProblem problem{.layout = SequenceLayout::make(LayoutKind::document_zigzag, kind.degree, borders),
                               .mask = Mask({}, borders)};
      problem.q_heads = problem.kv_heads = model.heads, problem.head_size = model.head_size, problem.dtype = DType::bf16;
      const AttentionOptions how = train::options_of(kind);
      groups_.push_back({planned.first_rank, make_plan(problem, how, Pass::forward), make_plan(problem, how, Pass::backward), {}});
      for (int rank = 0; rank < kind.degree; ++rank)
        groups_.back().matrix_seconds.push_back(static_cast<double>(problem.layout.rows_of(rank)) * model.matrix_seconds_per_token);
    }
  }
}

double PacedBatch::pace(const plan::Program& program, const plan::Step& step) const {
  return plan::flops(program, step) / model_.attention_flops_per_second;
}

double PacedBatch::simulate() const {
  std::vector<double> now(static_cast<std::size_t>(ranks_), 0);
  const auto attend = [&](const Group& group, const plan::Plan& plan) {
    const auto mine = std::span(now).subspan(static_cast<std::size_t>(group.first_rank), plan.programs.size());
    simulate::Costs costs{.compute = [this](const auto& program, const auto& step) { return pace(program, step); }, .links = model_.links};
    costs.starts.assign(mine.begin(), mine.end());
    const simulate::Timeline timeline = simulate::simulate(plan, costs);
    for (std::size_t r = 0; r < mine.size(); ++r) mine[r] = timeline.ranks[r].finish;
  };
  const auto compute = [&](const Group& group, double times) {
    for (std::size_t r = 0; r < group.matrix_seconds.size(); ++r)
      now[static_cast<std::size_t>(group.first_rank) + r] += times * group.matrix_seconds[r];
  };
  for (const Group& group : groups_) {
    for (int layer = 0; layer < model_.layers; ++layer) compute(group, 1), attend(group, group.forward);
    for (int layer = 0; layer < model_.layers; ++layer) compute(group, 2), attend(group, group.backward);
  }
  return std::ranges::max(now);
}

double PacedBatch::execute() const {
  std::vector<Clock::time_point> begin(static_cast<std::size_t>(ranks_)), end(begin.size());
  const auto run_rank = [&](const comm::Communicator& communicator) {
    execute::sleep_precisely();
    const auto rank = static_cast<std::size_t>(communicator.rank());
    struct Work {
      double matrix_seconds;
      execute::RehearsedProgram forward, backward;
      execute::Context context;
    };
    std::vector<Work> all;
    for (const Group& group : groups_) {
      const int place = communicator.rank() - group.first_rank, size = static_cast<int>(group.matrix_seconds.size());
      if (place < 0 || place >= size) continue;
      const auto p = static_cast<std::size_t>(place);
      all.push_back({group.matrix_seconds[p],
                     execute::RehearsedProgram(group.forward.programs[p], true),
                     execute::RehearsedProgram(group.backward.programs[p], true),
                     {.communicator = communicator.group(group.first_rank, size),
                      .pace = [this](const auto& program, const auto& step) { return pace(program, step); }}});
    }
    communicator.barrier(Stream());
    begin[rank] = Clock::now();
    for (const Work& work : all) {
      for (int layer = 0; layer < model_.layers; ++layer) sleep_for(work.matrix_seconds), work.forward.run(work.context);
      for (int layer = 0; layer < model_.layers; ++layer) sleep_for(2 * work.matrix_seconds), work.backward.run(work.context);
    }
    end[rank] = Clock::now();
  };
  comm::run_thread_ranks(ranks_, run_rank, {.links = model_.links});
  // A late starter was held up by the machine, not by the plan.
  return std::chrono::duration<double>(std::ranges::max(end) - std::ranges::max(begin)).count();
}

}  // namespace periplus::launch::bench
