#include "launch/bench/gpu_problem.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <random>

#include <fmt/format.h>

#include "kernels/transfer.h"
#include "launch/bench/errors.h"

namespace periplus::launch::bench {
namespace {

/// bf16 products, weights and score gradients against f64: three times what one rounding of 2^-9 leaves on average.
constexpr double kRelative = 7e-3;

/// Some heads of a tensor, on the host.
template <class T>
std::vector<float> on_host(const Tensor& tensor, std::int64_t head, std::int64_t heads, StreamView stream) {
  const TensorView some = tensor.view().slice(1, head, heads);
  const Tensor packed(some.shape(), some.dtype(), Memory(stream.device()));
  kernels::copy(some, packed, stream);
  std::vector<T> raw(static_cast<std::size_t>(some.elements()));
  cuda::copy_bytes(raw.data(), packed.view().bytes(), raw.size() * sizeof(T), stream);
  cuda::synchronize(stream);
  return {raw.begin(), raw.end()};
}

/// What a check reads, on the host: the last key/value head and the query heads that share it.
struct Operands {
  Operands(const GpuProblem& problem, StreamView stream)
      : group(problem.problem.heads / problem.problem.kv_heads),
        q(of_queries<bfloat16>(problem, problem.q, stream)),
        k(of_keys<bfloat16>(problem, problem.k, stream)),
        v(of_keys<bfloat16>(problem, problem.v, stream)),
        dout(of_queries<bfloat16>(problem, problem.dout, stream)),
        lse(of_queries<float>(problem, problem.lse, stream)),
        delta(of_queries<float>(problem, problem.delta, stream)),
        width(problem.problem.width),
        scale(1 / std::sqrt(static_cast<double>(problem.problem.width))) {}

  template <class T>
  std::vector<float> of_queries(const GpuProblem& problem, const Tensor& tensor, StreamView stream) const {
    return on_host<T>(tensor, problem.problem.heads - group, group, stream);
  }
  template <class T>
  static std::vector<float> of_keys(const GpuProblem& problem, const Tensor& tensor, StreamView stream) {
    return on_host<T>(tensor, problem.problem.kv_heads - 1, 1, stream);
  }

  std::int64_t group;
  std::vector<float> q, k, v, dout, lse, delta;
  std::int64_t width;
  double scale;

  double dot(const std::vector<float>& a, std::int64_t at_a, const std::vector<float>& b, std::int64_t at_b) const {
    double sum = 0;
    for (std::int64_t i = 0; i < width; ++i) {
      sum += static_cast<double>(a[static_cast<std::size_t>(at_a * width + i)]) *
             static_cast<double>(b[static_cast<std::size_t>(at_b * width + i)]);
    }
    return sum;
  }
  void add(std::vector<double>& sum, double weight, const std::vector<float>& rows, std::int64_t at) const {
    for (std::int64_t i = 0; i < width; ++i)
      sum[static_cast<std::size_t>(i)] += weight * static_cast<double>(rows[static_cast<std::size_t>(at * width + i)]);
  }
};

bool is_allowed(const std::vector<Band>& bands, std::int64_t q, std::int64_t k) {
  return std::ranges::any_of(bands, [&](const Band& band) {
    const KeyRange keys = keys_of(band, q);
    return q >= band.q0 && q < band.q1 && k >= keys.begin && k < keys.end;
  });
}

/// Rows at the ends, in the middle, and a few more.
std::vector<std::int64_t> places(std::int64_t rows, std::uint64_t seed) {
  std::vector<std::int64_t> all = {0, rows / 2, rows - 1};
  std::mt19937_64 random(seed);
  for (int i = 0; i < 3; ++i) all.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(rows)));
  return all;
}

struct Errors {
  ErrorSum out, dq, dk, dv;
  double largest_lse = 0;
};

