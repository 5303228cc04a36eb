// Decays and betas from projections (algorithms.md 5.10).
#include <cmath>

#include "kernels/cuda/mixer.h"
#include "kernels/mixer.h"
#include "kernels/mixer/tokens.h"
#include "kernels/operands.h"

namespace periplus::kernels {
namespace {

constexpr std::int64_t kChunkElements = 16384;
constexpr std::int64_t kChunkRows = 256;

void check_like(std::string_view op, std::string_view name, const ConstTensorView& view, const ConstTensorView& x, DType dtype) {
  check_dense(op, name, view, x.shape(), dtype);
}

struct SoftplusShape {
  std::int64_t rows, heads;
};
SoftplusShape check_softplus(std::string_view op, const SoftplusDecay& inputs) {
  check_dims(op, "a", inputs.a, 2);
  const std::int64_t rows = inputs.a.size(0), heads = inputs.a.size(1);
  check_dense(op, "a", inputs.a, {rows, heads}, inputs.a.dtype());
  check_dense(op, "a_log", inputs.a_log, {heads}, inputs.a.dtype());
  check_dense(op, "dt_bias", inputs.dt_bias, {heads}, inputs.a.dtype());
  return {rows, heads};
}

template <class T, class A>
std::vector<A> rates(const T* a_log, std::int64_t heads) {
  std::vector<A> found;
  for (std::int64_t h = 0; h < heads; ++h) found.push_back(-std::exp(widen(a_log[h])));
  return found;
}

}  // namespace

void logsigmoid_decay(ConstTensorView x, double divisor, TensorView log_decay, StreamView stream) {
  constexpr std::string_view op = "logsigmoid_decay";
  check_like(op, "x", x, x, x.dtype());
  check_like(op, "log_decay", log_decay, x, accumulator_of(x.dtype()));
  if (on_cuda(stream)) return cuda::logsigmoid_decay(x, divisor, log_decay, stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), op, [&]<class T>() {
    using A = Accumulator<T>;
    const T* in = x.data<T>();
    A* out = log_decay.data<A>();
    const A factor = static_cast<A>(-1 / divisor);
    for_row_chunks(x.elements(), kChunkElements, 1, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
      with_best_instructions([=]() __attribute__((always_inline)) {
        for (std::int64_t i = begin; i < end; ++i) out[i] = factor * softplus<A>(-widen(in[i]));
      });
    });
  });
}

void logsigmoid_decay_backward(ConstTensorView dlog_decay, ConstTensorView x, double divisor, TensorView dx, StreamView stream) {
  constexpr std::string_view op = "logsigmoid_decay_backward";
  check_like(op, "x", x, x, x.dtype());
  check_like(op, "dlog_decay", dlog_decay, x, accumulator_of(x.dtype()));
  check_like(op, "dx", dx, x, x.dtype());
  if (on_cuda(stream)) return cuda::logsigmoid_decay_backward(dlog_decay, x, divisor, dx, stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), op, [&]<class T>() {
    using A = Accumulator<T>;
    const T* in = x.data<T>();
    const A* gradient = dlog_decay.data<A>();
    T* out = dx.data<T>();
    const A factor = static_cast<A>(1 / divisor);
    for_row_chunks(x.elements(), kChunkElements, 1, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
      with_best_instructions([=]() __attribute__((always_inline)) {
        for (std::int64_t i = begin; i < end; ++i) store(out[i], factor * gradient[i] * sigmoid<A>(-widen(in[i])));
      });
    });
  });
}

void softplus_decay(const SoftplusDecay& inputs, TensorView log_decay, TensorView step, StreamView stream) {
  constexpr std::string_view op = "softplus_decay";
  const auto [rows, heads] = check_softplus(op, inputs);
  check_dense(op, "log_decay", log_decay, {rows, heads}, accumulator_of(inputs.a.dtype()));
  check_dense(op, "step", step, {rows, heads}, accumulator_of(inputs.a.dtype()));
  if (on_cuda(stream)) return cuda::softplus_decay(inputs, log_decay, step, stream);
  visit_dtype<bfloat16, float, double>(inputs.a.dtype(), op, [&, rows = rows, heads = heads]<class T>() {
    using A = Accumulator<T>;
    const T *a = inputs.a.data<T>(), *bias = inputs.dt_bias.data<T>();
    const std::vector<A> rate_list = rates<T, A>(inputs.a_log.data<T>(), heads);
    const A* rate = rate_list.data();
    A *decays = log_decay.data<A>(), *steps = step.data<A>();
    for_row_chunks(rows, kChunkRows, heads, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
      with_best_instructions([=]() __attribute__((always_inline)) {
        for (std::int64_t n = begin; n < end; ++n) {
          for (std::int64_t h = 0; h < heads; ++h) {
            const std::int64_t i = n * heads + h;
            steps[i] = softplus<A>(widen(a[i]) + widen(bias[h]));
            decays[i] = rate[h] * steps[i];
          }
        }
      });
    });
  });
}

