// The optimizer step and the other operations on flat vectors.
#include <cmath>
#include <vector>

#include "kernels/cuda/transformer.h"
#include "kernels/operands.h"
#include "kernels/rows.h"
#include "kernels/transfer.h"
#include "kernels/transformer.h"
#include "kernels/transformer/adamw_coefficients.h"
#include "kernels/transformer/vector_math.h"

namespace periplus::kernels {
namespace {

constexpr std::int64_t kChunkElements = 4096;

template <class A, class T>
[[gnu::always_inline]] inline void update(const AdamwCoefficients<A>& with, const A* gradient, std::int64_t begin, std::int64_t end,
                                          A* master, A* m, A* v, T* working) {
#pragma GCC ivdep
  for (std::int64_t i = begin; i < end; ++i) {
    const A g = gradient[i] * with.gradient_scale;
    const A mean = with.beta1 * m[i] + (A(1) - with.beta1) * g;
    const A square = with.beta2 * v[i] + (A(1) - with.beta2) * g * g;
    const A value =
        master[i] - with.decay * master[i] - with.step_size * mean / (std::sqrt(square * with.inverse_correction2) + with.epsilon);
    m[i] = mean;
    v[i] = square;
    master[i] = value;
    store(working[i], value);
  }
}

template <class A, class T>
void adamw_of(const TensorView& master, const TensorView& m, const TensorView& v, const ConstTensorView& gradient,
              const TensorView& working, const AdamwOptions& options, StreamView stream) {
  const auto with = adamw_coefficients<A>(options);
  const A* g = gradient.data<A>();
  A *weight = master.data<A>(), *mean = m.data<A>(), *square = v.data<A>();
  T* out = working.data<T>();
  for_row_chunks(master.elements(), kChunkElements, 1, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
    with_best_instructions([=]() __attribute__((always_inline)) { update<A, T>(with, g, begin, end, weight, mean, square, out); });
  });
}

void check(const TensorView& master, const TensorView& working, const AdamwOptions& options) {
  require(accumulator_of(working.dtype()) == master.dtype(), "adamw: master is {} but working is {}; master is f32, or f64 for f64 weights",
          to_string(master.dtype()), to_string(working.dtype()));
  const bool betas_ok = options.beta1 >= 0 && options.beta1 < 1 && options.beta2 >= 0 && options.beta2 < 1;
  require(options.step >= 1 && betas_ok, "adamw: step {}, beta1 {}, beta2 {}; steps count from 1 and both betas lie in [0, 1)",
          options.step, options.beta1, options.beta2);
}

}  // namespace

void adamw(TensorView master, TensorView m, TensorView v, ConstTensorView gradient, TensorView working, const AdamwOptions& options,
           StreamView stream) {
  check(master, working, options);
  check_dense("adamw", "master", master, master.shape(), master.dtype());
  check_dense("adamw", "m", m, master.shape(), master.dtype());
  check_dense("adamw", "v", v, master.shape(), master.dtype());
  check_dense("adamw", "gradient", gradient, master.shape(), master.dtype());
  check_dense("adamw", "working", working, master.shape(), working.dtype());
  if (on_cuda(stream)) return cuda::adamw(master, m, v, gradient, working, options, stream);
  visit_dtype<bfloat16, float, double>(working.dtype(), "adamw",
                                       [&]<class T>() { adamw_of<Accumulator<T>, T>(master, m, v, gradient, working, options, stream); });
}

double sum_of_squares(ConstTensorView x, StreamView stream) {
  check_dense("sum_of_squares", "x", x, x.shape(), x.dtype());
  if (on_cuda(stream)) return cuda::sum_of_squares(x, stream);
  const std::int64_t count = x.elements();
  double sum = 0;
  visit_dtype<bfloat16, float, double>(x.dtype(), "sum_of_squares", [&]<class T>() {
    const T* data = x.data<T>();
    std::vector<double> partial_sums(static_cast<std::size_t>((count + kChunkElements - 1) / kChunkElements));
    double* partial = partial_sums.data();
    for_row_chunks(count, kChunkElements, 1, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t chunk) {
      with_best_instructions([=]() __attribute__((always_inline)) {
        partial[chunk] = lane_sum<double>(
            end - begin, [=](std::int64_t i) __attribute__((always_inline)) {
              const auto value = static_cast<double>(widen(data[begin + i]));
              return value * value;
            });
      });
    });
    for (const double value : partial_sums) sum += value;
  });
  return sum;
}

void add_in_place(ConstTensorView x, TensorView y, StreamView stream) {
  check_dense("add_in_place", "x", x, x.shape(), x.dtype());
  check_dense("add_in_place", "y", y, x.shape(), x.dtype());
  if (on_cuda(stream)) return add(x.reshape({1, 1, x.elements()}), y.reshape({1, 1, x.elements()}), stream);
  visit_dtype<bfloat16, float, double>(x.dtype(), "add_in_place", [&]<class T>() {
    const T* from = x.data<T>();
    T* to = y.data<T>();
    for_row_chunks(x.elements(), kChunkElements, 1, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
      with_best_instructions([=]() __attribute__((always_inline)) {
#pragma GCC ivdep
        for (std::int64_t i = begin; i < end; ++i) store(to[i], widen(to[i]) + widen(from[i]));
      });
    });
  });
}

}  // namespace periplus::kernels