void check_row(const GpuCase& c, const Operands& x, std::int64_t row, std::int64_t head, const std::vector<float>& out,
               const std::vector<float>& dq, Errors& errors) {
  const std::int64_t at = row * c.heads + head, kv_head = head / (c.heads / c.kv_heads);
  std::vector<std::int64_t> keys;
  std::vector<double> scores;
  double top = -INFINITY, sum = 0;
  for (std::int64_t key = 0; key < c.key_rows; ++key) {
    if (!is_allowed(c.bands, row, key)) continue;
    keys.push_back(key);
    scores.push_back(x.scale * x.dot(x.q, at, x.k, key * c.kv_heads + kv_head));
    top = std::max(top, scores.back());
  }
  for (const double score : scores) sum += std::exp(score - top);
  const double lse = top + std::log(sum);
  errors.largest_lse = std::max(errors.largest_lse, std::abs(lse - static_cast<double>(x.lse[static_cast<std::size_t>(at)])));
  const auto n = static_cast<std::size_t>(x.width);
  std::vector<double> wanted_out(n), wanted_dq(n);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const std::int64_t key = keys[i] * c.kv_heads + kv_head;
    const double weight = std::exp(scores[i] - lse);
    x.add(wanted_out, weight, x.v, key);
    if (!dq.empty()) {
      const double mean = static_cast<double>(x.delta[static_cast<std::size_t>(at)]);
      x.add(wanted_dq, weight * (x.dot(x.dout, at, x.v, key) - mean) * x.scale, x.k, key);
    }
  }
  const auto begin = static_cast<std::size_t>(at) * n;
  errors.out.add(std::span(out).subspan(begin, n), std::span(wanted_out));
  if (!dq.empty()) errors.dq.add(std::span(dq).subspan(begin, n), std::span(wanted_dq));
}

void check_key(const GpuCase& c, const Operands& x, std::int64_t key, std::int64_t kv_head, const std::vector<float>& dk,
               const std::vector<float>& dv, Errors& errors) {
  const std::int64_t at = key * c.kv_heads + kv_head, group = c.heads / c.kv_heads;
  const auto n = static_cast<std::size_t>(x.width);
  std::vector<double> wanted_dk(n), wanted_dv(n);
  for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (std::int64_t row = 0; row < c.query_rows; ++row) {
      if (!is_allowed(c.bands, row, key)) continue;
      const std::int64_t q = row * c.heads + head;
      const double weight = std::exp(x.scale * x.dot(x.q, q, x.k, at) - static_cast<double>(x.lse[static_cast<std::size_t>(q)]));
      x.add(wanted_dv, weight, x.dout, q);
      x.add(wanted_dk, weight * (x.dot(x.dout, q, x.v, at) - static_cast<double>(x.delta[static_cast<std::size_t>(q)])) * x.scale, x.q, q);
    }
  }
  const auto begin = static_cast<std::size_t>(at) * n;
  errors.dk.add(std::span(dk).subspan(begin, n), std::span(wanted_dk));
  errors.dv.add(std::span(dv).subspan(begin, n), std::span(wanted_dv));
}

std::string first_wrong(const Errors& errors) {
  const auto wrong = [](const char* name, const ErrorSum& error) {
    return error.relative() <= kRelative
               ? std::string()
               : fmt::format("{} is wrong: relative error {:.2e} (at most {})", name, error.relative(), kRelative);
  };
  if (!(errors.largest_lse <= 1e-3)) return fmt::format("lse is wrong: off by {:.2e} (at most 1e-3)", errors.largest_lse);
  for (const auto& [name, error] : {std::pair{"out", &errors.out}, {"dq", &errors.dq}, {"dk", &errors.dk}, {"dv", &errors.dv}}) {
    if (std::string text = wrong(name, *error); !text.empty()) return text;
  }
  return {};
}

}  // namespace

GpuCase gpu_causal_case(std::int64_t rows, std::int64_t heads, std::int64_t width) {
  return {rows, rows, heads, heads, width, {{0, rows, 0, rows, -kUnbounded, 0}}};
}

