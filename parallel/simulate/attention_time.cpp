#include "parallel/simulate/attention_time.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "parallel/attention.h"
#include "parallel/balanced_layout.h"
#include "parallel/simulate/simulate.h"

namespace periplus::simulate {
namespace {

constexpr double kTicks = 1e9;  // starts that differ by less than a nanosecond are the same

DType storage_of(const Shape& shape) { return shape.element_bytes == 4 ? DType::f32 : DType::bf16; }

plan::Plan softmax_plan(const Shape& shape, const Training& training, const Mask& mask, Pass pass) {
  AttentionProblem problem{.layout = make_layout(training.layout, training.context, mask), .mask = mask};
  problem.q_heads = shape.heads / training.tensor, problem.kv_heads = std::max(1, shape.kv_heads / training.tensor);
  problem.head_size = shape.width(), problem.dtype = storage_of(shape);
  return make_plan(problem, training.attention, pass);
}

/// A recurrence passes through the tokens in their order.
plan::Plan linear_plan(const Shape& shape, const Training& training, const Mask& mask, Pass pass) {
  LinearAttentionProblem problem{.layout = make_layout(training.layout, training.context, mask)};
  problem.heads = shape.heads / training.tensor, problem.head_size = shape.width(), problem.dtype = storage_of(shape);
  return make_plan(problem, training.linear, pass);
}

}  // namespace

std::vector<std::int64_t> document_borders(const Training& training) {
  std::vector<std::int64_t> borders{0};
  for (const std::int64_t length : training.documents) borders.push_back(borders.back() + length);
  if (training.documents.empty()) borders.push_back(training.tokens);
  return borders;
}

void narrow_sums(plan::Plan& plan) {
  for (plan::Program& program : plan.programs) {
    for (plan::Slot& slot : program.slots)
      if (slot.dtype == DType::f32 && slot.width > 1) slot.dtype = DType::bf16;
  }
}

void in_turn(plan::Plan& plan) {
  for (plan::Program& program : plan.programs) {
    std::vector<plan::StepId> received, computed;
    for (std::size_t id = 0; id < program.steps.size(); ++id) {
      const plan::Step& step = program.steps[id];
      if (step.op != plan::Op::exchange) {
        computed.push_back(static_cast<plan::StepId>(id));
      } else if (step.receives.count > 0) {
        received.push_back(static_cast<plan::StepId>(id));
      }
    }
    for (plan::Step& step : program.steps) {
      const bool sends = step.op == plan::Op::exchange && step.sends.count > 0;
      if (step.op == plan::Op::exchange && !sends) continue;
      const std::vector<plan::StepId>& first = sends ? computed : received;
      step.after = {static_cast<std::uint32_t>(program.after.size()), static_cast<std::uint32_t>(first.size())};
      program.after.insert(program.after.end(), first.begin(), first.end());
    }
  }
}

AttentionTime::AttentionTime(const Shape& shape, const Machine& machine, const Training& training, char letter)
    : machine_(machine), training_(training), links_(machine.links) {
  // Ranks of a context group are `tensor` devices apart.
  if (links_.ranks_per_node > 0) links_.ranks_per_node = std::max(1, links_.ranks_per_node / training.tensor);
  links_.ranks_per_nic = std::max(1, links_.ranks_per_nic / training.tensor);
  MaskSpec spec;
  spec.causal = training.causal;
  const Mask mask(spec, document_borders(training));
  for (const Pass pass : {Pass::forward, Pass::backward})
    plans_.push_back(letter == 'S' ? softmax_plan(shape, training, mask, pass) : linear_plan(shape, training, mask, pass));
  if (training.narrow_sums && letter == 'S')
    for (plan::Plan& plan : plans_) narrow_sums(plan);
  if (training.chain_in_turn && letter == 'L')
    for (plan::Plan& plan : plans_) in_turn(plan);
}

AttentionTime::Took AttentionTime::run(Pass pass, const std::vector<double>& starts) {
  const double first = std::ranges::min(starts);
  std::vector<double> offsets;
  std::vector<std::int64_t> key{pass == Pass::forward ? 0 : 1};
  for (const double start : starts) {
    offsets.push_back(start - first);
    key.push_back(std::llround(offsets.back() * kTicks));
  }
  const auto [found, fresh] = known_.try_emplace(std::move(key));
  if (fresh) found->second = training_.overlap ? overlapped(pass, offsets) : one_by_one(pass, offsets);
  Took took = found->second;
  for (double& done : took.done) done += first;
  return took;
}

AttentionTime::Took AttentionTime::overlapped(Pass pass, const std::vector<double>& starts) const {
  const auto compute = [this](const plan::Program& program, const plan::Step& step) {
    return step_seconds(machine_.kernels, program, step);
  };
  Took took;
  for (const RankTime& rank : simulate(plan(pass), {compute, links_, machine_.overlap_slowdown, machine_.all_to_all, starts}).ranks) {
    took.done.push_back(rank.finish), took.compute.push_back(rank.compute), took.exposed.push_back(rank.exposed);
  }
  return took;
}

/// What each takes if the other takes no time, added.
AttentionTime::Took AttentionTime::one_by_one(Pass pass, const std::vector<double>& starts) const {
  const auto nothing = [](const plan::Program&, const plan::Step&) { return 0.0; };
  const Timeline messages = simulate(plan(pass), {nothing, links_, 1, machine_.all_to_all, starts});
  Took took;
  for (std::size_t r = 0; r < starts.size(); ++r) {
    const plan::Program& program = plan(pass).programs[r];
    double compute = 0;
    for (const plan::Step& step : program.steps)
      if (step.op != plan::Op::exchange) compute += step_seconds(machine_.kernels, program, step);
    const double waits = messages.ranks[r].finish - starts[r];
    took.done.push_back(starts[r] + compute + waits), took.compute.push_back(compute), took.exposed.push_back(waits);
  }
  return took;
}

}  // namespace periplus::simulate
