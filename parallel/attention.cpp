#include "parallel/attention.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "parallel/choose.h"
#include "parallel/plan/plan_maker.h"
#include "parallel/planned_passes.h"
#include "parallel/strategy/strategy.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus {
namespace {

using plan::ProgramBuilder;
using plan::Role;
using plan::View;

void check(const AttentionProblem& p) {
  const auto refuse = [](std::string_view what) { throw InvalidArgument(fmt::format("attention: {}", what)); };
  if (p.q_heads < 1 || p.kv_heads < 1 || p.q_heads % p.kv_heads != 0) {
    refuse(fmt::format("{} query heads over {} KV heads; the number of KV heads must divide that of query heads", p.q_heads, p.kv_heads));
  }
  if (p.head_size < 1 || p.value_size < 0) {
    refuse(fmt::format("head size {} must be positive, value size {} too (or 0 for the head size)", p.head_size, p.value_size));
  }
  if (!std::ranges::equal(p.layout.cu_seqlens(), p.mask.cu_seqlens())) {
    refuse(fmt::format("layout and mask were made from different cu_seqlens ({} and {} documents); make both from the same",
                       p.layout.cu_seqlens().size() - 1, p.mask.cu_seqlens().size() - 1));
  }
  if (p.dtype != DType::f64 && p.dtype != DType::f32 && p.dtype != DType::bf16 && p.dtype != DType::f16) {
    refuse(fmt::format("dtype {} is not supported; use f64, f32, bf16 or f16", to_string(p.dtype)));
  }
  if (!(p.softcap >= 0) || !std::isfinite(p.softcap)) refuse(fmt::format("softcap is {}; use a positive number, or 0 for none", p.softcap));
  if (!std::isfinite(p.scale)) refuse(fmt::format("scale is {}; use a number, or 0 for 1/sqrt(head size)", p.scale));
}

const strategy::Strategy& chosen_strategy(const AttentionProblem& problem, const AttentionOptions& options) {
  check(problem);
  const strategy::Strategy& strategy = strategy::find_strategy(options.strategy);
  if (const std::string reason = strategy::refusal(strategy, problem, options); !reason.empty()) {
    throw InvalidArgument(fmt::format("attention: strategy {} cannot plan this: {}", strategy.name, reason));
  }
  return strategy;
}

/// Declares slots of one rank, all as high as its rows.
struct RankSlots {
  ProgramBuilder& program;
  const AttentionProblem& problem;
  std::int64_t rows = problem.layout.rows_of(program.rank());
  DType storage = problem.dtype, accumulator = accumulator_of(problem.dtype);

  View make(std::string name, Role role, DType dtype, int heads, int width, bool contiguous = true) const {
    return program.slot(std::move(name), role, dtype, rows, heads, width, contiguous);
  }
  View q() const { return make("q", Role::input, storage, problem.q_heads, problem.head_size, false); }
  View k() const { return make("k", Role::input, storage, problem.kv_heads, problem.head_size, problem.contiguous_kv); }
  View v() const { return make("v", Role::input, storage, problem.kv_heads, problem.value(), problem.contiguous_kv); }
  View sink_like(std::string name, Role role) const {
    return problem.sink ? program.slot(std::move(name), role, accumulator, 1, problem.q_heads, 1) : View{};
  }
};

void build_forward(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions& options,
                   const strategy::Strategy& strategy) {
  const RankSlots slots{program, problem};
  const View q = slots.q(), k = slots.k(), v = slots.v(), sink = slots.sink_like("sink", Role::input);
  const View out = slots.make("out", Role::output, slots.storage, problem.q_heads, problem.value(), false);
  const View lse = slots.make("lse", Role::output, slots.accumulator, problem.q_heads, 1, false);
  strategy.forward(program, problem, options, {q, k, v, sink, out, lse});
}

void build_backward(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions& options,
                    const strategy::Strategy& strategy) {
  const RankSlots slots{program, problem};
  const View q = slots.q(), k = slots.k(), v = slots.v(), sink = slots.sink_like("sink", Role::input);
  const View dout = slots.make("dout", Role::input, slots.storage, problem.q_heads, problem.value(), false);
  const View out = slots.make("out", Role::input, slots.storage, problem.q_heads, problem.value(), false);
  const View lse = slots.make("lse", Role::input, slots.accumulator, problem.q_heads, 1, false);
  const View dlse = problem.lse_gradient ? slots.make("dlse", Role::input, slots.accumulator, problem.q_heads, 1, false) : View{};
  const View dsink = slots.sink_like("dsink", Role::output);
  const View delta = slots.make("delta", Role::scratch, slots.accumulator, problem.q_heads, 1);

  const View dq = slots.make("dq", Role::output, slots.storage, problem.q_heads, problem.head_size);
  const View dk = slots.make("dk", Role::output, slots.storage, problem.kv_heads, problem.head_size);
  const View dv = slots.make("dv", Role::output, slots.storage, problem.kv_heads, problem.value());
  program.delta({"delta"}, {dout, out, lse, dlse, sink, delta, dsink});
  strategy.backward(program, problem, options, {q, k, v, dout, lse, delta, dq, dk, dv});
}

}  // namespace

