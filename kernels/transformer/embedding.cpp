// Token embedding: a row gather and its transpose, a scatter-add in token order.
#include <cstring>

#include "kernels/cuda/transformer.h"
#include "kernels/operands.h"
#include "kernels/rows.h"
#include "kernels/transformer.h"
#include "kernels/transformer/vector_math.h"

namespace periplus::kernels {
namespace {

void check_tokens(std::string_view op, std::span<const std::int32_t> tokens, std::int64_t vocabulary) {
  for (std::size_t n = 0; n < tokens.size(); ++n) {
    require(tokens[n] >= 0 && tokens[n] < vocabulary,
            "{}: token {} at position {} is outside [0, {}); check that the data and the model use the same tokenizer", op, tokens[n], n,
            vocabulary);
  }
}

}  // namespace

void embedding(std::span<const std::int32_t> tokens, ConstTensorView table, TensorView x, StreamView stream) {
  check_dims("embedding", "table", table, 2);
  const auto rows = static_cast<std::int64_t>(tokens.size());
  const std::int64_t channels = table.size(1);
  check_dense("embedding", "table", table, table.shape(), table.dtype());
  check_dense("embedding", "x", x, {rows, channels}, table.dtype());
  check_tokens("embedding", tokens, table.size(0));
  if (on_cuda(stream)) return cuda::embedding(tokens, table, x, stream);
  const std::size_t row_bytes = static_cast<std::size_t>(channels) * size_of(table.dtype());
  if (row_bytes == 0) return;
  for_row_chunks(rows, 64, channels, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
    for (std::int64_t n = begin; n < end; ++n) {
      const auto token = static_cast<std::size_t>(tokens[static_cast<std::size_t>(n)]);
      std::memcpy(x.bytes() + static_cast<std::size_t>(n) * row_bytes, table.bytes() + token * row_bytes, row_bytes);
    }
  });
}

void embedding_backward(std::span<const std::int32_t> tokens, ConstTensorView dx, TensorView dtable, StreamView stream) {
  constexpr std::string_view op = "embedding_backward";
  check_dims(op, "dtable", dtable, 2);
  const auto rows = static_cast<std::int64_t>(tokens.size());
  const std::int64_t channels = dtable.size(1);
  check_dense(op, "dx", dx, {rows, channels}, dx.dtype());
  check_dense(op, "dtable", dtable, dtable.shape(), accumulator_of(dx.dtype()));
  check_tokens(op, tokens, dtable.size(0));
  if (on_cuda(stream)) return cuda::embedding_backward(tokens, dx, dtable, stream);
  visit_dtype<bfloat16, float, double>(dx.dtype(), op, [&]<class T>() {
    using A = Accumulator<T>;
    const T* gradient = dx.data<T>();
    A* sum = dtable.data<A>();
    // Each thread owns a range of channels and walks all tokens: no two threads meet in a row, and the order is fixed.
    for_row_chunks(channels, 128, rows, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t) {
      with_best_instructions([=]() __attribute__((always_inline)) {
        for (std::int64_t n = 0; n < rows; ++n) {
          const T* from = gradient + n * channels;
          A* to = sum + tokens[static_cast<std::size_t>(n)] * channels;
          for (std::int64_t c = begin; c < end; ++c) to[c] += widen(from[c]);
        }
      });
    });
  });
}

}  // namespace periplus::kernels