void softplus_decay_backward(const SoftplusDecay& inputs, ConstTensorView dlog_decay, ConstTensorView dstep, TensorView da,
                             TensorView da_log, TensorView ddt_bias, StreamView stream) {
  constexpr std::string_view op = "softplus_decay_backward";
  const auto [rows, heads] = check_softplus(op, inputs);
  const DType accumulator = accumulator_of(inputs.a.dtype());
  check_dense(op, "dlog_decay", dlog_decay, {rows, heads}, accumulator);
  if (given(dstep)) check_dense(op, "dstep", dstep, {rows, heads}, accumulator);
  check_dense(op, "da", da, {rows, heads}, inputs.a.dtype());
  check_dense(op, "da_log", da_log, {heads}, accumulator);
  check_dense(op, "ddt_bias", ddt_bias, {heads}, accumulator);
  if (on_cuda(stream)) return cuda::softplus_decay_backward(inputs, dlog_decay, dstep, da, da_log, ddt_bias, stream);
  visit_dtype<bfloat16, float, double>(inputs.a.dtype(), op, [&, rows = rows, heads = heads]<class T>() {
    using A = Accumulator<T>;
    const T *a = inputs.a.data<T>(), *bias = inputs.dt_bias.data<T>();
    const std::vector<A> rate_list = rates<T, A>(inputs.a_log.data<T>(), heads);
    const A* rate = rate_list.data();
    const A *ddecay = dlog_decay.data<A>(), *dsteps = given(dstep) ? dstep.data<A>() : nullptr;
    T* out = da.data<T>();
    ChunkSums<A> da_log_sums(rows, kChunkRows, heads), bias_sums(rows, kChunkRows, heads);
    for_row_chunks(rows, kChunkRows, heads, stream, [&](std::int64_t begin, std::int64_t end, std::int64_t chunk) {
      A *da_log_sum = da_log_sums.of(chunk), *bias_sum = bias_sums.of(chunk);
      for (std::int64_t n = begin; n < end; ++n) {
        for (std::int64_t h = 0; h < heads; ++h) {
          const std::int64_t i = n * heads + h;
          const A pre = widen(a[i]) + widen(bias[h]);
          const A gradient = ((dsteps != nullptr ? dsteps[i] : A(0)) + rate[h] * ddecay[i]) * sigmoid<A>(pre);
          store(out[i], gradient);
          bias_sum[h] += gradient;
          da_log_sum[h] += rate[h] * softplus<A>(pre) * ddecay[i];
        }
      }
    });
    da_log_sums.add_to(da_log.data<A>());
    bias_sums.add_to(ddt_bias.data<A>());
  });
}

void sigmoid_beta(ConstTensorView b, double ceiling, TensorView beta, StreamView stream) {
  constexpr std::string_view op = "sigmoid_beta";
  check_like(op, "b", b, b, b.dtype());
  check_like(op, "beta", beta, b, accumulator_of(b.dtype()));
  if (on_cuda(stream)) return cuda::sigmoid_beta(b, ceiling, beta, stream);
  visit_dtype<bfloat16, float, double>(b.dtype(), op, [&]<class T>() {
    using A = Accumulator<T>;
    const T* in = b.data<T>();
    A* out = beta.data<A>();
    const A scale = static_cast<A>(ceiling);
    for_row_chunks(b.elements(), kChunkElements, 1, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
      with_best_instructions([=]() __attribute__((always_inline)) {
        for (std::int64_t i = begin; i < end; ++i) out[i] = scale * sigmoid<A>(widen(in[i]));
      });
    });
  });
}

void sigmoid_beta_backward(ConstTensorView dbeta, ConstTensorView b, double ceiling, TensorView db, StreamView stream) {
  constexpr std::string_view op = "sigmoid_beta_backward";
  check_like(op, "b", b, b, b.dtype());
  check_like(op, "dbeta", dbeta, b, accumulator_of(b.dtype()));
  check_like(op, "db", db, b, b.dtype());
  if (on_cuda(stream)) return cuda::sigmoid_beta_backward(dbeta, b, ceiling, db, stream);
  visit_dtype<bfloat16, float, double>(b.dtype(), op, [&]<class T>() {
    using A = Accumulator<T>;
    const T* in = b.data<T>();
    const A* gradient = dbeta.data<A>();
    T* out = db.data<T>();
    const A scale = static_cast<A>(ceiling);
    for_row_chunks(b.elements(), kChunkElements, 1, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
      with_best_instructions([=]() __attribute__((always_inline)) {
        for (std::int64_t i = begin; i < end; ++i) {
          const A s = sigmoid<A>(widen(in[i]));
          store(out[i], gradient[i] * scale * s * (A(1) - s));
        }
      });
    });
  });
}

std::vector<double> retention_log_decays(std::int64_t heads) {
  std::vector<double> decays;
  for (std::int64_t h = 0; h < heads; ++h) decays.push_back(std::log1p(-std::exp2(-5.0 - static_cast<double>(h))));
  return decays;
}

std::vector<double> lightning_log_decays(std::int64_t heads, std::int64_t layer, std::int64_t layers) {
  // The last layer keeps a trace of decay, so that a state stays bounded.
  constexpr double kLeast = 1e-5;
  const double depth = layers > 1 ? static_cast<double>(layer) / static_cast<double>(layers - 1) : 0.0;
  std::vector<double> decays;
  for (std::int64_t h = 0; h < heads; ++h) {
    decays.push_back(-std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads)) * (1 - depth + kLeast));
  }
  return decays;
}

}  // namespace periplus::kernels
