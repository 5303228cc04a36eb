#include "parallel/linear_attention.h"

#include <array>
#include <bit>
#include <cmath>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "parallel/plan/plan_maker.h"
#include "parallel/planned_passes.h"
#include "parallel/strategy/linear/strategy.h"
#include "parallel/units.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus {
namespace {

using plan::ProgramBuilder;
using plan::Role;
using plan::View;
namespace linear = strategy::linear;

void check(const LinearAttentionProblem& p) {
  const auto refuse = [](std::string_view what) { throw InvalidArgument(fmt::format("linear attention: {}", what)); };
  if (p.heads < 1) refuse(fmt::format("{} heads; at least 1 is needed", p.heads));
  if (p.head_size < 1 || p.value_size < 0) {
    refuse(fmt::format("head size {} must be positive, value size {} too (or 0 for the head size)", p.head_size, p.value_size));
  }
  if (p.dtype != DType::f64 && p.dtype != DType::f32 && p.dtype != DType::bf16 && p.dtype != DType::f16) {
    refuse(fmt::format("dtype {} is not supported; use f64, f32, bf16 or f16", to_string(p.dtype)));
  }
  if (p.delta_rule && p.bidirectional) {
    refuse("the delta rule is not bidirectional: what a token writes depends on what those before it wrote; leave bidirectional out");
  }
  if (p.delta_rule && p.normalise) {
    refuse("the delta rule has no normaliser: its weights do not sum what was written; leave normalise out");
  }
  if (!std::isfinite(p.scale)) refuse(fmt::format("scale is {}; use a number, or 0 for 1/sqrt(head size)", p.scale));
  if (!(p.epsilon >= 0) || !std::isfinite(p.epsilon)) refuse(fmt::format("epsilon is {}; use a number from 0 on", p.epsilon));
}

const linear::Strategy& chosen_strategy(const LinearAttentionProblem& problem, const LinearAttentionOptions& options) {
  check(problem);
  const linear::Strategy& strategy = linear::find_strategy(options.strategy);
  if (const std::string reason = linear::refusal(strategy, problem, options); !reason.empty()) {
    throw InvalidArgument(fmt::format("linear attention: strategy {} cannot plan this: {}", strategy.name, reason));
  }
  return strategy;
}

/// Units whose elements come to a rank: all of them, or none.
std::int64_t gathered_units(const Units& units, int rank) {
  const std::int64_t own = std::ssize(units.of_rank(rank));
  return own > 0 && own < units.count() && units.any_goes_on() ? units.count() : 0;
}

/// Declares the slots of one rank.
struct RankSlots {
  ProgramBuilder& program;
  const LinearAttentionProblem& problem;
  const Units& units = linear::units_of(program, problem);
  DType storage = problem.dtype, accumulator = accumulator_of(problem.dtype);

