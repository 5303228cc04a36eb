#include "tests/parallel/linear_cases.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "parallel/strategy/linear/strategy.h"
#include "parallel/units.h"

namespace periplus::test {
namespace {

/// What kernels get of the tokens [begin, end): one run.
kernels::LinearBlock block_of(const LinearOracle& o, std::int64_t begin, std::int64_t end, std::span<const kernels::UnitRun> runs,
                              double scale) {
  const auto part = [&](const Tensor& tensor) {
    return tensor.view().dims() == 0 ? ConstTensorView() : ConstTensorView(tensor.view().slice(0, begin, end - begin));
  };
  return {part(o.q), part(o.k), part(o.values), part(o.log_decay), part(o.beta), runs, scale};
}

/// Keys of length one, so that the delta rule forgets and does not grow.
void normalise_rows(const Tensor& tensor) {
  const auto width = static_cast<std::size_t>(tensor.shape()[2]);
  const auto all = tensor.view().span<double>();
  for (std::size_t i = 0; i < all.size(); i += width) {
    double sum = 0;
    for (std::size_t j = i; j < i + width; ++j) sum += all[j] * all[j];
    for (std::size_t j = i; j < i + width; ++j) all[j] /= std::sqrt(sum);
  }
}

}  // namespace

LinearAttentionProblem problem_of(const LinearCase& c, DType dtype, int ranks) {
  LinearAttentionProblem p{SequenceLayout::make(c.layout, ranks, c.cu_seqlens)};
  p.heads = c.heads, p.head_size = c.head_size, p.value_size = c.value_size;
  p.dtype = dtype, p.decay = c.decay, p.delta_rule = c.delta_rule;
  p.bidirectional = c.bidirectional, p.normalise = c.normalise;
  return p;
}

std::string to_string(const LinearCase& c) {
  return fmt::format(
      "{} pieces={} any_layout={} keep={} {} cu={} decay={} delta_rule={} bidirectional={} normalise={} heads={} size={}/{} strength={} "
      "seed={}",
      c.options.strategy, c.options.pieces, c.options.any_layout, c.options.keep_transitions, to_string(c.layout), c.cu_seqlens,
      static_cast<int>(c.decay), c.delta_rule, c.bidirectional, c.normalise, c.heads, c.head_size, c.value_size, c.strength, c.seed);
}

std::vector<LinearAttentionOptions> linear_variants() {
  std::vector<LinearAttentionOptions> all;
  for (const strategy::linear::Strategy& strategy : strategy::linear::strategies()) {
    all.push_back({.strategy = std::string(strategy.name)});
    if (strategy.pieces == 0) continue;
    for (const int pieces : {1, 3}) all.push_back({.strategy = std::string(strategy.name), .pieces = pieces});
    if (strategy.gathers_transitions) all.push_back({.strategy = std::string(strategy.name), .keep_transitions = true});
  }
  return all;
}

std::vector<LinearCase> linear_sweep(int ranks, const LinearAttentionOptions& options) {
  const std::int64_t chunk = 8;  // of a contiguous unit; half of it of a zigzag unit
  const std::int64_t n = chunk * ranks;
  const std::vector<std::vector<std::int64_t>> packings{
      {0, n},                                  // one document
      {0, chunk, n},                           // a border between units
      {0, 3, 3, n / 2 + 1, n + 5},             // borders inside units, an empty document, uneven units
      {0, 1, 2, 3, 4, n - 1, n},               // documents of one token
      {0, std::max(1, ranks - 1)},             // shorter than the ranks: some have nothing
      {0, 2, n - 3, n - 2, n - 1, n, 2 * n}};  // many units inside one document, after short ones
  std::vector<LinearCase> cases;
  std::uint64_t turn = 0;
  for (const LayoutKind layout : {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped, LayoutKind::document_zigzag}) {
    for (const auto& cu : packings) {
      for (const bool delta_rule : {false, true}) {
        LinearCase c{.layout = layout, .cu_seqlens = cu, .delta_rule = delta_rule};
        if (!std::ranges::is_sorted(cu) || (options.keep_transitions && !delta_rule)) continue;
        c.options = options;
        c.options.any_layout = layout != LayoutKind::contiguous && layout != LayoutKind::zigzag;
        c.decay = std::array{Decay::none, Decay::scalar, Decay::diagonal}[turn % 3];
        c.heads = turn % 4 == 3 ? 5 : 3;
        if (turn % 5 == 4) c.head_size = 3, c.value_size = 5;
        c.strength = turn % 7 == 6 ? 30 : 0.2;
        c.seed = ++turn;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

std::vector<LinearCase> extended_sweep(int ranks, const LinearAttentionOptions& options) {
  std::vector<LinearCase> cases;
  for (LinearCase c : linear_sweep(ranks, options)) {
    if (c.delta_rule) continue;
    const std::size_t kind = (cases.size() + cases.size() / 3) % 3;  // decays come in turns of three
    c.bidirectional = kind != 1, c.normalise = kind != 0;
    cases.push_back(c);
  }
  return cases;
}

PairwiseAttention pairwise(const LinearCase& c, const LinearOracle& o) {
  const LinearAttentionProblem p = problem_of(c, DType::f64, 1);
  return {o.q, o.k, o.v, o.log_decay.view(), c.cu_seqlens, c.bidirectional, c.normalise, p.scale_or_default(), p.epsilon};
}

LinearOracle make_linear_oracle(const LinearCase& c, const Memory& memory) {
  std::mt19937_64 random(c.seed);
  const std::int64_t n = c.cu_seqlens.back();
  const auto make = [&](int width) { return random_tensor({n, c.heads, width}, 1, random, memory); };
  LinearOracle o;
  o.q = make(c.head_size), o.k = make(c.head_size), o.v = make(c.value_size), o.dout = make(c.value_size);
  normalise_rows(o.k);
  const auto zeros = [&](const Tensor& like) { return Tensor::zeros(like.shape(), DType::f64, memory); };
  if (c.decay != Decay::none) {
    o.log_decay = make(c.decay == Decay::scalar ? 1 : c.head_size);
    for (double& x : o.log_decay.view().span<double>()) x = -c.strength * std::abs(x);
    o.dlog_decay = zeros(o.log_decay);
  }
  if (c.delta_rule) {
    o.beta = make(1);
    for (double& x : o.beta.view().span<double>()) x = 1 / (1 + std::exp(-x));
    o.dbeta = zeros(o.beta);
  }
  o.out = zeros(o.v), o.dq = zeros(o.q), o.dk = zeros(o.k), o.dv = zeros(o.v);
  const std::int64_t extra = c.normalise ? 1 : 0;
  o.values = Tensor({n, c.heads, c.value_size + extra}, DType::f64, memory);
  std::ranges::fill(o.values.view().span<double>(), 1.0);
  copy(o.v, o.values.view().slice(2, 0, c.value_size));
  if (c.normalise) {  // weights that cannot cancel
    for (const Tensor* tensor : {&o.q, &o.k}) {
      for (double& x : tensor->view().span<double>()) x = std::abs(x);
    }
  }

  std::vector<kernels::UnitRun> runs;
  for (std::size_t d = 0; d + 1 < c.cu_seqlens.size(); ++d) {
    const std::int64_t rows = c.cu_seqlens[d + 1] - c.cu_seqlens[d];
    if (rows > 0) runs.push_back({c.cu_seqlens[d], rows, 0, false, false});
  }
  if (n == 0) return o;
  const LinearAttentionProblem p = problem_of(c, DType::f64, 1);
  if (c.bidirectional || c.normalise) {
    const PairwiseAttention pairs = pairwise(c, o);
    pairs.forward(o.out);
    pairs.backward(o.dout, o.dq, o.dk, o.dv, o.dlog_decay.view());
    return o;
  }
  const kernels::LinearBlock block = block_of(o, 0, n, runs, p.scale_or_default());
  const Tensor state = Tensor::zeros({1, c.heads, p.state_width()}, DType::f64, memory);
  kernels::unit_apply(block, state, o.out, Stream());
  const auto view = [](const Tensor& tensor) { return tensor.view().dims() == 0 ? TensorView() : tensor.view(); };
  kernels::unit_apply_backward(block, state, o.dout, state, {o.dq, o.dk, o.dv, view(o.dlog_decay), view(o.dbeta)}, Stream());
  return o;
}

RankLinearAttention::RankLinearAttention(const LinearCase& c, const LinearOracle& o, DType dtype, const comm::Communicator& communicator)
    : oracle_(o),
      communicator_(communicator),
      problem_(problem_of(c, dtype, communicator.size())),
      attention_(problem_, c.options, communicator, memory_) {
  const DType accumulator = accumulator_of(dtype);
  q_ = local_rows(o.q, dtype), k_ = local_rows(o.k, dtype), v_ = local_rows(o.v, dtype), dout_ = local_rows(o.dout, dtype);
  const std::int64_t rows = problem_.layout.rows_of(communicator.rank()), heads = c.heads;
  if (c.decay != Decay::none) {
    log_decay_ = local_rows(o.log_decay, accumulator);
    dlog_decay_ = unwritten({rows, heads, o.log_decay.shape()[2]}, accumulator);
  }
  if (c.delta_rule) beta_ = local_rows(o.beta, accumulator), dbeta_ = unwritten({rows, heads, 1}, accumulator);
  out_ = unwritten({rows, heads, c.value_size}, dtype), dv_ = unwritten({rows, heads, c.value_size}, dtype);
  dq_ = unwritten({rows, heads, c.head_size}, dtype), dk_ = unwritten({rows, heads, c.head_size}, dtype);
  incoming_ = unwritten({attention_.units(), heads, problem_.state_width()}, accumulator);
  if (c.bidirectional) following_ = unwritten(incoming_.shape(), accumulator);
  if (c.normalise) normaliser_ = unwritten({rows, heads, 1}, accumulator);
  if (c.options.keep_transitions) {
    transitions_ = unwritten({attention_.transition_rows(), heads, problem_.element_width() - problem_.state_width()}, accumulator);
  }
}

/// This rank's rows of a global tensor, inside a wider buffer, so that rows are not adjacent.
RankLinearAttention::LocalRows RankLinearAttention::local_rows(ConstTensorView global, DType dtype) const {
  const auto rows = problem_.layout.global_rows(communicator_.rank());
  LocalRows local{Tensor({std::ssize(rows), global.size(1) + 1, global.size(2)}, dtype, memory_), {}};
  local.view = local.storage.view().slice(1, 0, global.size(1));
  for (std::size_t t = 0; t < rows.size(); ++t) copy(global.slice(0, rows[t], 1), local.view.slice(0, static_cast<std::int64_t>(t), 1));
  return local;
}

Tensor RankLinearAttention::unwritten(const Extents& shape, DType dtype) const {
  Tensor tensor(shape, dtype, memory_);
  const Tensor nan = Tensor::zeros(shape, DType::f64, memory_);
  for (double& x : nan.view().span<double>()) x = NAN;
  copy(nan, tensor);
  return tensor;
}

LinearAttentionInputs RankLinearAttention::inputs() const { return {q_.view, k_.view, v_.view, log_decay_.view, beta_.view}; }

void RankLinearAttention::forward() { attention_.forward(inputs(), outputs()); }

LinearAttentionOutputs RankLinearAttention::outputs() const {
  return {out_, incoming_, transitions_.view(), following_.view(), normaliser_.view()};
}

void RankLinearAttention::backward() {
  const auto view = [](const Tensor& tensor, bool given) { return given ? tensor.view() : TensorView(); };
  attention_.backward(inputs(), outputs(), dout_.view,
                      {dq_, dk_, dv_, view(dlog_decay_, problem_.decay != Decay::none), view(dbeta_, problem_.delta_rule)});
}

double RankLinearAttention::worst(const Tensor& mine, const Tensor& global) const {
  return worst_difference(widened(mine, memory_), global, problem_.layout.global_rows(communicator_.rank()));
}

Tensor RankLinearAttention::true_incoming() const {
  const Units units(problem_.layout);
  const auto own = units.of_rank(communicator_.rank());
  Tensor states = Tensor::zeros({std::ssize(own), problem_.heads, problem_.state_width()}, DType::f64, memory_);
  const auto cu = problem_.layout.cu_seqlens();
  for (std::size_t i = 0; i < own.size(); ++i) {
    const std::int64_t end = units.all()[static_cast<std::size_t>(own[i])].global0;
    const std::int64_t begin = *(std::ranges::upper_bound(cu, end) - 1);
    if (begin == end) continue;
    const kernels::UnitRun run{0, end - begin, 0, false, true};
    const Tensor element({1, problem_.heads, problem_.element_width()}, DType::f64, memory_);
    kernels::unit_states(block_of(oracle_, begin, end, {&run, 1}, 1), element, Stream());
    const std::int64_t transition = problem_.element_width() - problem_.state_width();
    copy(element.view().slice(2, transition, problem_.state_width()), states.view().slice(0, static_cast<std::int64_t>(i), 1));
  }
  return states;
}

LinearErrors RankLinearAttention::errors() const {
  LinearErrors errors{worst(out_, oracle_.out), 0, std::max({worst(dq_, oracle_.dq), worst(dk_, oracle_.dk), worst(dv_, oracle_.dv)})};
  if (problem_.decay != Decay::none) errors.gradients = std::max(errors.gradients, worst(dlog_decay_, oracle_.dlog_decay));
  if (problem_.delta_rule) errors.gradients = std::max(errors.gradients, worst(dbeta_, oracle_.dbeta));
  const Tensor states = true_incoming();
  errors.incoming = worst_difference(widened(incoming_, memory_), states, all_rows(states));
  return errors;
}

std::vector<char> RankLinearAttention::bytes() const {
  std::vector<char> all;
  for (const Tensor* t : {&out_, &incoming_, &following_, &normaliser_, &transitions_, &dq_, &dk_, &dv_, &dlog_decay_, &dbeta_}) {
    if (t->view().dims() == 0) continue;
    const auto* bytes = reinterpret_cast<const char*>(t->view().bytes());
    all.insert(all.end(), bytes, bytes + t->view().size_bytes());
  }
  return all;
}

LinearErrors run_linear_case(const LinearCase& c, const LinearOracle& oracle, DType dtype, const comm::Communicator& communicator) {
  RankLinearAttention attention(c, oracle, dtype, communicator);
  attention.forward();
  attention.backward();
  return attention.errors();
}

}  // namespace periplus::test
