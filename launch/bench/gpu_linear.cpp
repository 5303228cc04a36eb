#include "launch/bench/gpu_linear.h"

#include <algorithm>
#include <cmath>
#include <random>

#include <fmt/format.h>

#include "kernels/linear_attention.h"
#include "kernels/mixer.h"
#include "kernels/transfer.h"
#include "launch/bench/errors.h"
#include "launch/bench/gpu_sides.h"

namespace periplus::launch::bench {
namespace {

struct GpuLinearCase {
  std::int64_t documents, rows, heads;  ///< Rows of each document.
  std::int64_t decay_width = 1;
  bool delta_rule = false;
};
constexpr std::int64_t kWidth = 128;
/// As bench gpu's attention.
constexpr double kRelative = 7e-3;

/// Decays that forget half within some thirty tokens, of some millions of values repeated.
Tensor random_decay(const Extents& shape, int device) {
  constexpr std::size_t kValues = std::size_t{1} << 20;
  std::mt19937_64 random(21);
  std::exponential_distribution<float> decay(50);
  std::vector<float> values(kValues);
  for (float& value : values) value = -decay(random);
  Tensor tensor(shape, DType::f32, Memory({DeviceKind::cuda, device}));
  const Stream stream = cuda::make_stream(device);
  const std::size_t bytes = kValues * sizeof(float);
  for (std::size_t at = 0; at < tensor.view().size_bytes(); at += bytes) {
    cuda::copy_bytes(tensor.view().bytes() + at, values.data(), std::min(bytes, tensor.view().size_bytes() - at), stream);
  }
  cuda::synchronize(stream);
  return tensor;
}

/// bf16 operands. Every document is a run of its own; the last one enters a unit and leaves it.
class GpuLinear {
 public:
  GpuLinear(const GpuLinearCase& problem, int device) : c(problem), memory_({DeviceKind::cuda, device}) {
    const std::int64_t rows = c.documents * c.rows;
    const Extents wide{rows, c.heads, kWidth}, state{1, c.heads, kWidth * kWidth};
    q = gpu_random(wide, DType::bf16, 22, device);
    k = gpu_random(wide, DType::bf16, 23, device);
    v = gpu_random(wide, DType::bf16, 24, device);
    dout = gpu_random(wide, DType::bf16, 25, device);
    incoming = gpu_random(state, DType::f32, 26, device);
    doutgoing = gpu_random(state, DType::f32, 27, device);
    if (c.delta_rule) normalise_keys();
    log_decay = random_decay({rows, c.heads, c.decay_width}, device);
    for (Tensor* result : {&out, &dq, &dk, &dv}) *result = Tensor(wide, DType::bf16, memory_);
    dlog_decay = Tensor(log_decay.shape(), DType::f32, memory_);
    const std::int64_t transition = c.delta_rule ? kWidth * kWidth : c.decay_width;
    elements = Tensor({1, c.heads, transition + kWidth * kWidth}, DType::f32, memory_);
    for (std::int64_t document = 0; document < c.documents; ++document) runs_.push_back({document * c.rows, c.rows, 0});
    runs_.back().enters = c.documents == 1;
    runs_.back().leaves = true;
  }

  void forward(StreamView stream) const { kernels::unit_apply(block(), incoming, out, stream); }
  void backward(StreamView stream) const {
    kernels::unit_apply_backward(block(), incoming, dout, doutgoing, {dq, dk, dv, dlog_decay.view(), optional(dbeta)}, stream);
  }
  void states(StreamView stream) const { kernels::unit_states(block(), elements, stream); }
  /// Of one tensor of storage type.
  double bytes() const { return static_cast<double>(q.view().size_bytes()); }
  /// Empty, or what is wrong with the last rows of the last head.
  std::string check(bool with_backward, StreamView stream) const;

  GpuLinearCase c;
  Tensor q, k, v, dout, incoming, doutgoing, log_decay, out, dq, dk, dv, dlog_decay, elements, beta, dbeta;