  View make(std::string name, Role role, DType dtype, int width, bool contiguous = false) const {
    return program.slot(std::move(name), role, dtype, problem.layout.rows_of(program.rank()), problem.heads, width, contiguous);
  }
  View log_decay(std::string name, Role role, bool contiguous = false) const {
    if (problem.decay == Decay::none) return {};
    return make(std::move(name), role, accumulator, problem.decay == Decay::scalar ? 1 : problem.head_size, contiguous);
  }
  View beta(std::string name, Role role, bool contiguous = false) const {
    return problem.delta_rule ? make(std::move(name), role, accumulator, 1, contiguous) : View{};
  }
  ProgramBuilder::UnitInputs inputs() const {
    return {make("q", Role::input, storage, problem.head_size), make("k", Role::input, storage, problem.head_size),
            make("v", Role::input, storage, problem.value()), log_decay("log_decay", Role::input), beta("beta", Role::input)};
  }
  ProgramBuilder::UnitGradients gradients() const {
    return {make("dq", Role::output, storage, problem.head_size, true), make("dk", Role::output, storage, problem.head_size, true),
            make("dv", Role::output, storage, problem.value(), true), log_decay("dlog_decay", Role::output, true),
            beta("dbeta", Role::output, true)};
  }
  View transitions(Role role) const {
    const std::int64_t width = problem.element_width() - problem.state_width();
    return program.slot("transitions", role, accumulator, gathered_units(units, program.rank()), problem.heads, width, false);
  }
  View states(std::string name, Role role) const {
    return program.slot(std::move(name), role, accumulator, std::ssize(units.of_rank(program.rank())), problem.heads,
                        problem.state_width());
  }
};

linear::Slots declare(const RankSlots& slots, const LinearAttentionOptions& options, Pass pass) {
  const Role kept = pass == Pass::forward ? Role::saved : Role::input;
  linear::Slots on{slots.inputs(), slots.states("incoming", kept)};
  if (slots.problem.bidirectional) on.following = slots.states("following", kept);
  if (options.keep_transitions) on.transitions = slots.transitions(kept);
  if (pass == Pass::forward) {
    on.out = slots.make("out", Role::output, slots.storage, slots.problem.value());
  } else {
    on.dout = slots.make("dout", Role::input, slots.storage, slots.problem.value());
    on.gradients = slots.gradients();
  }
  return on;
}

/// The recurrence runs on values with a column of ones, in scratch; its last column of results divides the others (algorithms.md 5.4).
class Normaliser {
 public:
  Normaliser(ProgramBuilder& program, const LinearAttentionProblem& problem, Pass pass)
      : program_(program),
        problem_(problem),
        pass_(pass),
        runs_(program.new_runs(linear::units_of(program, problem).runs_of(program.rank()))),
        divisors_(program.slot("normaliser", pass == Pass::forward ? Role::saved : Role::input, accumulator_of(problem.dtype), rows(),
                               problem.heads, 1, false)) {}

  /// The slots that the recurrence runs on, with what it reads.
  linear::Slots begin(const linear::Slots& on) {
    linear::Slots extended = on;
    extended.inputs.v = scratch("v");
    program_.extend_values({"extend"}, runs_, on.inputs.v, extended.inputs.v);
    if (pass_ == Pass::forward) {
      out_ = on.out;
      extended.out = extended_ = scratch("out");
      return extended;
    }
    out_ = program_.slot("out", Role::input, problem_.dtype, rows(), problem_.heads, problem_.value(), false);
    extended.dout = scratch("dout");
    program_.normalise_backward({"normalise"}, runs_, on.dout, out_, divisors_, extended.dout);
    dv_ = on.gradients.dv;
    extended.gradients.dv = extended_ = scratch("dv");
    return extended;
  }

  /// What is left to do with the results.
  void end() {
    if (pass_ == Pass::forward) {
      program_.normalise({"normalise"}, runs_, problem_.epsilon, extended_, out_, divisors_);
    } else {
      program_.cut_values({"cut"}, runs_, extended_, dv_);
    }
  }

 private:
  std::int64_t rows() const { return problem_.layout.rows_of(program_.rank()); }
  View scratch(std::string_view name) {
    return program_.scratch(fmt::format("extended_{}", name), problem_.dtype, rows(), problem_.heads, problem_.state_columns());
  }

  ProgramBuilder& program_;
  const LinearAttentionProblem& problem_;
  Pass pass_;
  plan::Range runs_;
  View divisors_, out_, dv_, extended_;
};

void build(ProgramBuilder& program, const LinearAttentionProblem& problem, const LinearAttentionOptions& options,
           const linear::Strategy& strategy, Pass pass) {
  linear::Slots on = declare({program, problem}, options, pass);
  std::optional<Normaliser> normaliser;
  if (problem.normalise) on = normaliser.emplace(program, problem, pass).begin(on);
  for (const bool mirrored : {false, true}) {
    if (mirrored && !problem.bidirectional) break;
    linear::UnitPass unit_pass(program, problem, on, pass,
                               linear::pieces_of(strategy, problem, options, linear::units_of(program, problem)), mirrored);
    strategy.emit(program, unit_pass);
  }
  if (normaliser) normaliser->end();
}

}  // namespace

kernels::Transition LinearAttentionProblem::transition() const noexcept {
  if (delta_rule) return kernels::Transition::dense;
  if (decay == Decay::none) return kernels::Transition::identity;
  return decay == Decay::scalar ? kernels::Transition::scalar : kernels::Transition::diagonal;
}

