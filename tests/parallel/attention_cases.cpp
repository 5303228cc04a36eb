#include "tests/parallel/attention_cases.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <random>
#include <tuple>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kernels/attention.h"
#include "parallel/balanced_layout.h"
#include "parallel/strategy/strategy.h"

namespace periplus::test {
namespace {

Tensor random_tensor(const Extents& shape, double factor, std::mt19937_64& random, const Memory& memory) {
  std::normal_distribution<double> normal;
  Tensor tensor(shape, DType::f64, memory);
  for (double& x : tensor.view().span<double>()) x = factor * normal(random);
  return tensor;
}

/// This rank's rows of a global tensor, in `dtype`; with `gap` inside a wider buffer, so that rows are not adjacent.
struct LocalRows {
  Tensor storage;
  TensorView view;
};
LocalRows local_rows(ConstTensorView global, const SequenceLayout& layout, int rank, DType dtype, bool gap, const Memory& memory) {
  const auto rows = layout.global_rows(rank);
  const std::int64_t n = layout.rows_of(rank), heads = global.size(1), width = global.size(2);
  LocalRows local{Tensor({n, heads + (gap ? 1 : 0), width}, dtype, memory), {}};
  local.view = local.storage.view().slice(1, 0, heads);
  for (std::int64_t t = 0; t < n; ++t) copy(global.slice(0, rows[static_cast<std::size_t>(t)], 1), local.view.slice(0, t, 1));
  return local;
}

double largest(ConstTensorView tensor) {
  double most = 0;
  for (const double x : tensor.span<double>()) most = std::max(most, std::isfinite(x) ? std::abs(x) : 0.0);
  return most;
}

/// NaN counts as infinitely wrong; equal infinities as right.
double worst_difference(const Tensor& local, ConstTensorView global, const SequenceLayout& layout, int rank, const Memory& memory) {
  Tensor wide(local.shape(), DType::f64, memory);
  copy(local, wide);
  const auto rows = layout.global_rows(rank);
  const auto row_elements = static_cast<std::size_t>(global.size(1) * global.size(2));
  const auto got = wide.view().span<double>();
  const auto want = global.span<double>();
  double worst = 0;
  for (std::size_t t = 0; t < rows.size(); ++t) {
    for (std::size_t i = 0; i < row_elements; ++i) {
      const double a = got[t * row_elements + i], b = want[static_cast<std::size_t>(rows[t]) * row_elements + i];
      if (a == b) continue;
      const double difference = std::abs(a - b);
      worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
    }
  }
  return worst / std::max(1.0, largest(global));
}

}  // namespace

AttentionProblem problem_of(const AttentionCase& c, DType dtype, int ranks) {
  const Mask mask(c.mask, c.cu_seqlens);
  AttentionProblem p{make_layout(c.layout, ranks, mask), mask};
  p.q_heads = c.q_heads, p.kv_heads = c.kv_heads, p.head_size = c.head_size, p.value_size = c.value_size;
  p.dtype = dtype;
  p.sink = c.sink, p.lse_gradient = c.lse_gradient, p.contiguous_kv = c.contiguous_kv;
  return p;
}

std::string to_string(const AttentionCase& c) {
  return fmt::format(
      "{} {} cu={} causal={} window={},{} sink_tokens={} heads={}/{} size={}/{} sink={} lse_gradient={} contiguous={} logits={} seed={}",
      name_of(c.options), to_string(c.layout), c.cu_seqlens, c.mask.causal, c.mask.window_left, c.mask.window_right, c.mask.sink_tokens,
      c.q_heads, c.kv_heads, c.head_size, c.value_size, c.sink, c.lse_gradient, c.contiguous_kv, c.logits, c.seed);
}

AttentionOracle make_oracle(const AttentionCase& c, const Memory& memory) {
  std::mt19937_64 random(c.seed);
  const std::int64_t n = c.cu_seqlens.back();
  const auto make = [&](std::int64_t rows, int heads, int width, double factor = 1) {
    return random_tensor({rows, heads, width}, factor, random, memory);
  };
  AttentionOracle o;
  o.q = make(n, c.q_heads, c.head_size, c.logits), o.k = make(n, c.kv_heads, c.head_size), o.v = make(n, c.kv_heads, c.value_size);
  o.dout = make(n, c.q_heads, c.value_size), o.dlse = make(n, c.q_heads, 1, c.lse_gradient ? 1 : 0), o.sink = make(1, c.q_heads, 1);
  const auto zeros = [&](const Tensor& like) { return Tensor::zeros(like.shape(), DType::f64, memory); };
  o.out = zeros(o.dout), o.lse = zeros(o.dlse), o.dq = zeros(o.q), o.dk = zeros(o.k), o.dv = zeros(o.v), o.dsink = zeros(o.sink);

  const Stream stream;
  const Mask mask(c.mask, c.cu_seqlens);
  const kernels::AttentionBlock block{o.q, o.k, o.v, mask.bands(), 1 / std::sqrt(static_cast<double>(c.head_size)), 0};
  const Tensor state_out = zeros(o.out), state_lse = zeros(o.lse), delta = zeros(o.lse);
  kernels::attend(block, {state_out, state_lse}, kernels::Update::overwrite, stream);
  const ConstTensorView sink = c.sink ? ConstTensorView(o.sink) : ConstTensorView();
  kernels::finish(state_out, state_lse, sink, o.out, o.lse, stream);
  kernels::delta(o.dout, o.out, o.lse, o.dlse, sink, delta, c.sink ? o.dsink.view() : TensorView(), stream);
  kernels::attend_backward(block, o.dout, o.lse, delta, {o.dq, o.dk, o.dv}, stream);
  o.largest_score = largest(o.q) * largest(o.k) * std::sqrt(static_cast<double>(c.head_size));
  return o;
}

namespace {

/// This rank's part of a case: inputs, and results full of NaN, so that a cell nobody writes is seen.
struct LocalRun {
  AttentionProblem problem;
  LocalRows q, k, v, dout, dlse;
  Tensor sink, out, lse, dq, dk, dv, dsink;