 private:
  static TensorView optional(const Tensor& tensor) { return tensor.empty() ? TensorView{} : tensor.view(); }
  /// To length 1, as models have them, with a beta between 0.05 and 0.95.
  void normalise_keys() {
    const Stream stream = cuda::make_stream(memory_.device().index);
    kernels::l2_norm(k, 1e-6, k, stream);
    std::mt19937_64 random(28);
    std::uniform_real_distribution<float> fraction(0.05f, 0.95f);
    const Tensor host({q.shape()[0], c.heads, 1}, DType::f32, Memory());
    for (float& value : host.view().span<float>()) value = fraction(random);
    beta = to_device(host, memory_, stream);
    dbeta = Tensor(beta.shape(), DType::f32, memory_);
    cuda::synchronize(stream);
  }
  kernels::LinearBlock block() const {
    return {q, k, v, log_decay.view(), optional(beta), runs_, 1 / std::sqrt(static_cast<double>(kWidth))};
  }
  Memory memory_;
  std::vector<kernels::UnitRun> runs_;
};

/// Rows [first, first + rows) of the last head as f64 on the host.
Tensor last_rows(const Tensor& tensor, std::int64_t first, std::int64_t rows, StreamView stream) {
  const TensorView some = tensor.view().slice(0, first, rows).slice(1, tensor.shape()[1] - 1, 1);
  const Tensor packed(some.shape(), some.dtype(), Memory(stream.device())), here(some.shape(), some.dtype(), Memory());
  kernels::copy(some, packed, stream);
  cuda::copy_bytes(here.view().bytes(), packed.view().bytes(), packed.view().size_bytes(), stream);
  cuda::synchronize(stream);
  Tensor exact(some.shape(), DType::f64, Memory());
  copy(here, exact);
  return exact;
}

/// What entered the last rows longer ago than this is forgotten to e^-40.
constexpr std::int64_t kRemembered = 2048, kChecked = 512;

std::string GpuLinear::check(bool with_backward, StreamView stream) const {
  for (const Tensor* result : {&out, &dq, &dk, &dv, &dlog_decay, &dbeta}) {
    if (result->empty()) continue;
    cuda::fill_bytes(result->view().bytes(), 0xFF, result->view().size_bytes(), stream);
  }
  forward(stream);
  if (with_backward) backward(stream);
  const std::int64_t count = std::min(c.rows, kRemembered + kChecked), first = c.documents * c.rows - count;
  const auto exact = [&](const Tensor& tensor) { return last_rows(tensor, first, count, stream); };
  const Tensor q64 = exact(q), k64 = exact(k), v64 = exact(v), dout64 = exact(dout), decay64 = exact(log_decay);
  const Tensor beta64 = c.delta_rule ? exact(beta) : Tensor();
  const Tensor dlast = last_rows(doutgoing, 0, 1, stream), zero = Tensor::zeros(dlast.shape(), DType::f64, Memory());
  std::vector<Tensor> wanted;
  for (const Tensor* like : {&v64, &q64, &k64, &v64, &decay64}) wanted.push_back(Tensor::zeros(like->shape(), DType::f64, Memory()));
  const std::vector<kernels::UnitRun> run = {{0, count, 0, true, true}};
  if (c.delta_rule) wanted.push_back(Tensor::zeros(beta64.shape(), DType::f64, Memory()));
  const kernels::LinearBlock block{q64, k64, v64, decay64.view(), optional(beta64), run, 1 / std::sqrt(static_cast<double>(kWidth))};
  kernels::unit_apply(block, zero, wanted[0], Stream());
  if (with_backward)
    kernels::unit_apply_backward(block, zero, dout64, dlast,
                                 {wanted[1], wanted[2], wanted[3], wanted[4].view(), c.delta_rule ? wanted[5].view() : TensorView{}},
                                 Stream());
  const std::vector<std::pair<const char*, const Tensor*>> results = {
      {"out", &out}, {"dq", &dq}, {"dk", &dk}, {"dv", &dv}, {"dlog_decay", &dlog_decay}, {"dbeta", &dbeta}};
  for (std::size_t i = 0; i < (with_backward ? wanted.size() : 1); ++i) {
    const Tensor got = exact(*results[i].second);
    const auto checked = [&](const Tensor& tensor) {
      const auto all = tensor.view().span<double>();
      return all.subspan(all.size() / static_cast<std::size_t>(count) * static_cast<std::size_t>(count - std::min(count, kChecked)));
    };
    ErrorSum errors;
    errors.add(checked(got), checked(wanted[i]));
    if (!(errors.relative() <= kRelative))
      return fmt::format("{} is wrong: relative error {:.2e} (at most {})", results[i].first, errors.relative(), kRelative);
  }
  return {};
}

GpuWork copy_side(const GpuLinear& data) {
  return {[&](StreamView stream) { cuda::copy_bytes(data.out.view().bytes(), data.q.view().bytes(), data.q.view().size_bytes(), stream); },
          2 * data.bytes()};
}

std::vector<Line> measure(const GpuLinearCase& c, const std::string& name, std::optional<Goal> forward_goal, std::optional<Goal> both_goal,
                          const GpuSampling& sampling) {
  const GpuLinear data(c, sampling.device);
  return wrong_or(data.check(true, sampling.stream), name, [&] {
    // Each operand read and each result written once. Decays are numbers of twice the size.
    const double decays = c.decay_width == 1 ? 0 : 2.0 * static_cast<double>(c.decay_width) / static_cast<double>(kWidth);
    const double of_forward = 4 + decays, of_backward = 7 + 2 * decays;
    const double of_states = (2 + decays) / static_cast<double>(c.documents);  // of the document that leaves
    const auto line = [&](const char* what, double tensors, std::optional<Goal> goal, const std::function<void(StreamView)>& work) {
      return rate_line(fmt::format("{}, {} / copy", name, what), {work, tensors * data.bytes()}, copy_side(data), "GB/s", 1e9, goal,
                       sampling);
    };
    const auto forward = [&](StreamView stream) { data.forward(stream); };
    const auto both = [&](StreamView stream) {
      data.forward(stream);
      data.backward(stream);
    };
    return std::vector{line("forward", of_forward, forward_goal, forward), line("both", of_forward + of_backward, both_goal, both),
                       line("backward", of_backward, {}, [&](StreamView stream) { data.backward(stream); }),
                       line("states", of_states, {}, [&](StreamView stream) { data.states(stream); })};
  });
}

}  // namespace

std::vector<GpuFigure> gpu_linear_figures() {
  const auto figure = [](const GpuLinearCase& c, const std::string& name, std::optional<Goal> forward, std::optional<Goal> both) {
    return GpuFigure{"G7", name, [=](const GpuSampling& sampling) { return measure(c, name, forward, both, sampling); }};
  };
  return {figure({8, 8192, 32}, "scalar decay, 8 documents of 8K, 32 heads", Goal{0.80, 0.90}, Goal{0.55, 0.65}),
          // Few heads: the sequence is cut, and keys and values are read twice, so that 0.67 is all there is.
          figure({1, 65536, 16}, "scalar decay, one document of 64K, 16 heads", {}, {}),
          figure({8, 8192, 32, kWidth}, "decay per channel, 8 documents of 8K, 32 heads", {}, {}),
          figure({8, 8192, 32, 1, true}, "gated delta rule, 8 documents of 8K, 32 heads", {}, {})};
}

}  // namespace periplus::launch::bench