std::uint64_t LinearAttentionProblem::digest() const {
  const std::array<std::uint64_t, 11> words{layout.digest(),
                                            static_cast<std::uint64_t>(heads),
                                            static_cast<std::uint64_t>(head_size),
                                            static_cast<std::uint64_t>(value()),
                                            static_cast<std::uint64_t>(dtype),
                                            static_cast<std::uint64_t>(decay),
                                            static_cast<std::uint64_t>(delta_rule),
                                            static_cast<std::uint64_t>(bidirectional),
                                            static_cast<std::uint64_t>(normalise),
                                            std::bit_cast<std::uint64_t>(epsilon),
                                            std::bit_cast<std::uint64_t>(scale)};
  return hash64({reinterpret_cast<const char*>(words.data()), sizeof(words)});
}

std::uint64_t LinearAttentionOptions::digest() const {
  return hash64(fmt::format("{} {} {} {}", strategy, pieces, any_layout, keep_transitions));
}

plan::Program make_program(const LinearAttentionProblem& problem, const LinearAttentionOptions& options, Pass pass, int rank) {
  const linear::Strategy& strategy = chosen_strategy(problem, options);
  ProgramBuilder program(rank);
  build(program, problem, options, strategy, pass);
  return program.build();
}

plan::Plan make_plan(const LinearAttentionProblem& problem, const LinearAttentionOptions& options, Pass pass) {
  plan::PlanMaker maker;
  return std::move(make_plan(problem, options, pass, maker));
}

plan::Plan& make_plan(const LinearAttentionProblem& problem, const LinearAttentionOptions& options, Pass pass, plan::PlanMaker& maker) {
  const linear::Strategy& strategy = chosen_strategy(problem, options);
  return maker.make(
      {problem.layout, Mask({}, problem.layout.cu_seqlens()), problem.heads, problem.heads, pass == Pass::backward,
       strategy.bytes_sent(problem, options, pass) * (problem.bidirectional ? 2 : 1), plan::Computes::linear, problem.transition(),
       problem.decay != Decay::none, options.keep_transitions, problem.bidirectional, problem.normalise},
      [&](ProgramBuilder& program) { build(program, problem, options, strategy, pass); });
}

struct DistributedLinearAttention::State {
  LinearAttentionProblem problem;
  std::int64_t rows, units, transition_rows;
  bool keeps_transitions;
  PlannedPasses passes;

  /// bind(name, tensor) for what forward leaves for backward.
  template <class Bind>
  void bind_kept(const LinearAttentionOutputs& outputs, const Bind& bind) const {
    constexpr std::string_view op = "linear attention";
    bind("incoming", outputs.incoming);
    require_given_as_planned(op, outputs.following, problem.bidirectional, "following", "bidirectional");
    if (problem.bidirectional) bind("following", outputs.following);
    require_given_as_planned(op, outputs.normaliser, problem.normalise, "normaliser", "normalise");
    if (problem.normalise) bind("normaliser", outputs.normaliser);
    if ((outputs.transitions.dims() != 0) != keeps_transitions) {
      throw InvalidArgument(fmt::format("{}: transitions is {}, but options.keep_transitions {}", op,
                                        keeps_transitions ? "missing" : "given",
                                        keeps_transitions ? "asks for it" : "does not ask for it"));
    }
    if (keeps_transitions) bind("transitions", outputs.transitions);
  }
  /// What both passes read.
  execute::Bindings bind(const LinearAttentionInputs& inputs) const {
    require_given_as_planned("linear attention", inputs.log_decay, problem.decay != Decay::none, "log_decay", "decay");
    require_given_as_planned("linear attention", inputs.beta, problem.delta_rule, "beta", "delta_rule");
    execute::Bindings bindings;
    bindings.input("q", inputs.q).input("k", inputs.k).input("v", inputs.v);
    if (problem.decay != Decay::none) bindings.input("log_decay", inputs.log_decay);
    if (problem.delta_rule) bindings.input("beta", inputs.beta);
    return bindings;
  }
};