Tensor gpu_random(const Extents& shape, DType dtype, std::uint64_t seed, int device) {
  constexpr std::size_t kValues = std::size_t{1} << 21;
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::byte> values(kValues * size_of(dtype));
  std::vector<float> wide(kValues);
  for (float& value : wide) value = normal(random);
  const Extents flat{static_cast<std::int64_t>(kValues)};
  copy(ConstTensorView(std::as_bytes(std::span(wide)).data(), DType::f32, flat), TensorView(values.data(), dtype, flat));
  Tensor tensor(shape, dtype, Memory({DeviceKind::cuda, device}));
  const Stream stream = cuda::make_stream(device);
  for (std::size_t at = 0; at < tensor.view().size_bytes(); at += values.size()) {
    cuda::copy_bytes(tensor.view().bytes() + at, values.data(), std::min(values.size(), tensor.view().size_bytes() - at), stream);
  }
  cuda::synchronize(stream);
  return tensor;
}

GpuProblem::GpuProblem(const GpuCase& c, int device)
    : problem(c),
      q(gpu_random({c.query_rows, c.heads, c.width}, DType::bf16, 1, device)),
      k(gpu_random({c.key_rows, c.kv_heads, c.width}, DType::bf16, 2, device)),
      v(gpu_random({c.key_rows, c.kv_heads, c.width}, DType::bf16, 3, device)),
      dout(gpu_random({c.query_rows, c.heads, c.width}, DType::bf16, 4, device)) {
  const Memory memory({DeviceKind::cuda, device});
  out = Tensor({c.query_rows, c.heads, c.width}, DType::f32, memory);
  lse = Tensor({c.query_rows, c.heads, 1}, DType::f32, memory);
  delta = Tensor({c.query_rows, c.heads, 1}, DType::f32, memory);
  dq = Tensor(q.shape(), DType::f32, memory);
  dk = Tensor(k.shape(), DType::f32, memory);
  dv = Tensor(v.shape(), DType::f32, memory);
}

kernels::AttentionBlock GpuProblem::block() const { return {q, k, v, problem.bands, 1 / std::sqrt(static_cast<double>(problem.width)), 0}; }

void GpuProblem::forward(kernels::Update update, StreamView stream) const { kernels::attend(block(), {out, lse}, update, stream); }

void GpuProblem::backward(kernels::Update update, StreamView stream) const {
  kernels::attend_backward(block(), dout, lse, delta, {dq, dk, dv, update, update}, stream);
}

double GpuProblem::forward_flop() const {
  double pairs = 0;
  for (const Band& band : problem.bands) pairs += static_cast<double>(area(band));
  return 4 * pairs * static_cast<double>(problem.heads * problem.width);
}

std::string GpuProblem::check(bool with_backward, StreamView stream) const {
  for (const Tensor* result : {&out, &lse, &dq, &dk, &dv})
    cuda::fill_bytes(result->view().bytes(), 0xFF, result->view().size_bytes(), stream);
  forward(kernels::Update::overwrite, stream);
  if (with_backward) {
    kernels::delta(dout, out, lse, {}, {}, delta, {}, stream);
    backward(kernels::Update::overwrite, stream);
  }
  const Operands operands(*this, stream);
  GpuCase some = problem;
  some.heads = operands.group;
  some.kv_heads = 1;
  const std::vector<float> got_out = operands.of_queries<float>(*this, out, stream);
  const std::vector<float> got_dq = with_backward ? operands.of_queries<float>(*this, dq, stream) : std::vector<float>();
  Errors errors;
  std::int64_t head = 0;
  for (const std::int64_t row : places(problem.query_rows, 5)) {
    check_row(some, operands, row, head++ % some.heads, got_out, got_dq, errors);
  }
  if (with_backward) {
    const std::vector<float> got_dk = Operands::of_keys<float>(*this, dk, stream), got_dv = Operands::of_keys<float>(*this, dv, stream);
    for (const std::int64_t key : places(problem.key_rows, 6)) {
      check_key(some, operands, key, 0, got_dk, got_dv, errors);
    }
  }
  return first_wrong(errors);
}

double gpu_seconds(const std::function<void(StreamView)>& work, const Stream& stream, int repeats) {
  cuda::Event begin(stream.device().index, true), end(stream.device().index, true);
  begin.record(stream);
  for (int i = 0; i < repeats; ++i) work(stream);
  end.record(stream);
  end.wait();
  return end.seconds_since(begin) / repeats;
}

}  // namespace periplus::launch::bench
