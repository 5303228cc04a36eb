// Short causal depthwise convolution with SiLU (algorithms.md 5.7): a block takes a piece of a run and a warp's width of channels.
#include <string>
#include <vector>

#include "kernels/cuda/activations.cuh"
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/mixer.h"
#include "runtime/error.h"

namespace periplus::kernels::cuda {
namespace {

constexpr int kPieceRows = 64;
constexpr int kMostTaps = 64;
constexpr int kChannels = 32, kLanes = 8;  // of a block: lanes share its rows, then its taps

/// Rows [begin, end) of a run that begins at row `row0` of x.
struct Piece {
  std::int64_t row0, rows, begin, end;
  std::int64_t unit;
  bool enters;
};

std::vector<Piece> pieces_of(std::span<const UnitRun> runs) {
  std::vector<Piece> pieces;
  for (const UnitRun& run : runs) {
    for (std::int64_t begin = 0; begin < run.rows; begin += kPieceRows) {
      pieces.push_back({run.row0, run.rows, begin, std::min<std::int64_t>(run.rows, begin + kPieceRows), run.unit, run.enters});
    }
  }
  return pieces;
}

template <class T>
struct Convolution {
  std::int64_t channels;
  int taps;
  int columns;  ///< Of weight: one more than taps with a bias.
  const T *x, *weight, *halo;
};

/// One channel of a piece.
template <class T>
struct Column {
  using A = AccumulatorOf<T>;
  const Convolution<T>& c;
  const Piece& piece;
  std::int64_t channel;

