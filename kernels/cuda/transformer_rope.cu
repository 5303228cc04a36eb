// Rotary position embedding: a block takes a row and makes its angles once for all heads.
#include "kernels/cuda/transformer.cuh"
#include "kernels/cuda/transformer.h"

namespace periplus::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTilePairs = 512;  // whose angles are in shared memory at a time

struct Rotation {
  std::int64_t rows, heads, pairs;
  const std::int64_t* positions;
  const double* frequencies;
  double sign;
};

/// Sines and cosines of `count` pairs from `first` on. Angles are f64: at position 10^6 an f32 angle is off by 0.06 rad.
template <class A>
__device__ void make_angles(const Rotation& r, std::int64_t row, std::int64_t first, int count, A* cosines, A* sines) {
  const auto position = static_cast<double>(r.positions[row]);
  __syncthreads();  // the tile before has been used
  for (int m = static_cast<int>(threadIdx.x); m < count; m += static_cast<int>(blockDim.x)) {
    double sine = 0, cosine = 0;
    sincos(position * r.frequencies[first + m], &sine, &cosine);
    cosines[m] = static_cast<A>(cosine);
    sines[m] = static_cast<A>(r.sign * sine);
  }
  __syncthreads();
}

/// Rotates `count` pairs, which are `low` and `high`: halves apart, or the halves of a run of interleaved pairs.
template <RopeStyle style, int count, class T, class A>
__device__ __forceinline__ void rotate(T* low, T* high, const A* cosines, const A* sines) {
  auto lower = load<count>(low), upper = load<count>(high);
  const auto element = [&](int i) -> T& { return i < count ? lower.value[i] : upper.value[i - count]; };
#pragma unroll
  for (int i = 0; i < count; ++i) {
    T& x = element(style == RopeStyle::half ? i : 2 * i);
    T& y = element(style == RopeStyle::half ? count + i : 2 * i + 1);
    const A a = static_cast<A>(x), b = static_cast<A>(y);
    x = static_cast<T>(a * cosines[i] - b * sines[i]);
    y = static_cast<T>(b * cosines[i] + a * sines[i]);
  }
  store(lower, low);
  store(upper, high);
}

template <RopeStyle style, int count, class T>
__global__ void __launch_bounds__(kThreads) rotate_rows(const Rotation r, const Strided<T> x) {
  using A = AccumulatorOf<T>;
  __shared__ A cosines[kTilePairs], sines[kTilePairs];
  for (std::int64_t row = blockIdx.x; row < r.rows; row += gridDim.x) {
    for (std::int64_t first = 0; first < r.pairs; first += kTilePairs) {
      const int pairs = static_cast<int>(min(r.pairs - first, std::int64_t{kTilePairs})), accesses = pairs / count;
      make_angles(r, row, first, pairs, cosines, sines);
      for (std::int64_t item = threadIdx.x; item < r.heads * accesses; item += blockDim.x) {
        const std::int64_t head = item / accesses;
        const int m = static_cast<int>(item - head * accesses) * count;
        T* const low = at(x, row, head) + (style == RopeStyle::half ? first + m : 2 * (first + m));
        rotate<style, count>(low, style == RopeStyle::half ? low + r.pairs : low + count, cosines + m, sines + m);
      }
    }
  }
}

template <int count, class T>
void rotate_all(const Rotation& r, const Strided<T>& x, RopeStyle style, cudaStream_t stream) {
  const std::int64_t items = std::max(r.pairs, r.heads * (r.pairs / count));
  const auto threads = static_cast<unsigned>(std::min<std::int64_t>((items + 31) / 32 * 32, kThreads));
  const auto kernel = style == RopeStyle::half ? rotate_rows<RopeStyle::half, count, T> : rotate_rows<RopeStyle::interleaved, count, T>;
  launch("launch of rope", kernel, blocks_for(r.rows), threads, 0, stream, r, x);
}

}  // namespace

void rope(TensorView x, std::span<const std::int64_t> positions, std::span<const double> frequencies, RopeStyle style,
          RopeDirection direction, StreamView stream) {
  if (x.elements() == 0) return;
  const cudaStream_t native = launch_stream(stream);
  const Scratch<std::int64_t> row_positions(positions, native);
  const Scratch<double> pair_frequencies(frequencies, native);
  const Rotation r{
      x.size(0), x.size(1), x.size(2) / 2, row_positions.data(), pair_frequencies.data(), direction == RopeDirection::forward ? 1.0 : -1.0};
  visit_dtype<bfloat16, float, double>(x.dtype(), "rope", [&]<class T>() {
    with_access<kPerAccess<T>>(r.pairs % kPerAccess<T> == 0 && aligned(x, 16),
                               [&]<int count>(std::integral_constant<int, count>) { rotate_all<count>(r, strided<T>(x), style, native); });
  });
}

}  // namespace periplus::kernels::cuda
