// Rotary position embedding (algorithms.md 10.2).
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cuda/transformer.h"
#include "kernels/operands.h"
#include "kernels/rows.h"
#include "kernels/transformer.h"
#include "kernels/transformer/vector_math.h"

namespace periplus::kernels {
namespace {

constexpr std::int64_t kChunkRows = 32;

/// Angles are f64: at position 10^6 an f32 angle is off by 0.06 rad. `fastest` is the largest |frequency|.
template <class A>
[[gnu::always_inline]] inline void row_angles(double position, double sign, const double* frequencies, double fastest, std::int64_t pairs,
                                              A* cosines, A* sines) {
  if (std::abs(position) * fastest <= kFastSincosLimit) {
    for (std::int64_t m = 0; m < pairs; ++m) {
      double sine = 0, cosine = 0;
      fast_sincos(position * frequencies[m], sine, cosine);
      cosines[m] = static_cast<A>(cosine);
      sines[m] = static_cast<A>(sign * sine);
    }
    return;
  }
  for (std::int64_t m = 0; m < pairs; ++m) {
    cosines[m] = static_cast<A>(std::cos(position * frequencies[m]));
    sines[m] = static_cast<A>(sign * std::sin(position * frequencies[m]));
  }
}

template <class T, class A>
[[gnu::always_inline]] inline void rotate_half(T* __restrict low, T* __restrict high, std::int64_t pairs, const A* __restrict cosines,
                                               const A* __restrict sines) {
  for (std::int64_t m = 0; m < pairs; ++m) {
    const A a = widen(low[m]), b = widen(high[m]);
    store(low[m], a * cosines[m] - b * sines[m]);
    store(high[m], b * cosines[m] + a * sines[m]);
  }
}

template <class T, class A>
[[gnu::always_inline]] inline void rotate_interleaved(T* __restrict x, std::int64_t pairs, const A* __restrict cosines,
                                                      const A* __restrict sines) {
  for (std::int64_t m = 0; m < pairs; ++m) {
    const A a = widen(x[2 * m]), b = widen(x[2 * m + 1]);
    store(x[2 * m], a * cosines[m] - b * sines[m]);
    store(x[2 * m + 1], b * cosines[m] + a * sines[m]);
  }
}

void check(const TensorView& x, std::span<const std::int64_t> positions, std::span<const double> frequencies) {
  check_dims("rope", "x", x);
  check_operand("rope", "x", x, x.shape(), x.dtype());
  const std::int64_t rows = x.size(0), width = x.size(2);
  require(width % 2 == 0, "rope: head width {} is odd; pairs need an even width", width);
  require(std::ssize(positions) == rows, "rope: {} positions for {} rows; give one per row, from the layout", positions.size(), rows);
  require(std::ssize(frequencies) == width / 2, "rope: {} frequencies for the {} pairs of a head; give one per pair", frequencies.size(),
          width / 2);
}

}  // namespace

std::vector<double> rope_frequencies(double theta, std::int64_t width) {
  require(width % 2 == 0, "rope: head width {} is odd; pairs need an even width", width);
  require(theta > 0, "rope: theta is {}; it must be > 0 (usual: 10000)", theta);
  std::vector<double> frequencies;
  for (std::int64_t m = 0; m < width; m += 2) frequencies.push_back(std::pow(theta, -static_cast<double>(m) / static_cast<double>(width)));
  return frequencies;
}

void rope(TensorView x, std::span<const std::int64_t> positions, std::span<const double> frequency_list, RopeStyle style,
          RopeDirection direction, StreamView stream) {
  check(x, positions, frequency_list);
  const std::int64_t rows = x.size(0), heads = x.size(1), width = x.size(2), pairs = width / 2;
  const std::int64_t row_stride = x.stride(0), head_stride = x.stride(1);
  if (on_cuda(stream)) return cuda::rope(x, positions, frequency_list, style, direction, stream);
  const double* frequencies = frequency_list.data();
  double fastest = 0;
  for (const double frequency : frequency_list) fastest = std::max(fastest, std::abs(frequency));
  const double sign = direction == RopeDirection::forward ? 1 : -1;
  const std::int64_t chunks = (rows + kChunkRows - 1) / kChunkRows;
  visit_dtype<bfloat16, float, double>(x.dtype(), "rope", [&]<class T>() {
    using A = Accumulator<T>;
    T* data = x.data<T>();
    std::vector<A> tables(static_cast<std::size_t>(chunks * width));
    A* table = tables.data();
    for_row_chunks(rows, kChunkRows, (heads + 1) * width, stream, [=](std::int64_t begin, std::int64_t end, std::int64_t chunk) {
      A *cosines = table + chunk * width, *sines = cosines + pairs;
      with_best_instructions([=]() __attribute__((always_inline)) {
        for (std::int64_t n = begin; n < end; ++n) {
          row_angles<A>(static_cast<double>(positions[static_cast<std::size_t>(n)]), sign, frequencies, fastest, pairs, cosines, sines);
          for (std::int64_t head = 0; head < heads; ++head) {
            T* at = data + n * row_stride + head * head_stride;
            if (style == RopeStyle::half) {
              rotate_half<T, A>(at, at + pairs, pairs, cosines, sines);
            } else {
              rotate_interleaved<T, A>(at, pairs, cosines, sines);
            }
          }
        }
      });
    });
  });
}

}  // namespace periplus::kernels
