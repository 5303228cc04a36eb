#include "launch/attention_check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include <fmt/format.h>

#include "kernels/attention.h"
#include "launch/attention_options.h"
#include "launch/attention_run.h"
#include "launch/rows.h"
#include "parallel/balanced_layout.h"
#include "runtime/comm/thread_transport.h"

namespace periplus::launch {
namespace {

struct Whole {
  Tensor q, k, v, sink, dout, dlse;
  GlobalAttention views() const { return {q, k, v, sink.empty() ? ConstTensorView() : ConstTensorView(sink), dout, dlse}; }
};

Whole random_inputs(const AttentionProblem& problem, const Memory& memory) {
  std::mt19937_64 random(7);
  const std::int64_t tokens = problem.layout.tokens();
  const auto make = [&](std::int64_t rows, std::int64_t heads, std::int64_t width) {
    return uniform_tensor({rows, heads, width}, -1, 1, random, memory);
  };
  Whole whole;
  whole.q = make(tokens, problem.q_heads, problem.head_size);
  whole.k = make(tokens, problem.kv_heads, problem.head_size);
  whole.v = make(tokens, problem.kv_heads, problem.value_size);
  whole.dout = make(tokens, problem.q_heads, problem.value_size);
  whole.dlse = make(tokens, problem.q_heads, 1);
  if (problem.sink) whole.sink = make(1, problem.q_heads, 1);
  return whole;
}

struct Results {
  Tensor out, lse, dq, dk, dv, dsink;
};

Results empty_results(const AttentionProblem& problem, const Whole& whole, const Memory& memory) {
  const auto zeros = [&](const Extents& shape) { return Tensor::zeros(shape, DType::f64, memory); };
  return {zeros(whole.dout.shape()), zeros(whole.dlse.shape()), zeros(whole.q.shape()),
          zeros(whole.k.shape()),    zeros(whole.v.shape()),    zeros({1, problem.q_heads, 1})};
}

Results reference(const AttentionProblem& problem, const Whole& whole, const Memory& memory) {
  const Stream stream;
  Results results = empty_results(problem, whole, memory);
  const Tensor state_out = Tensor::zeros(whole.dout.shape(), DType::f64, memory),
               state_lse = Tensor::zeros(whole.dlse.shape(), DType::f64, memory);
  const Tensor delta = Tensor::zeros(whole.dlse.shape(), DType::f64, memory);
  const GlobalAttention views = whole.views();
  const kernels::AttentionBlock block{views.q, views.k, views.v, problem.mask.bands(), problem.scale_or_default(), problem.softcap};
  kernels::attend(block, {state_out, state_lse}, kernels::Update::overwrite, stream);
  kernels::finish(state_out, state_lse, views.sink, results.out, results.lse, stream);
  kernels::delta(views.dout, results.out, results.lse, views.dlse, views.sink, delta, problem.sink ? results.dsink.view() : TensorView(),
                 stream);
  kernels::attend_backward(block, views.dout, results.lse, delta, {results.dq, results.dk, results.dv}, stream);
  return results;
}

Results distributed(const AttentionProblem& problem, const AttentionOptions& options, const Whole& whole, const Memory& memory,
                    Device device) {
  Results results = empty_results(problem, whole, memory);
  const auto body = [&](const comm::Communicator& communicator) {
    const int rank = communicator.rank();
    const LocalAttention local = run_attention(problem, options, whole.views(), communicator, Memory(device), stream_on(device));
    put_rows(local.out, problem.layout, rank, results.out);
    put_rows(local.lse, problem.layout, rank, results.lse);
    put_rows(local.dq, problem.layout, rank, results.dq);
    put_rows(local.dk, problem.layout, rank, results.dk);
    put_rows(local.dv, problem.layout, rank, results.dv);
    if (!problem.sink) return;
    communicator.all_reduce(local.dsink, comm::Reduce::sum, Stream());
    if (rank == 0) copy(local.dsink, results.dsink);
  };
  comm::run_thread_ranks(problem.layout.ranks(), body);
  return results;
}

}  // namespace

Tensor uniform_tensor(const Extents& shape, double least, double most, std::mt19937_64& random, const Memory& memory) {
  Tensor tensor(shape, DType::f64, memory);
  std::uniform_real_distribution<double> uniform(least, most);
  for (double& value : tensor.view().span<double>()) value = uniform(random);
  return tensor;
}

double largest_difference(const Tensor& a, const Tensor& b) {
  double largest = 0;
  const auto left = a.view().span<double>(), right = b.view().span<double>();
  for (std::size_t i = 0; i < left.size(); ++i) {
    if (left[i] == right[i]) continue;  // also -inf of rows that see nothing
    const double error = std::abs(left[i] - right[i]);
    largest = std::max(largest, std::isnan(error) ? std::numeric_limits<double>::infinity() : error);
  }
  return largest;
}

std::string VerificationCase::name() const {
  return fmt::format("{}{} heads {}/{}{}{}", to_text(mask), sink ? " sink logit" : "", q_heads, kv_heads,
                     dtype == DType::f64 ? "" : fmt::format(" {}", to_string(dtype)), contiguous_kv ? "" : " strided kv");
}

std::vector<VerificationCase> verification_cases() {
  return {{.mask = {.causal = true}},
          {.mask = {.causal = true}, .q_heads = 2, .kv_heads = 2, .sink = true},
          {.mask = {.causal = false}, .q_heads = 6, .kv_heads = 3},
          {.mask = {.causal = true, .window_left = 5}, .q_heads = 8, .kv_heads = 2},
          {.mask = {.causal = false, .window_left = 4, .window_right = 3}, .dtype = DType::bf16},
          {.mask = {.causal = true, .window_left = 3, .sink_tokens = 2}, .q_heads = 6, .kv_heads = 3, .contiguous_kv = false}};
}

std::vector<std::vector<std::int64_t>> verification_documents(int ranks) {
  const std::int64_t p = ranks;
  constexpr int kMostForAll = 16;  // a proof takes time that grows faster than the rank count
  std::vector<std::vector<std::int64_t>> all = {{0, 6 * p + 5}};
  if (ranks <= kMostForAll) all.push_back({0, std::max<std::int64_t>(p - 1, 1)});
  std::vector<std::int64_t> borders = {0};
  for (const std::int64_t length : {std::int64_t{1}, 2 * p + 1, std::int64_t{0}, p, std::int64_t{3}, 3 * p - 1})
    borders.push_back(borders.back() + length);
  all.push_back(borders);
  return all;
}

AttentionProblem verification_problem(LayoutKind layout, const VerificationCase& problem_case, std::span<const std::int64_t> borders,
                                      int ranks) {
  const Mask mask(problem_case.mask, borders);
  AttentionProblem problem{.layout = make_layout(layout, ranks, mask), .mask = mask};
  problem.q_heads = problem_case.q_heads;
  problem.kv_heads = problem_case.kv_heads;
  problem.head_size = 8;
  problem.value_size = 6;
  problem.dtype = problem_case.dtype;
  problem.sink = problem_case.sink;
  problem.contiguous_kv = problem_case.contiguous_kv;
  problem.lse_gradient = true;
  return problem;
}

NumericCheck compare_with_reference(const AttentionProblem& as_stored, const AttentionOptions& options, Device device) {
  AttentionProblem problem = as_stored;
  problem.dtype = DType::f64;
  const Memory memory;
  const Whole whole = random_inputs(problem, memory);
  const Results expected = reference(problem, whole, memory), found = distributed(problem, options, whole, memory, device);
  NumericCheck check;
  check.forward_error = std::max(largest_difference(expected.out, found.out), largest_difference(expected.lse, found.lse));
  check.backward_error = std::max({largest_difference(expected.dq, found.dq), largest_difference(expected.dk, found.dk),
                                   largest_difference(expected.dv, found.dv), largest_difference(expected.dsink, found.dsink)});
  return check;
}

}  // namespace periplus::launch
