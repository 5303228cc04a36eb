// Short causal depthwise convolution with SiLU (algorithms.md 5.7). Work items are pieces of runs times blocks of channels, so that a
// thread sweeps rows with its sums in cache.
#include <algorithm>
#include <cstring>

#include "kernels/cuda/mixer.h"
#include "kernels/mixer.h"
#include "kernels/mixer/tokens.h"
#include "kernels/operands.h"

namespace periplus::kernels {
namespace {

constexpr std::int64_t kPieceRows = 128;
constexpr std::int64_t kBlockChannels = 128;

struct Piece {
  UnitRun run;
  std::int64_t begin, end;  // rows of the run
};

struct ConvolutionShape {
  std::int64_t rows, channels, taps;
  std::int64_t columns;  ///< Of weight: one more than taps with a bias.
};

ConvolutionShape check(std::string_view op, const ShortConvolution& inputs) {
  const ConstTensorView &x = inputs.x, &weight = inputs.weight, &halo = inputs.halo;
  check_dims(op, "x", x, 2);
  check_dims(op, "weight", weight, 2);
  check_dims(op, "halo", halo, 3);
  const ConvolutionShape shape{x.size(0), x.size(1), halo.size(1) + 1, weight.size(1)};
  require(shape.columns == shape.taps || shape.columns == shape.taps + 1,
          "{}: weight is {}, but the halo {} is of {} taps; weight needs as many columns, and one more for a bias", op,
          to_string(weight.shape()), to_string(halo.shape()), shape.taps);
  check_dense(op, "x", x, x.shape(), x.dtype());
  check_dense(op, "weight", weight, {shape.channels, shape.columns}, x.dtype());
  check_dense(op, "halo", halo, {halo.size(0), shape.taps - 1, shape.channels}, x.dtype());
  for (const UnitRun& run : inputs.runs) {
    if (run.row0 >= 0 && run.rows > 0 && run.row0 + run.rows <= shape.rows && run.unit >= 0 && run.unit < halo.size(0)) continue;
    refuse("{}: a run of rows {} to {} of unit {} is outside x {} or halo {}", op, run.row0, run.row0 + run.rows, run.unit,
           to_string(x.shape()), to_string(halo.shape()));
  }
  return shape;
}

std::vector<Piece> pieces_of(std::span<const UnitRun> runs) {
  std::vector<Piece> pieces;
  for (const UnitRun& run : runs) {
    for (std::int64_t begin = 0; begin < run.rows; begin += kPieceRows)
      pieces.push_back({run, begin, std::min(run.rows, begin + kPieceRows)});
  }
  return pieces;
}

/// weight [C,W] as [W,C], then the bias: neighbouring channels share an instruction.
template <class T, class A>
std::vector<A> by_tap(const T* weight, const ConvolutionShape& shape) {
  std::vector<A> taps(static_cast<std::size_t>(shape.channels * shape.columns));
  for (std::int64_t c = 0; c < shape.channels; ++c) {
    for (std::int64_t w = 0; w < shape.columns; ++w) {
      taps[static_cast<std::size_t>(w * shape.channels + c)] = widen(weight[c * shape.columns + w]);
    }
  }
  return taps;
}

/// Rows of a run and the halo before it, from one channel on.
template <class T>
struct Rows {
  const T *x, *halo;
  std::int64_t channels, taps;
  bool biased;
  /// nullptr before the beginning of the document.
  [[gnu::always_inline]] const T* at(std::int64_t row) const {
    if (row >= 0) return x + row * channels;
    return halo != nullptr ? halo + (taps - 1 + row) * channels : nullptr;
  }
};

template <class T>
Rows<T> rows_of(const ShortConvolution& inputs, const ConvolutionShape& shape, const UnitRun& run, std::int64_t channel) {
  const T* halo = run.enters ? inputs.halo.data<T>() + run.unit * (shape.taps - 1) * shape.channels + channel : nullptr;
  return {inputs.x.data<T>() + run.row0 * shape.channels + channel, halo, shape.channels, shape.taps, shape.columns > shape.taps};
}

/// sum[c] := what the row has before SiLU.
template <class T, class A>
[[gnu::always_inline]] inline void convolve(const Rows<T>& rows, std::int64_t row, const A* weight, std::int64_t width, A* __restrict sum) {
  const A* bias = weight + rows.taps * rows.channels;
  for (std::int64_t c = 0; c < width; ++c) sum[c] = rows.biased ? bias[c] : A(0);
  for (std::int64_t w = 0; w < rows.taps; ++w) {
    const T* x = rows.at(row - (rows.taps - 1) + w);
    if (x == nullptr) continue;
    const A* tap = weight + w * rows.channels;
    for (std::int64_t c = 0; c < width; ++c) sum[c] += tap[c] * widen(x[c]);
  }
}

/// Gradients of the sums of rows [begin, begin + count) of a run.
template <class T, class A>
[[gnu::always_inline]] inline void sum_gradients(const Rows<T>& rows, std::int64_t begin, std::int64_t count, const A* weight, const T* dy,
                                                 std::int64_t width, A* __restrict du) {
  for (std::int64_t i = 0; i < count; ++i) {
    A* at = du + i * kBlockChannels;
    convolve(rows, begin + i, weight, width, at);
    const T* d = dy + (begin + i) * rows.channels;
    for (std::int64_t c = 0; c < width; ++c) {
      const A u = at[c], s = sigmoid(u);
      at[c] = widen(d[c]) * s * (A(1) + u * (A(1) - s));
    }
  }
}

/// to[c] := sum of the gradients of the rows that row `row` (relative to du, may be negative) was read for.
template <class A, class To>
[[gnu::always_inline]] inline void convolve_back(const A* du, std::int64_t count, std::int64_t row, std::int64_t taps,
                                                 std::int64_t channels, const A* weight, std::int64_t width, To* __restrict to) {
  A sum[kBlockChannels] = {};
  for (std::int64_t w = 0; w < taps; ++w) {
    const std::int64_t reader = row + taps - 1 - w;
    if (reader < 0 || reader >= count) continue;
    const A *d = du + reader * kBlockChannels, *tap = weight + w * channels;
    for (std::int64_t c = 0; c < width; ++c) sum[c] += tap[c] * d[c];
  }
  for (std::int64_t c = 0; c < width; ++c) store(to[c], sum[c]);
}

/// dweight of the rows of a piece, as by_tap() has weights.
template <class T, class A>
[[gnu::always_inline]] inline void weight_gradient(const Rows<T>& rows, const Piece& piece, const A* du, std::int64_t width,
                                                   A* __restrict dweight) {
  for (std::int64_t row = piece.begin; row < piece.end; ++row) {
    const A* d = du + (row - piece.begin) * kBlockChannels;
    for (std::int64_t w = 0; w < rows.taps; ++w) {
      const T* x = rows.at(row - (rows.taps - 1) + w);
      if (x == nullptr) continue;
      A* to = dweight + w * rows.channels;
      for (std::int64_t c = 0; c < width; ++c) to[c] += d[c] * widen(x[c]);
    }
    A* bias = dweight + rows.taps * rows.channels;
    for (std::int64_t c = 0; rows.biased && c < width; ++c) bias[c] += d[c];
  }
}

/// body(piece, number of the piece, first channel, channels).
template <class Body>
void for_each_item(const std::vector<Piece>& pieces, const ConvolutionShape& shape, double flop_per_element, StreamView stream,
                   const Body& body) {
  const std::int64_t blocks = (shape.channels + kBlockChannels - 1) / kBlockChannels;
  const auto items = static_cast<std::int64_t>(pieces.size()) * blocks;
  const double flop = flop_per_element * static_cast<double>(shape.rows * shape.channels * shape.taps);
  cpu::for_each_item(items, flop, stream, [&](std::int64_t item, const cpu::Progress&) {
    const std::int64_t piece = item / blocks, channel = item % blocks * kBlockChannels;
    body(pieces[static_cast<std::size_t>(piece)], piece, channel, std::min(kBlockChannels, shape.channels - channel));
  });
}

}  // namespace

void short_convolution(const ShortConvolution& inputs, TensorView y, StreamView stream) {
  constexpr std::string_view op = "short_convolution";
  const ConvolutionShape shape = check(op, inputs);
  check_dense(op, "y", y, inputs.x.shape(), inputs.x.dtype());
  if (on_cuda(stream)) return cuda::short_convolution(inputs, y, stream);
  visit_dtype<bfloat16, float, double>(inputs.x.dtype(), op, [&]<class T>() {
    using A = Accumulator<T>;
    const std::vector<A> weights = by_tap<T, A>(inputs.weight.data<T>(), shape);
    T* out = y.data<T>();
    for_each_item(pieces_of(inputs.runs), shape, 8, stream,
                  [&](const Piece& piece, std::int64_t, std::int64_t channel, std::int64_t width) {
                    const Rows<T> rows = rows_of<T>(inputs, shape, piece.run, channel);
                    const A* weight = weights.data() + channel;
                    T* to = out + piece.run.row0 * shape.channels + channel;
                    with_best_instructions([=]() __attribute__((always_inline)) {
                      A sum[kBlockChannels];
                      for (std::int64_t row = piece.begin; row < piece.end; ++row) {
                        convolve(rows, row, weight, width, sum);
                        for (std::int64_t c = 0; c < width; ++c) store(to[row * rows.channels + c], sum[c] * sigmoid(sum[c]));
                      }
                    });
                  });
  });
}

void short_convolution_backward(const ShortConvolution& inputs, ConstTensorView dy, TensorView dx, TensorView dhalo, TensorView dweight,
                                StreamView stream) {
  constexpr std::string_view op = "short_convolution_backward";
  const ConvolutionShape shape = check(op, inputs);
  const DType dtype = inputs.x.dtype(), accumulator = accumulator_of(dtype);
  check_dense(op, "dy", dy, inputs.x.shape(), dtype);
  check_dense(op, "dx", dx, inputs.x.shape(), dtype);
  check_dense(op, "dhalo", dhalo, inputs.halo.shape(), accumulator);
  check_dense(op, "dweight", dweight, inputs.weight.shape(), accumulator);
  if (on_cuda(stream)) return cuda::short_convolution_backward(inputs, dy, dx, dhalo, dweight, stream);
  const std::vector<Piece> pieces = pieces_of(inputs.runs);
  const std::int64_t reach = shape.taps - 1;
  fill_zero(dhalo);
  visit_dtype<bfloat16, float, double>(dtype, op, [&]<class T>() {
    using A = Accumulator<T>;
    const std::vector<A> weights = by_tap<T, A>(inputs.weight.data<T>(), shape);
    std::vector<A> partial(pieces.size() * weights.size());
    for_each_item(pieces, shape, 24, stream, [&](const Piece& piece, std::int64_t number, std::int64_t channel, std::int64_t width) {
      const UnitRun& run = piece.run;
      const Rows<T> rows = rows_of<T>(inputs, shape, run, channel);
      // Rows behind the piece read it too: their gradients are computed twice rather than exchanged between items.
      const std::int64_t count = std::min(run.rows, piece.end + reach) - piece.begin;
      std::vector<A> gradients(static_cast<std::size_t>(count * kBlockChannels));
      A* du = gradients.data();
      const A* weight = weights.data() + channel;
      const std::int64_t at = run.row0 * shape.channels + channel;
      const T* d = dy.data<T>() + at;
      T* to = dx.data<T>() + at;
      A* before = piece.begin == 0 && run.enters ? dhalo.data<A>() + run.unit * reach * shape.channels + channel : nullptr;
      A* dw = partial.data() + static_cast<std::size_t>(number) * weights.size() + channel;
      with_best_instructions([=]() __attribute__((always_inline)) {
        sum_gradients(rows, piece.begin, count, weight, d, width, du);
        weight_gradient(rows, piece, du, width, dw);
        for (std::int64_t row = piece.begin; row < piece.end; ++row) {
          convolve_back(du, count, row - piece.begin, rows.taps, rows.channels, weight, width, to + row * rows.channels);
        }
        for (std::int64_t row = 0; before != nullptr && row < reach; ++row) {
          convolve_back(du, count, row - reach, rows.taps, rows.channels, weight, width, before + row * rows.channels);
        }
      });
    });
    A* total = dweight.data<A>();
    for (std::size_t piece = 0; piece < pieces.size(); ++piece) {
      const A* part = partial.data() + piece * weights.size();
      for (std::int64_t w = 0; w < shape.columns; ++w) {
        for (std::int64_t c = 0; c < shape.channels; ++c) total[c * shape.columns + w] += part[w * shape.channels + c];
      }
    }
  });
}

}  // namespace periplus::kernels