  /// x of a row of the run, of the halo before it, or zero before the beginning of the document.
  __device__ A input(std::int64_t row) const {
    if (row >= 0) return static_cast<A>(c.x[(piece.row0 + row) * c.channels + channel]);
    if (!piece.enters) return 0;
    return static_cast<A>(c.halo[(piece.unit * (c.taps - 1) + c.taps - 1 + row) * c.channels + channel]);
  }
  __device__ A tap(int w) const { return static_cast<A>(c.weight[channel * c.columns + w]); }
  /// Before SiLU.
  __device__ A convolved(std::int64_t row) const {
    A sum = c.columns > c.taps ? tap(c.taps) : A{0};
    for (int w = 0; w < c.taps; ++w) sum += tap(w) * input(row - (c.taps - 1) + w);
    return sum;
  }
};

template <class T>
__global__ void __launch_bounds__(kChannels* kLanes) convolve(const Convolution<T> c, const Piece* pieces, T* y) {
  using A = AccumulatorOf<T>;
  const Piece piece = pieces[blockIdx.x];
  const std::int64_t channel = std::int64_t{blockIdx.y} * kChannels + threadIdx.x;
  if (channel >= c.channels) return;
  const Column<T> column{c, piece, channel};
  for (std::int64_t row = piece.begin + threadIdx.y; row < piece.end; row += kLanes) {
    const A sum = column.convolved(row);
    y[(piece.row0 + row) * c.channels + channel] = static_cast<T>(sum * sigmoid(sum));
  }
}

template <class T>
struct Backward {
  using A = AccumulatorOf<T>;
  Convolution<T> c;
  const Piece* pieces;
  const T* dy;
  T* dx;
  A* dhalo;
  A* partial;  ///< [pieces, channels, columns]: dweight over the rows of a piece.
};

/// Rows behind the piece read it too: their gradients are computed twice rather than exchanged between blocks.
template <class T>
__global__ void __launch_bounds__(kChannels* kLanes) convolve_backward(const Backward<T> b) {
  using A = AccumulatorOf<T>;
  __shared__ A du[kPieceRows + kMostTaps - 1][kChannels];  // gradients of the sums before SiLU
  const Piece piece = b.pieces[blockIdx.x];
  const int taps = b.c.taps, count = static_cast<int>(min(piece.rows, piece.end + taps - 1) - piece.begin);
  const std::int64_t channel = std::int64_t{blockIdx.y} * kChannels + threadIdx.x;
  const bool inside = channel < b.c.channels;
  const Column<T> column{b.c, piece, channel};
  for (int i = static_cast<int>(threadIdx.y); inside && i < count; i += kLanes) {
    const A u = column.convolved(piece.begin + i), s = sigmoid(u);
    du[i][threadIdx.x] = static_cast<A>(b.dy[(piece.row0 + piece.begin + i) * b.c.channels + channel]) * s * (1 + u * (1 - s));
  }
  __syncthreads();
  if (!inside) return;
  // What the rows that read row `row`, counted from the piece's first, make of it.
  const auto gathered = [&](int row) {
    A sum = 0;
    for (int w = 0; w < taps; ++w) {
      const int reader = row + taps - 1 - w;
      if (reader >= 0 && reader < count) sum += column.tap(w) * du[reader][threadIdx.x];
    }
    return sum;
  };
  const int rows = static_cast<int>(piece.end - piece.begin);
  for (int row = static_cast<int>(threadIdx.y); row < rows; row += kLanes) {
    b.dx[(piece.row0 + piece.begin + row) * b.c.channels + channel] = static_cast<T>(gathered(row));
  }
  for (int row = static_cast<int>(threadIdx.y); piece.begin == 0 && piece.enters && row < taps - 1; row += kLanes) {
    b.dhalo[(piece.unit * (taps - 1) + row) * b.c.channels + channel] = gathered(row - (taps - 1));
  }
  for (int w = static_cast<int>(threadIdx.y); w < b.c.columns; w += kLanes) {
    A sum = 0;
    for (int row = 0; row < rows; ++row) sum += du[row][threadIdx.x] * (w < taps ? column.input(piece.begin + row - (taps - 1) + w) : A{1});
    b.partial[(std::int64_t{blockIdx.x} * b.c.channels + channel) * b.c.columns + w] = sum;
  }
}

template <class T>
Convolution<DeviceValue<T>> convolution_of(std::string_view op, const ShortConvolution& inputs) {
  const std::int64_t taps = inputs.halo.size(1) + 1, channels = inputs.x.size(1);
  if (taps > kMostTaps) {
    throw InvalidArgument(std::string(op) + ": weight has " + std::to_string(taps) + " taps; on a GPU at most " +
                          std::to_string(kMostTaps) + " are possible");
  }
  return {channels,
          static_cast<int>(taps),
          static_cast<int>(inputs.weight.size(1)),
          device_data<T>(inputs.x),
          device_data<T>(inputs.weight),
          device_data<T>(inputs.halo)};
}

dim3 blocks_of(std::size_t pieces, std::int64_t channels) {
  return {static_cast<unsigned>(pieces), static_cast<unsigned>((channels + kChannels - 1) / kChannels), 1};
}

}  // namespace

void short_convolution(const ShortConvolution& inputs, TensorView y, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  visit_dtype<bfloat16, float, double>(inputs.x.dtype(), "short_convolution", [&]<class T>() {
    const auto c = convolution_of<T>("short_convolution", inputs);
    const std::vector<Piece> pieces = pieces_of(inputs.runs);
    if (pieces.empty() || c.channels == 0) return;
    const Scratch<Piece> there(std::span<const Piece>(pieces), native);
    launch("launch of short_convolution", convolve<DeviceValue<T>>, blocks_of(pieces.size(), c.channels), dim3(kChannels, kLanes), 0,
           native, c, there.data(), device_data<T>(y));
  });
}

void short_convolution_backward(const ShortConvolution& inputs, ConstTensorView dy, TensorView dx, TensorView dhalo, TensorView dweight,
                                StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  periplus::cuda::check(cudaMemsetAsync(dhalo.bytes(), 0, dhalo.size_bytes(), native), "cudaMemsetAsync of halo gradients");
  visit_dtype<bfloat16, float, double>(inputs.x.dtype(), "short_convolution_backward", [&]<class T>() {
    using A = AccumulatorOf<T>;
    const auto c = convolution_of<T>("short_convolution_backward", inputs);
    const std::vector<Piece> pieces = pieces_of(inputs.runs);
    if (pieces.empty() || c.channels == 0) return;
    const Scratch<Piece> there(std::span<const Piece>(pieces), native);
    const Scratch<A> partial(std::ssize(pieces) * dweight.elements(), native);
    const Backward<DeviceValue<T>> b{c, there.data(), device_data<T>(dy), device_data<T>(dx), device_data<A>(dhalo), partial.data()};
    launch("launch of short_convolution_backward", convolve_backward<DeviceValue<T>>, blocks_of(pieces.size(), c.channels),
           dim3(kChannels, kLanes), 0, native, b);
    add_column_sums<A>(std::ssize(pieces), dweight.elements(), partial.data(), device_data<A>(dweight), native);
  });
}

}  // namespace periplus::kernels::cuda