std::uint64_t AttentionProblem::digest() const {
  const std::array<std::uint64_t, 12> words{layout.digest(),
                                            mask.digest(),
                                            static_cast<std::uint64_t>(q_heads),
                                            static_cast<std::uint64_t>(kv_heads),
                                            static_cast<std::uint64_t>(head_size),
                                            static_cast<std::uint64_t>(value()),
                                            static_cast<std::uint64_t>(dtype),
                                            std::bit_cast<std::uint64_t>(scale),
                                            std::bit_cast<std::uint64_t>(softcap),
                                            static_cast<std::uint64_t>(sink),
                                            static_cast<std::uint64_t>(lse_gradient),
                                            static_cast<std::uint64_t>(contiguous_kv)};
  return hash64({reinterpret_cast<const char*>(words.data()), sizeof(words)});
}

std::uint64_t AttentionOptions::digest() const {
  const Machine& m = machine;
  return hash64(fmt::format("{} {} {} {} {} {} {} {} {} {} {} {} {}", strategy, pieces, stages, head_ranks, placement, ranks_per_node,
                            m.rank_gflops, m.memory_gbytes, m.link_gbytes, m.link_latency_us, m.node_gbytes, m.node_latency_us,
                            m.link_sharing));
}

plan::Program make_program(const AttentionProblem& problem, const AttentionOptions& as_told, Pass pass, int rank) {
  const AttentionOptions options = resolved(problem, as_told);
  const strategy::Strategy& strategy = chosen_strategy(problem, options);
  ProgramBuilder program(rank);
  (pass == Pass::forward ? build_forward : build_backward)(program, problem, options, strategy);
  return program.build();
}

plan::Plan make_plan(const AttentionProblem& problem, const AttentionOptions& options, Pass pass) {
  plan::PlanMaker maker;
  return std::move(make_plan(problem, options, pass, maker));
}

plan::Plan& make_plan(const AttentionProblem& problem, const AttentionOptions& as_told, Pass pass, plan::PlanMaker& maker) {
  const AttentionOptions options = resolved(problem, as_told);
  const strategy::Strategy& strategy = chosen_strategy(problem, options);
  const auto build = pass == Pass::forward ? build_forward : build_backward;
  return maker.make({problem.layout, problem.mask, problem.q_heads, problem.kv_heads, pass == Pass::backward,
                     strategy.bytes_sent(problem, options, pass)},
                    [&](ProgramBuilder& program) { build(program, problem, options, strategy); });
}

struct DistributedAttention::State {
  AttentionProblem problem;
  PlannedPasses passes;
};

DistributedAttention::DistributedAttention(AttentionProblem problem, AttentionOptions options, comm::Communicator communicator,
                                           Memory memory, Tracer* tracer, Stream stream) {
  std::optional<AttentionOptions> settled;
  const auto make = [&](Pass pass, int rank) {
    if (!settled) settled = resolved(problem, options);
    return make_program(problem, *settled, pass, rank);
  };
  PlannedPasses passes("attention", problem.layout, {problem.digest(), options.digest()}, std::move(communicator), std::move(memory),
                       tracer, std::move(stream), make);
  state_ = std::make_unique<State>(State{std::move(problem), std::move(passes)});
}

DistributedAttention::~DistributedAttention() = default;
DistributedAttention::DistributedAttention(DistributedAttention&&) noexcept = default;
DistributedAttention& DistributedAttention::operator=(DistributedAttention&&) noexcept = default;

const AttentionProblem& DistributedAttention::problem() const noexcept { return state_->problem; }
const plan::Program& DistributedAttention::program(Pass pass) const { return state_->passes.program(pass); }
AttentionStatistics DistributedAttention::statistics() const noexcept { return state_->passes.statistics(); }

void DistributedAttention::forward(const AttentionInputs& inputs, const AttentionOutputs& outputs) {
  require_given_as_planned("attention", inputs.sink, problem().sink, "sink", "sink");
  execute::Bindings bindings;
  bindings.input("q", inputs.q).input("k", inputs.k).input("v", inputs.v).output("out", outputs.out).output("lse", outputs.lse);
  if (problem().sink) bindings.input("sink", inputs.sink);
  state_->passes.run(Pass::forward, bindings);
}

void DistributedAttention::backward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                                    const AttentionOutputGradients& gradients, const AttentionInputGradients& results) {
  require_given_as_planned("attention", inputs.sink, problem().sink, "sink", "sink");
  require_given_as_planned("attention", results.dsink, problem().sink, "dsink", "sink");
  require_given_as_planned("attention", gradients.dlse, problem().lse_gradient, "dlse", "lse_gradient");
  execute::Bindings bindings;
  bindings.input("q", inputs.q).input("k", inputs.k).input("v", inputs.v).input("out", outputs.out).input("lse", outputs.lse);
  bindings.input("dout", gradients.dout).output("dq", results.dq).output("dk", results.dk).output("dv", results.dv);
  if (problem().lse_gradient) bindings.input("dlse", gradients.dlse);
  if (problem().sink) bindings.input("sink", inputs.sink).output("dsink", results.dsink);
  state_->passes.run(Pass::backward, bindings);
}

}  // namespace periplus
