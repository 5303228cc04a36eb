#include "launch/linear_check.h"

#include <algorithm>
#include <array>
#include <random>

#include <fmt/format.h>

#include "kernels/linear_attention.h"
#include "kernels/reference/pairwise_attention.h"
#include "launch/attention_run.h"
#include "launch/linear_options.h"
#include "launch/linear_run.h"
#include "launch/rows.h"
#include "runtime/comm/thread_transport.h"

namespace periplus::launch {
namespace {

struct Whole {
  Tensor q, k, v, log_decay, beta, dout;
  GlobalLinear views() const { return {q, k, v, log_decay.view(), beta.view(), dout}; }
};

Whole random_inputs(const LinearAttentionProblem& problem, const Memory& memory) {
  std::mt19937_64 random(7);
  const auto make = [&](std::int64_t width, double least, double most) {
    return uniform_tensor({problem.layout.tokens(), problem.heads, width}, least, most, random, memory);
  };
  // Keys shorter than 1: the delta rule takes away at most what is there.
  const double key = 1 / std::sqrt(static_cast<double>(problem.head_size));
  Whole whole;
  // Weights that are divided by must not cancel.
  whole.q = make(problem.head_size, problem.normalise ? 0 : -1, 1);
  whole.k = make(problem.head_size, problem.normalise ? 0 : -key, key);
  whole.v = make(problem.value(), -1, 1);
  whole.dout = make(problem.value(), -1, 1);
  if (problem.decay != Decay::none) whole.log_decay = make(problem.decay == Decay::scalar ? 1 : problem.head_size, -0.5, 0);
  if (problem.delta_rule) whole.beta = make(1, 0, 1);
  return whole;
}

/// out, dq, dk, dv, dlog_decay, dbeta; empty ones where there is nothing.
using Results = std::array<Tensor, 6>;

Results empty_results(const Whole& whole, const Memory& memory) {
  const auto like = [&](const Tensor& tensor) { return tensor.empty() ? Tensor() : Tensor::zeros(tensor.shape(), DType::f64, memory); };
  return {like(whole.v), like(whole.q), like(whole.k), like(whole.v), like(whole.log_decay), like(whole.beta)};
}

/// What a recurrence alone does not compute, by its definition.
Results pairwise_reference(const LinearAttentionProblem& problem, const Whole& whole, const Memory& memory) {
  Results results = empty_results(whole, memory);
  const auto borders = problem.layout.cu_seqlens();
  const kernels::reference::PairwiseAttention pairs{whole.q,
                                                    whole.k,
                                                    whole.v,
                                                    whole.log_decay.view(),
                                                    {borders.begin(), borders.end()},
                                                    problem.bidirectional,
                                                    problem.normalise,
                                                    problem.scale_or_default(),
                                                    problem.epsilon};
  pairs.forward(results[0]);
  pairs.backward(whole.dout, results[1], results[2], results[3], results[4].view());
  return results;
}

/// Every document is a run of its own that no state enters or leaves.
Results reference(const LinearAttentionProblem& problem, const Whole& whole, const Memory& memory) {
  if (problem.bidirectional || problem.normalise) return pairwise_reference(problem, whole, memory);
  const Stream stream;
  Results results = empty_results(whole, memory);
  const auto borders = problem.layout.cu_seqlens();
  std::vector<kernels::UnitRun> runs;
  for (std::size_t document = 0; document + 1 < borders.size(); ++document) {
    if (borders[document + 1] > borders[document]) runs.push_back({borders[document], borders[document + 1] - borders[document]});
  }
  const kernels::LinearBlock block{whole.q, whole.k, whole.v, whole.log_decay.view(), whole.beta.view(), runs, problem.scale_or_default()};
  const Tensor nothing = Tensor::zeros({1, problem.heads, problem.state_width()}, DType::f64, memory);
  kernels::unit_apply(block, nothing, results[0], stream);
  kernels::unit_apply_backward(block, nothing, whole.dout, nothing,
                               {results[1], results[2], results[3], results[4].view(), results[5].view()}, stream);
  return results;
}

Results distributed(const LinearAttentionProblem& problem, const LinearAttentionOptions& options, const Whole& whole, const Memory& memory,
                    Device device) {
  Results results = empty_results(whole, memory);
  comm::run_thread_ranks(problem.layout.ranks(), [&](const comm::Communicator& communicator) {
    const LocalLinear local = run_linear(problem, options, whole.views(), communicator, Memory(device), stream_on(device));
    const std::array<const Tensor*, 6> parts = {&local.out, &local.dq, &local.dk, &local.dv, &local.dlog_decay, &local.dbeta};
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (!results[i].empty()) put_rows(*parts[i], problem.layout, communicator.rank(), results[i]);
    }
  });
  return results;
}

}  // namespace

std::string LinearVerificationCase::name() const {
  return fmt::format("{}{}{}{}", delta_rule ? "delta rule, " : "", to_text(decay), bidirectional ? ", bidirectional" : "",
                     normalise ? ", normalised" : "");
}

std::vector<LinearVerificationCase> linear_verification_cases() {
  std::vector<LinearVerificationCase> cases;
  for (const Decay decay : {Decay::none, Decay::scalar, Decay::diagonal}) cases.push_back({decay});
  for (const Decay decay : {Decay::none, Decay::scalar}) cases.push_back({.decay = decay, .delta_rule = true});
  for (const Decay decay : {Decay::none, Decay::scalar, Decay::diagonal}) cases.push_back({.decay = decay, .bidirectional = true});
  cases.push_back({.decay = Decay::scalar, .normalise = true});
  cases.push_back({.decay = Decay::diagonal, .bidirectional = true, .normalise = true});
  return cases;
}

LinearAttentionProblem verification_problem(LayoutKind layout, const LinearVerificationCase& problem_case,
                                            std::span<const std::int64_t> borders, int ranks) {
  LinearAttentionProblem problem{.layout = SequenceLayout::make(layout, ranks, borders)};
  problem.heads = 3;
  problem.head_size = 8;
  problem.value_size = 6;
  problem.dtype = DType::f64;
  problem.decay = problem_case.decay;
  problem.delta_rule = problem_case.delta_rule;
  problem.bidirectional = problem_case.bidirectional;
  problem.normalise = problem_case.normalise;
  return problem;
}

NumericCheck compare_with_reference(const LinearAttentionProblem& problem, const LinearAttentionOptions& options, Device device) {
  const Memory memory;
  const Whole whole = random_inputs(problem, memory);
  const Results expected = reference(problem, whole, memory), found = distributed(problem, options, whole, memory, device);
  NumericCheck check;
  check.forward_error = largest_difference(expected[0], found[0]);
  for (std::size_t i = 1; i < expected.size(); ++i) {
    if (!expected[i].empty()) check.backward_error = std::max(check.backward_error, largest_difference(expected[i], found[i]));
  }
  return check;
}

}  // namespace periplus::launch