  LocalRun(const AttentionCase& c, const AttentionOracle& o, DType dtype, const comm::Communicator& communicator, const Memory& memory)
      : problem(problem_of(c, dtype, communicator.size())) {
    const DType accumulator = accumulator_of(dtype);
    const auto local = [&](const Tensor& global, DType type, bool gap) {
      return local_rows(global, problem.layout, communicator.rank(), type, gap, memory);
    };
    q = local(o.q, dtype, true), k = local(o.k, dtype, !c.contiguous_kv), v = local(o.v, dtype, !c.contiguous_kv);
    dout = local(o.dout, dtype, true), dlse = local(o.dlse, accumulator, true);
    sink = Tensor(o.sink.shape(), accumulator, memory);
    copy(o.sink, sink);
    const auto like = [&](ConstTensorView view, DType type) {
      Tensor tensor(view.shape(), type, memory);
      const Tensor nan = Tensor::zeros(view.shape(), DType::f64, memory);
      for (double& x : nan.view().span<double>()) x = NAN;
      copy(nan, tensor);
      return tensor;
    };
    out = like(dout.view, dtype), lse = like(dlse.view, accumulator), dsink = like(sink, accumulator);
    dq = like(q.view, dtype), dk = like(k.view, dtype), dv = like(v.view, dtype);
  }

