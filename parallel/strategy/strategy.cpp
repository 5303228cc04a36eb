#include "parallel/strategy/strategy.h"

#include <array>
#include <numeric>
#include <vector>

#include <fmt/format.h>

#include "parallel/strategy/ring.h"
#include "runtime/error.h"

namespace periplus::strategy {
namespace {

std::string never_refuses(const AttentionProblem&) { return {}; }

/// The ring of all ranks of the problem, as one of them sees it.
template <class Fragment>
void with_ring(const AttentionProblem& problem, int self, Fragment&& fragment) {
  std::vector<plan::Rank> members(static_cast<std::size_t>(problem.layout.ranks()));
  std::iota(members.begin(), members.end(), 0);
  fragment(Ring{members, self, [&](int member) { return problem.layout.rows_of(member); },
                [&](int member, std::vector<Band>& bands) { append_bands_between(problem.layout, problem.mask, self, member, bands); },
                problem.scale_or_default(), problem.softcap});
}

void plan_ring_forward(plan::ProgramBuilder& program, const AttentionProblem& problem, const ForwardSlots& on) {
  const DType accumulator = accumulator_of(problem.dtype);
  const plan::View state_out = program.scratch("state.out", accumulator, on.out.rows, on.out.heads, program.width_of(on.out));
  const plan::View state_lse = program.scratch("state.lse", accumulator, on.lse.rows, on.lse.heads, 1);
  with_ring(problem, program.rank(), [&](const Ring& ring) { ring_forward(program, {on.q, on.k, on.v, state_out, state_lse}, ring); });
  program.finish({"finish"}, state_out, state_lse, on.sink, on.out, on.lse);
}

void plan_ring_backward(plan::ProgramBuilder& program, const AttentionProblem& problem, const BackwardSlots& on) {
  const plan::View dq = sum_of(program, on.dq, "dq.sum"), dk = sum_of(program, on.dk, "dk.sum"), dv = sum_of(program, on.dv, "dv.sum");
  with_ring(problem, program.rank(), [&](const Ring& ring) {
    ring_backward(program, {on.q, on.k, on.v, on.dout, on.lse, on.delta, dq, dk, dv}, ring);
  });
  settle(program, dq, on.dq);
  settle(program, dk, on.dk);
  settle(program, dv, on.dv);
}

std::int64_t ring_bytes(const AttentionProblem& problem, Pass pass) {
  const std::int64_t ranks = problem.layout.ranks();
  const std::int64_t elements = problem.layout.tokens() * problem.kv_heads * (problem.head_size + problem.value());
  const auto storage = static_cast<std::int64_t>(size_of(problem.dtype));
  const auto accumulator = static_cast<std::int64_t>(size_of(accumulator_of(problem.dtype)));
  const std::int64_t blocks = (ranks - 1) * elements * storage;
  return pass == Pass::forward || ranks == 1 ? blocks : blocks + ranks * elements * accumulator;
}

constexpr std::array<Strategy, 1> kStrategies{{
    {"ring", "K,V travel round a ring of all ranks; their gradients follow one hop behind", never_refuses, plan_ring_forward,
     plan_ring_backward, ring_bytes},
}};

}  // namespace

plan::View sum_of(plan::ProgramBuilder& program, plan::View result, std::string name) {
  const DType storage = program.dtype_of(result), accumulator = accumulator_of(storage);
  if (storage == accumulator) return result;
  return program.scratch(std::move(name), accumulator, result.rows, result.heads, program.width_of(result));
}

void settle(plan::ProgramBuilder& program, plan::View sum, plan::View result) {
  if (sum.slot != result.slot) program.copy({"cast"}, sum, result);
}

std::span<const Strategy> strategies() noexcept { return kStrategies; }

const Strategy& find_strategy(std::string_view name) {
  std::string names;
  for (const Strategy& strategy : kStrategies) {
    if (strategy.name == name) return strategy;
    names += (names.empty() ? "" : ", ") + std::string(strategy.name);
  }
  throw InvalidArgument(fmt::format("strategy '{}' is not known; there are: {}", name, names));
}

}  // namespace periplus::strategy
