#include "launch/bench/attention_data.h"

#include <cmath>
#include <random>

#include <fmt/format.h>

#include "launch/bench/errors.h"

namespace periplus::launch::bench {
namespace {

const Stream kStream;

void fill_normal(const Tensor& tensor, std::mt19937_64& random, double deviation) {
  std::normal_distribution<float> normal(0, static_cast<float>(deviation));
  visit_dtype<float, bfloat16>(tensor.dtype(), "bench", [&]<class T>() {
    for (T& value : tensor.view().span<T>()) value = T(normal(random));
  });
}

}  // namespace

AttentionCase causal_case(DType dtype, std::int64_t rows, std::int64_t heads, std::int64_t width) {
  return {dtype, rows, rows, heads, width, {{0, rows, 0, rows, -kUnbounded, 0}}};
}

double pairs(const AttentionCase& problem) {
  double sum = 0;
  for (const Band& band : problem.bands) sum += static_cast<double>(area(band));
  return sum * static_cast<double>(problem.heads);
}

double forward_flop(const AttentionCase& problem) { return 4 * static_cast<double>(problem.width) * pairs(problem); }
double backward_flop(const AttentionCase& problem) { return 10 * static_cast<double>(problem.width) * pairs(problem); }

AttentionData::AttentionData(const AttentionCase& given, DType dtype) : problem(given) {
  problem.dtype = dtype;
  const Memory memory;
  const DType accumulator = accumulator_of(dtype);
  const Extents query{problem.query_rows, problem.heads, problem.width}, key{problem.key_rows, problem.heads, problem.width},
      scalar{problem.query_rows, problem.heads, 1};
  q = Tensor(query, dtype, memory);
  k = Tensor(key, dtype, memory);
  v = Tensor(key, dtype, memory);
  dout = Tensor(query, dtype, memory);
  out = Tensor::zeros(query, accumulator, memory);
  lse = Tensor::zeros(scalar, accumulator, memory);
  delta = Tensor::zeros(scalar, accumulator, memory);
  dq = Tensor::zeros(query, accumulator, memory);
  dk = Tensor::zeros(key, accumulator, memory);
  dv = Tensor::zeros(key, accumulator, memory);
}

AttentionData::AttentionData(const AttentionCase& given) : AttentionData(given, given.dtype) {
  std::mt19937_64 random(1);
  fill_normal(q, random, std::sqrt(problem.spread));
  fill_normal(k, random, std::sqrt(problem.spread));
  fill_normal(v, random, 1);
  fill_normal(dout, random, 1);
}

AttentionData::AttentionData(const AttentionData& other, DType dtype) : AttentionData(other.problem, dtype) {
  copy(other.q, q);
  copy(other.k, k);
  copy(other.v, v);
  copy(other.dout, dout);
}

double AttentionData::scale() const noexcept { return 1 / std::sqrt(static_cast<double>(problem.width)); }

void AttentionData::forward() const { kernels::attend({q, k, v, problem.bands, scale()}, {out, lse}, kernels::Update::overwrite, kStream); }

void AttentionData::forward_in_sequence(std::int64_t parts) const {
  const std::int64_t rows = problem.key_rows / parts;
  const Band whole{0, problem.query_rows, 0, rows};
  for (std::int64_t part = 0; part < parts; ++part) {
    kernels::attend({q, k.view().slice(0, part * rows, rows), v.view().slice(0, part * rows, rows), {&whole, 1}, scale()}, {out, lse},
                    part == 0 ? kernels::Update::overwrite : kernels::Update::accumulate, kStream);
  }
}

void AttentionData::compute_delta() const { kernels::delta(dout, out, lse, {}, {}, delta, {}, kStream); }

void AttentionData::backward() const {
  kernels::attend_backward({q, k, v, problem.bands, scale()}, dout, lse, delta, {dq, dk, dv}, kStream);
}

std::string find_wrong_result(const AttentionData& data, const std::function<void(const AttentionData&)>& forward, bool backward) {
  const AttentionData exact(data, DType::f64);
  forward(data);
  exact.forward();
  std::vector<std::tuple<const char*, const Tensor*, const Tensor*>> results = {{"out", &data.out, &exact.out},
                                                                                {"lse", &data.lse, &exact.lse}};
  if (backward) {
    data.compute_delta();
    data.backward();
    exact.compute_delta();
    exact.backward();
    results.insert(results.end(), {{"dq", &data.dq, &exact.dq}, {"dk", &data.dk, &exact.dk}, {"dv", &data.dv, &exact.dv}});
  }
  // Rounding operands and weights to bf16 gives 0.2 %; a wrong index or mask gives tens of percent.
  const double tolerance = data.problem.dtype == DType::bf16 ? 8e-3 : 1e-5;
  for (const auto& [name, got, wanted] : results) {
    ErrorSum error;
    error.add(got->view().span<float>(), wanted->view().span<double>());
    if (!(error.relative() <= tolerance)) {
      return fmt::format("wrong result: {} differs from f64 by {:.2g} relative, more than {:.0e}", name, error.relative(), tolerance);
    }
  }
  return "";
}

}  // namespace periplus::launch::bench