  void run(DistributedAttention& attention) {
    const AttentionInputs inputs{q.view, k.view, v.view, problem.sink ? ConstTensorView(sink) : ConstTensorView()};
    const AttentionOutputs outputs{out, lse};
    attention.forward(inputs, outputs);
    attention.backward(inputs, outputs, {dout.view, problem.lse_gradient ? ConstTensorView(dlse.view) : ConstTensorView()},
                       {dq, dk, dv, problem.sink ? dsink.view() : TensorView()});
  }
};

}  // namespace

AttentionErrors run_case(const AttentionCase& c, const AttentionOracle& o, DType dtype, const comm::Communicator& communicator) {
  const Memory memory;
  LocalRun local(c, o, dtype, communicator, memory);
  DistributedAttention attention(local.problem, c.options, communicator, memory);
  local.run(attention);
  const auto worst = [&](const Tensor& mine, const Tensor& global) {
    return worst_difference(mine, global, local.problem.layout, communicator.rank(), memory);
  };
  AttentionErrors errors;
  errors.forward = std::max(worst(local.out, o.out), worst(local.lse, o.lse));
  errors.backward = std::max({worst(local.dq, o.dq), worst(local.dk, o.dk), worst(local.dv, o.dv)});
  if (c.sink) {
    communicator.all_reduce(local.dsink, comm::Reduce::sum, Stream());
    const SequenceLayout one = SequenceLayout::make(LayoutKind::contiguous, 1, std::vector<std::int64_t>{0, 1});
    errors.backward = std::max(errors.backward, worst_difference(local.dsink, o.dsink, one, 0, memory));
  }
  return errors;
}

std::vector<char> run_for_bytes(const AttentionCase& c, const AttentionOracle& oracle, DType dtype,
                                const comm::Communicator& communicator) {
  const Memory memory;
  LocalRun local(c, oracle, dtype, communicator, memory);
  DistributedAttention attention(local.problem, c.options, communicator, memory);
  local.run(attention);
  std::vector<char> all;
  for (const Tensor* t : {&local.out, &local.lse, &local.dq, &local.dk, &local.dv}) {
    const auto* bytes = reinterpret_cast<const char*>(t->view().bytes());
    all.insert(all.end(), bytes, bytes + t->view().size_bytes());
  }
  return all;
}

std::string refusal(const AttentionCase& c, int ranks) { return refusal(problem_of(c, DType::f64, ranks), c.options); }

std::vector<AttentionCase> sample(int ranks, const AttentionOptions& options, std::size_t most) {
  std::mt19937_64 random(1234 + static_cast<std::uint64_t>(ranks));
  constexpr std::pair<int, int> kHeads[] = {{1, 1}, {2, 1}, {3, 3},  {4, 2},  {5, 1},  {6, 3},
                                            {8, 2}, {7, 7}, {12, 4}, {16, 2}, {10, 5}, {16, 16}};
  std::vector<AttentionCase> all = sweep(ranks), cases;
  std::shuffle(all.begin(), all.end(), random);
  for (AttentionCase& c : all) {
    if (cases.size() == most) break;
    if (c.cu_seqlens.back() > 300) continue;  // the sweep of the ring has them
    c.options = options;
    std::tie(c.q_heads, c.kv_heads) = kHeads[random() % std::size(kHeads)];
    if (refusal(c, ranks).empty()) cases.push_back(c);
  }
  return cases;
}

std::vector<AttentionCase> sweep(int ranks) {
  std::mt19937_64 random(77 + static_cast<std::uint64_t>(ranks));
  const auto below = [&](std::int64_t n) { return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n)); };
  std::vector<std::vector<std::int64_t>> packings{{0, 1}, {0, 7}, {0, 65}, {0, 1000}, {0, 1, 2, 3, 40, 41, 97}, {0, 0, 5, 5, 130}};
  for (int i = 0; i < 12; ++i) {
    std::vector<std::int64_t> cu{0};
    for (std::int64_t documents = 1 + below(6); documents > 0; --documents) cu.push_back(cu.back() + 1 + below(i % 3 == 0 ? 8 : 90));
    packings.push_back(cu);
  }
  const std::vector<MaskSpec> masks{{true, -1, -1, 0}, {false, -1, -1, 0}, {true, 9, -1, 0}, {true, 5, -1, 3}, {false, 4, 6, 2}};
  const std::vector<std::pair<int, int>> heads{{2, 2}, {2, 1}, {4, 1}, {4, 2}};
  std::vector<AttentionCase> cases;
  for (const LayoutKind layout :
       {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped, LayoutKind::document_zigzag, LayoutKind::balanced}) {
    for (std::size_t i = 0; i < packings.size(); ++i) {
      AttentionCase c;
      c.layout = layout;
      c.cu_seqlens = packings[i];
      c.mask = masks[i == 3 ? 0 : static_cast<std::size_t>(below(5))];
      std::tie(c.q_heads, c.kv_heads) = heads[static_cast<std::size_t>(below(4))];
      c.sink = below(3) == 0;
      c.lse_gradient = below(2) == 0;
      c.contiguous_kv = below(3) != 0;
      c.logits = below(6) == 0 ? 3000 : 1;
      c.seed = random();
      cases.push_back(c);
    }
  }
  return cases;
}

}  // namespace periplus::test