DistributedLinearAttention::DistributedLinearAttention(LinearAttentionProblem problem, LinearAttentionOptions options,
                                                       comm::Communicator communicator, Memory memory, Tracer* tracer, Stream stream) {
  const int rank = communicator.rank();
  const auto make = [&](Pass pass, int of_rank) { return make_program(problem, options, pass, of_rank); };
  PlannedPasses passes("linear attention", problem.layout, {problem.digest(), options.digest()}, std::move(communicator), std::move(memory),
                       tracer, std::move(stream), make);
  const std::int64_t rows = problem.layout.rows_of(rank), units = std::ssize(Units(problem.layout).of_rank(rank));
  const std::int64_t transition_rows = options.keep_transitions ? gathered_units(Units(problem.layout), rank) : 0;
  state_ = std::make_unique<State>(State{std::move(problem), rows, units, transition_rows, options.keep_transitions, std::move(passes)});
}

DistributedLinearAttention::~DistributedLinearAttention() = default;
DistributedLinearAttention::DistributedLinearAttention(DistributedLinearAttention&&) noexcept = default;
DistributedLinearAttention& DistributedLinearAttention::operator=(DistributedLinearAttention&&) noexcept = default;

const LinearAttentionProblem& DistributedLinearAttention::problem() const noexcept { return state_->problem; }
std::int64_t DistributedLinearAttention::units() const noexcept { return state_->units; }
std::int64_t DistributedLinearAttention::transition_rows() const noexcept { return state_->transition_rows; }
LinearAttentionStates DistributedLinearAttention::make_states(const Memory& memory) const {
  const LinearAttentionProblem& problem = state_->problem;
  const DType accumulator = accumulator_of(problem.dtype);
  const Extents of_units{units(), problem.heads, problem.state_width()};
  LinearAttentionStates states;
  states.incoming = Tensor(of_units, accumulator, memory);
  if (state_->keeps_transitions)
    states.transitions = Tensor({transition_rows(), problem.heads, problem.element_width() - problem.state_width()}, accumulator, memory);
  if (problem.bidirectional) states.following = Tensor(of_units, accumulator, memory);
  if (problem.normalise) states.normaliser = Tensor({state_->rows, problem.heads, 1}, accumulator, memory);
  return states;
}

LinearAttentionOutputs LinearAttentionStates::outputs(TensorView out) const {
  const auto view = [](const Tensor& tensor) { return tensor.empty() ? TensorView() : tensor.view(); };
  return {out, incoming, view(transitions), view(following), view(normaliser)};
}

const plan::Program& DistributedLinearAttention::program(Pass pass) const { return state_->passes.program(pass); }
AttentionStatistics DistributedLinearAttention::statistics() const noexcept { return state_->passes.statistics(); }

void DistributedLinearAttention::forward(const LinearAttentionInputs& inputs, const LinearAttentionOutputs& outputs) {
  execute::Bindings bindings = state_->bind(inputs);
  bindings.output("out", outputs.out);
  state_->bind_kept(outputs, [&](const char* name, const TensorView& tensor) { bindings.output(name, tensor); });
  state_->passes.run(Pass::forward, bindings);
}

void DistributedLinearAttention::backward(const LinearAttentionInputs& inputs, const LinearAttentionOutputs& outputs, ConstTensorView dout,
                                          const LinearAttentionGradients& results) {
  require_given_as_planned("linear attention", results.dlog_decay, problem().decay != Decay::none, "dlog_decay", "decay");
  require_given_as_planned("linear attention", results.dbeta, problem().delta_rule, "dbeta", "delta_rule");
  execute::Bindings bindings = state_->bind(inputs);
  bindings.input("dout", dout);
  state_->bind_kept(outputs, [&](const char* name, const TensorView& tensor) { bindings.input(name, tensor); });
  if (problem().normalise) bindings.input("out", outputs.out);
  bindings.output("dq", results.dq).output("dk", results.dk).output("dv", results.dv);
  if (problem().decay != Decay::none) bindings.output("dlog_decay", results.dlog_decay);
  if (problem().delta_rule) bindings.output("dbeta", results.dbeta);
  state_->passes.run(Pass::backward, bindings);
}

}  // namespace periplus
