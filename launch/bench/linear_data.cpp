#include "launch/bench/linear_data.h"

#include <cmath>
#include <random>
#include <tuple>
#include <vector>

#include <fmt/format.h>

#include "launch/bench/errors.h"
#include "launch/linear_options.h"

namespace periplus::launch::bench {
namespace {

const Stream kStream;

template <class Draw>
void fill(const Tensor& tensor, const Draw& draw) {
  if (tensor.empty()) return;
  visit_dtype<float, bfloat16>(tensor.dtype(), "bench", [&]<class T>() {
    for (T& value : tensor.view().span<T>()) value = T(static_cast<float>(draw()));
  });
}

void copy_if_given(const Tensor& from, const Tensor& to) {
  if (!from.empty()) copy(from, to);
}

}  // namespace

std::string to_text(const LinearCase& problem) {
  return fmt::format("{}{}", problem.delta_rule ? "delta rule, " : "", launch::to_text(problem.decay));
}

LinearData::LinearData(const LinearCase& given, DType dtype) : problem(given), run_{0, given.rows, 0, true, true} {
  problem.dtype = dtype;
  const Memory memory;
  const DType accumulator = accumulator_of(dtype);
  const Extents wide{problem.rows, problem.heads, problem.width}, scalar{problem.rows, problem.heads, 1},
      state{1, problem.heads, problem.width * problem.width};
  for (Tensor* tensor : {&q, &k, &v, &dout, &out, &dq, &dk, &dv}) *tensor = Tensor::zeros(wide, dtype, memory);
  for (Tensor* tensor : {&incoming, &doutgoing}) *tensor = Tensor::zeros(state, accumulator, memory);
  if (problem.decay != Decay::none) {
    for (Tensor* tensor : {&log_decay, &dlog_decay})
      *tensor = Tensor::zeros(problem.decay == Decay::scalar ? scalar : wide, accumulator, memory);
  }
  if (problem.delta_rule) {
    for (Tensor* tensor : {&beta, &dbeta}) *tensor = Tensor::zeros(scalar, accumulator, memory);
  }
}

LinearData::LinearData(const LinearCase& given) : LinearData(given, given.dtype) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  const double short_enough = 1 / std::sqrt(static_cast<double>(problem.width));
  fill(q, [&] { return normal(random); });
  fill(k, [&] { return normal(random) * short_enough; });
  fill(v, [&] { return normal(random); });
  fill(dout, [&] { return normal(random); });
  fill(incoming, [&] { return normal(random); });
  fill(doutgoing, [&] { return normal(random); });
  fill(log_decay, [&] { return -std::pow(10.0, -1 - 2 * uniform(random)); });
  fill(beta, [&] { return uniform(random); });
}

LinearData LinearData::exact(const LinearData& other) {
  LinearData data(other.problem, DType::f64);
  copy_if_given(other.q, data.q);
  copy_if_given(other.k, data.k);
  copy_if_given(other.v, data.v);
  copy_if_given(other.log_decay, data.log_decay);
  copy_if_given(other.beta, data.beta);
  copy_if_given(other.incoming, data.incoming);
  copy_if_given(other.dout, data.dout);
  copy_if_given(other.doutgoing, data.doutgoing);
  return data;
}

kernels::LinearBlock LinearData::block() const {
  return {q, k, v, log_decay, beta, {&run_, 1}, 1 / std::sqrt(static_cast<double>(problem.width))};
}

void LinearData::forward() const { kernels::unit_apply(block(), incoming, out, kStream); }

void LinearData::backward() const {
  kernels::unit_apply_backward(block(), incoming, dout, doutgoing, {dq, dk, dv, dlog_decay.view(), dbeta.view()}, kStream);
}

std::string find_wrong_result(const LinearData& data) {
  const LinearData exact = LinearData::exact(data);
  for (const LinearData* each : {&data, &exact}) {
    each->forward();
    each->backward();
  }
  const std::vector<std::tuple<const char*, const Tensor*, const Tensor*>> results = {{"out", &data.out, &exact.out},
                                                                                      {"dq", &data.dq, &exact.dq},
                                                                                      {"dk", &data.dk, &exact.dk},
                                                                                      {"dv", &data.dv, &exact.dv},
                                                                                      {"dlog_decay", &data.dlog_decay, &exact.dlog_decay},
                                                                                      {"dbeta", &data.dbeta, &exact.dbeta}};
  const Memory memory;
  for (const auto& [name, got, wanted] : results) {
    if (got->empty()) continue;
    const Tensor widened(got->shape(), DType::f32, memory);
    copy(*got, widened);
    // Rounding operands and products to bf16 gives half a percent; a wrong index or decay gives tens.
    const double tolerance = data.problem.dtype == DType::bf16 ? 2e-2 : 1e-4;
    ErrorSum error;
    error.add(widened.view().span<float>(), wanted->view().span<double>());
    if (!(error.relative() <= tolerance)) {
      return fmt::format("wrong result: {} differs from f64 by {:.2g} relative, more than {:.0e}", name, error.relative(), tolerance);
    }
  }
  return "";
}

}  // namespace periplus::launch::bench
