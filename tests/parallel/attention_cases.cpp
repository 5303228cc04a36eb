#include "tests/parallel/attention_cases.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <random>
#include <tuple>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kernels/attention.h"
#include "parallel/balanced_layout.h"
#include "parallel/strategy/strategy.h"
#include "tests/parallel/global_tensors.h"

namespace periplus::test {
AttentionProblem problem_of(const AttentionCase& c, DType dtype, int ranks) {
  const Mask mask(c.mask, c.cu_seqlens);
  AttentionProblem p{make_layout(c.layout, ranks, mask), mask};
  p.q_heads = c.q_heads, p.kv_heads = c.kv_heads, p.head_size = c.head_size, p.value_size = c.value_size;
  p.dtype = dtype;
  p.sink = c.sink, p.lse_gradient = c.lse_gradient, p.contiguous_kv = c.contiguous_kv;
  p.softcap = c.softcap;
  return p;
}

std::string to_string(const AttentionCase& c) {
  return fmt::format(
      "{} {} cu={} causal={} window={},{} sink_tokens={} heads={}/{} size={}/{} sink={} lse_gradient={} contiguous={} logits={} softcap={} "
      "seed={}",
      name_of(c.options), to_string(c.layout), c.cu_seqlens, c.mask.causal, c.mask.window_left, c.mask.window_right, c.mask.sink_tokens,
      c.q_heads, c.kv_heads, c.head_size, c.value_size, c.sink, c.lse_gradient, c.contiguous_kv, c.logits, c.softcap, c.seed);
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
  const kernels::AttentionBlock block{o.q, o.k, o.v, mask.bands(), 1 / std::sqrt(static_cast<double>(c.head_size)), c.softcap};
  const Tensor state_out = zeros(o.out), state_lse = zeros(o.lse), delta = zeros(o.lse);
  kernels::attend(block, {state_out, state_lse}, kernels::Update::overwrite, stream);
  const ConstTensorView sink = c.sink ? ConstTensorView(o.sink) : ConstTensorView();
  kernels::finish(state_out, state_lse, sink, o.out, o.lse, stream);
  kernels::delta(o.dout, o.out, o.lse, o.dlse, sink, delta, c.sink ? o.dsink.view() : TensorView(), stream);
  kernels::attend_backward(block, o.dout, o.lse, delta, {o.dq, o.dk, o.dv}, stream);
  o.largest_score = largest(o.q) * largest(o.k) * std::sqrt(static_cast<double>(c.head_size));
  return o;
}

AttentionErrors differences(const AttentionResults& got, const AttentionResults& want) {
  const auto worst = [](const Tensor& a, const Tensor& b) { return worst_difference(a, b, all_rows(b)); };
  return {std::max(worst(got.out, want.out), worst(got.lse, want.lse)),
          std::max({worst(got.dq, want.dq), worst(got.dk, want.dk), worst(got.dv, want.dv), worst(got.dsink, want.dsink)})};
}

RankAttention::RankAttention(const AttentionCase& c, const AttentionOracle& o, DType dtype, const comm::Communicator& communicator,
                             const Stream& stream)
    : oracle_(o),
      stream_(stream),
      device_memory_(stream.device()),
      communicator_(communicator),
      problem_(problem_of(c, dtype, communicator.size())),
      attention_(problem_, c.options, communicator, device_memory_, nullptr, stream_) {
  const DType accumulator = accumulator_of(dtype);
  q_ = local_rows(o.q, dtype, true), k_ = local_rows(o.k, dtype, !c.contiguous_kv), v_ = local_rows(o.v, dtype, !c.contiguous_kv);
  dout_ = local_rows(o.dout, dtype, true), dlse_ = local_rows(o.dlse, accumulator, true);
  sink_ = Tensor(o.sink.shape(), accumulator, memory_);
  copy(o.sink, sink_);
  sink_ = placed(std::move(sink_));
  out_ = unwritten(dout_.view, dtype), lse_ = unwritten(dlse_.view, accumulator), dsink_ = unwritten(sink_, accumulator);
  dq_ = unwritten(q_.view, dtype), dk_ = unwritten(k_.view, dtype), dv_ = unwritten(v_.view, dtype);
}

/// This rank's rows of a global tensor; with `gap` inside a wider buffer, so that rows are not adjacent.
RankAttention::LocalRows RankAttention::local_rows(ConstTensorView global, DType dtype, bool gap) const {
  const auto rows = problem_.layout.global_rows(communicator_.rank());
  const std::int64_t heads = global.size(1), width = global.size(2);
  LocalRows local{Tensor({std::ssize(rows), heads + (gap ? 1 : 0), width}, dtype, memory_), {}};
  local.view = local.storage.view().slice(1, 0, heads);
  for (std::size_t t = 0; t < rows.size(); ++t) copy(global.slice(0, rows[t], 1), local.view.slice(0, static_cast<std::int64_t>(t), 1));
  local.storage = placed(std::move(local.storage));
  local.view = local.storage.view().slice(1, 0, heads);
  return local;
}

Tensor RankAttention::unwritten(ConstTensorView like, DType dtype) const {
  Tensor tensor(like.shape(), dtype, memory_);
  const Tensor nan = Tensor::zeros(like.shape(), DType::f64, memory_);
  for (double& x : nan.view().span<double>()) x = NAN;
  copy(nan, tensor);
  return placed(std::move(tensor));
}

Tensor RankAttention::placed(Tensor host) const {
  return stream_.device().kind == DeviceKind::cpu ? std::move(host) : to_device(host, device_memory_, stream_);
}

AttentionInputs RankAttention::inputs() const {
  return {q_.view, k_.view, v_.view, problem_.sink ? ConstTensorView(sink_) : ConstTensorView()};
}

void RankAttention::forward() { attention_.forward(inputs(), {out_, lse_}); }

void RankAttention::backward() {
  attention_.backward(inputs(), {out_, lse_}, {dout_.view, problem_.lse_gradient ? ConstTensorView(dlse_.view) : ConstTensorView()},
                      {dq_, dk_, dv_, problem_.sink ? dsink_.view() : TensorView()});
  if (stream_.device().kind == DeviceKind::cpu) return;
  for (Tensor* result : {&out_, &lse_, &dq_, &dk_, &dv_, &dsink_}) *result = to_host(*result, stream_);
}

double RankAttention::worst(const Tensor& mine, ConstTensorView global) const {
  return worst_difference(widened(mine, memory_), global, problem_.layout.global_rows(communicator_.rank()));
}

AttentionErrors RankAttention::errors() {
  AttentionErrors errors;
  errors.forward = std::max(worst(out_, oracle_.out), worst(lse_, oracle_.lse));
  errors.backward = std::max({worst(dq_, oracle_.dq), worst(dk_, oracle_.dk), worst(dv_, oracle_.dv)});
  if (problem_.sink) {
    communicator_.all_reduce(dsink_, comm::Reduce::sum, Stream());
    errors.backward = std::max(errors.backward, worst_difference(widened(dsink_, memory_), oracle_.dsink, all_rows(oracle_.dsink)));
  }
  return errors;
}

std::vector<char> RankAttention::bytes() const {
  std::vector<char> all;
  for (const Tensor* t : {&out_, &lse_, &dq_, &dk_, &dv_}) {
    const auto* bytes = reinterpret_cast<const char*>(t->view().bytes());
    all.insert(all.end(), bytes, bytes + t->view().size_bytes());
  }
  return all;
}

void RankAttention::store(AttentionResults& global) const {
  const auto rows = problem_.layout.global_rows(communicator_.rank());
  for (const auto& [mine, all] : {std::pair(&out_, &global.out), std::pair(&lse_, &global.lse), std::pair(&dq_, &global.dq),
                                  std::pair(&dk_, &global.dk), std::pair(&dv_, &global.dv)}) {
    for (std::size_t t = 0; t < rows.size(); ++t)
      copy(mine->view().slice(0, static_cast<std::int64_t>(t), 1), all->view().slice(0, rows[t], 1));
  }
  if (problem_.sink && communicator_.rank() == 0) copy(dsink_, global.dsink);
}

AttentionErrors run_case(const AttentionCase& c, const AttentionOracle& o, DType dtype, const comm::Communicator& communicator,
                         const Stream& stream) {
  RankAttention attention(c, o, dtype, communicator, stream);
  attention.forward();
  attention.backward();
  return attention.errors();
}

std::vector<char> run_for_bytes(const AttentionCase& c, const AttentionOracle& o, DType dtype, const comm::Communicator& communicator,
                                const Stream& stream) {
  RankAttention attention(c, o, dtype, communicator, stream);
  attention.forward();
  attention.backward();
  return attention.bytes();
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
      c.softcap = below(4) == 0 ? 5 : 0;
      c.seed = random();
      cases.push_back(c);
    }
  }
  return cases;
}

}  // namespace periplus::test
