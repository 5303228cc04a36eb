// Output projection, softmax and loss in one pass over row tiles (algorithms.md 10.4).
#include <cmath>
#include <vector>

#include "kernels/cuda/transformer.h"
#include "kernels/matmul.h"
#include "kernels/operands.h"
#include "kernels/rows.h"
#include "kernels/transformer.h"
#include "kernels/transformer/vector_math.h"

namespace periplus::kernels {
namespace {

void check(const ConstTensorView& x, const ConstTensorView& weight, std::span<const std::int32_t> labels,
           const CrossEntropyOptions& options, const TensorView& dx, const TensorView& dweight) {
  constexpr std::string_view op = "cross_entropy";
  check_dims(op, "x", x, 2);
  check_dims(op, "weight", weight, 2);
  const std::int64_t rows = x.size(0), channels = x.size(1), vocabulary = weight.size(0);
  check_dense(op, "x", x, {rows, channels}, x.dtype());
  check_dense(op, "weight", weight, {vocabulary, channels}, x.dtype());
  require(given(dx) == given(dweight), "{}: only one of dx and dweight is given; give both, or neither for the loss alone", op);
  if (given(dx)) {
    check_dense(op, "dx", dx, {rows, channels}, x.dtype());
    check_dense(op, "dweight", dweight, {vocabulary, channels}, accumulator_of(x.dtype()));
  }
  require(options.tile_rows >= 1, "{}: tile_rows is {}; it must be >= 1", op, options.tile_rows);
  require(std::ssize(labels) == rows, "{}: {} labels for {} rows of x", op, labels.size(), rows);
  for (std::size_t n = 0; n < labels.size(); ++n) {
    require(labels[n] == kIgnoreLabel || (labels[n] >= 0 && labels[n] < vocabulary),
            "{}: label {} at position {} is neither in [0, {}) nor {} (ignore)", op, labels[n], n, vocabulary, kIgnoreLabel);
  }
}

template <class A>
[[gnu::always_inline]] inline A largest(const A* values, std::int64_t count) {
  A lanes[16];
  for (A& lane : lanes) lane = values[0];
  const std::int64_t whole = count - count % 16;
  for (std::int64_t i = 0; i < whole; i += 16) {
    for (std::int64_t lane = 0; lane < 16; ++lane) lanes[lane] = lanes[lane] < values[i + lane] ? values[i + lane] : lanes[lane];
  }
  A result = lanes[0];
  for (const A lane : lanes) result = result < lane ? lane : result;
  for (std::int64_t i = whole; i < count; ++i) result = result < values[i] ? values[i] : result;
  return result;
}

/// Loss of one row; turns its logits into exp(z - max) and returns their sum through `sum`.
template <class A>
[[gnu::always_inline]] inline double row_loss(A* logits, std::int64_t vocabulary, std::int32_t label, A& sum) {
  const A top = largest(logits, vocabulary);
  const double label_logit = static_cast<double>(logits[label]) - static_cast<double>(top);
  for (std::int64_t v = 0; v < vocabulary; ++v) logits[v] = fast_exp(logits[v] - top);
  sum = lane_sum<A>(
      vocabulary, [=](std::int64_t v) __attribute__((always_inline)) { return logits[v]; });
  return std::log(static_cast<double>(sum)) - label_logit;
}

/// Loss of rows [begin, end) of a tile, one number each, and with `dz` the scaled gradient of their logits. dz may alias logits.
template <class T, class A>
[[gnu::always_inline]] inline void softmax_rows(A* logits, const std::int32_t* labels, std::int64_t begin, std::int64_t end,
                                                std::int64_t vocabulary, A scale, double* losses, T* dz) {
  for (std::int64_t n = begin; n < end; ++n) {
    A* row = logits + n * vocabulary;
    T* gradient = dz == nullptr ? nullptr : dz + n * vocabulary;
    if (labels[n] == kIgnoreLabel) {
      losses[n] = 0;
      if (gradient != nullptr) std::fill(gradient, gradient + vocabulary, T{});
      continue;
    }
    A sum = 0;
    losses[n] = row_loss(row, vocabulary, labels[n], sum);
    if (gradient == nullptr) continue;
    const A factor = scale / sum, at_label = row[labels[n]] * factor - scale;
#pragma GCC ivdep
    for (std::int64_t v = 0; v < vocabulary; ++v) store(gradient[v], row[v] * factor);
    store(gradient[labels[n]], at_label);
  }
}

template <class T>
CrossEntropyResult run(const ConstTensorView& x, const ConstTensorView& weight, std::span<const std::int32_t> labels,
                       const CrossEntropyOptions& options, const TensorView& dx, const TensorView& dweight, const Memory& memory,
                       StreamView stream) {
  using A = Accumulator<T>;
  const std::int64_t rows = x.size(0), vocabulary = weight.size(0), tile = std::min(options.tile_rows, rows);
  const bool backward = given(dx);
  constexpr bool kInPlace = std::is_same_v<T, A>;
  const Tensor logits({tile, vocabulary}, dtype_of<A>, memory);
  const Tensor separate = backward && !kInPlace ? Tensor({tile, vocabulary}, x.dtype(), memory) : Tensor();
  std::vector<double> tile_losses(static_cast<std::size_t>(tile));
  CrossEntropyResult result;
  for (std::int64_t first = 0; first < rows; first += tile) {
    const std::int64_t count = std::min(tile, rows - first);
    const ConstTensorView x_tile = x.slice(0, first, count);
    const TensorView z = logits.view().slice(0, 0, count);
    const TensorView dz = !backward || kInPlace ? z : separate.view().slice(0, 0, count);
    matmul(x_tile, weight, z, {.transpose_b = true}, stream);
    A* logit = z.data<A>();
    T* gradient = backward ? dz.data<T>() : nullptr;
    double* losses = tile_losses.data();
    const std::int32_t* label = labels.data() + first;
    const auto scale = static_cast<A>(options.gradient_scale);
    for_row_chunks(count, 16, vocabulary, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
      with_best_instructions([=]() __attribute__((always_inline)) {
        softmax_rows<T, A>(logit, label, begin, end, vocabulary, scale, losses, gradient);
      });
    });
    for (std::int64_t n = 0; n < count; ++n) {
      result.loss_sum += losses[n];
      result.valid_labels += label[n] != kIgnoreLabel;
    }
    if (!backward) continue;
    matmul(dz, weight, dx.slice(0, first, count), {}, stream);
    matmul(dz, x_tile, dweight, {.transpose_a = true, .update = Update::accumulate}, stream);
  }
  return result;
}

}  // namespace

CrossEntropyResult cross_entropy(ConstTensorView x, ConstTensorView weight, std::span<const std::int32_t> labels,
                                 const CrossEntropyOptions& options, TensorView dx, TensorView dweight, const Memory& memory,
                                 StreamView stream) {
  check(x, weight, labels, options, dx, dweight);
  if (x.size(0) == 0) return {};
  if (on_cuda(stream)) return cuda::cross_entropy(x, weight, labels, options, dx, dweight, memory, stream);
  CrossEntropyResult result;
  visit_dtype<bfloat16, float, double>(x.dtype(), "cross_entropy",
                                       [&]<class T>() { result = run<T>(x, weight, labels, options, dx, dweight, memory, stream); });
  return result;
}

}  // namespace periplus::kernels
