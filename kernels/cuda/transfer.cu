// Copies, sums and row permutations at the speed of device memory. A transfer is a list of moves of rows; a row is `heads` runs of
// elements that are contiguous on both sides, and a run is cut into vectors of 16 bytes of the wider type. Threads take
// vectors in order, so that neighbours touch neighbouring bytes.
#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/transfer.h"
#include "runtime/cuda/check.h"
#include "runtime/error.h"

namespace periplus::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;       // vectors in flight per thread
constexpr int kMostMoves = 250;  // of one launch: they travel in the kernel's parameters, 4 KiB at most
constexpr std::int64_t kMostVectors = std::numeric_limits<std::int32_t>::max();

/// In elements. Vectors count from 0 over moves, rows, heads and runs.
template <class From, class To>
struct Transfer {
  const From* source;
  To* destination;
  std::int64_t source_row, source_head, destination_row, destination_head;
  std::uint32_t vectors_per_run, vectors_per_row, vectors;
  std::int32_t moves;
  std::int32_t from[kMostMoves], to[kMostMoves];
  std::uint32_t first[kMostMoves];  ///< Rows moved before each.
  std::uint16_t from_stride[kMostMoves], to_stride[kMostMoves];
};
static_assert(sizeof(Transfer<float, float>) <= 4096);

template <class T, int kVector>
struct alignas(sizeof(T) * kVector) Pack {
  T value[kVector];
};

template <class To, class From>
__device__ To convert(From value) {
  if constexpr (std::is_same_v<From, To>) {
    return value;
  } else if constexpr (std::is_same_v<From, __nv_bfloat16>) {
    return convert<To>(__bfloat162float(value));
  } else if constexpr (std::is_same_v<From, __half>) {
    return convert<To>(__half2float(value));
  } else if constexpr (std::is_same_v<To, __nv_bfloat16>) {
    // From double in one rounding, as on the CPU.
    if constexpr (std::is_same_v<From, double>) return __double2bfloat16(value);
    if constexpr (std::is_same_v<From, float>) return __float2bfloat16_rn(value);
  } else if constexpr (std::is_same_v<To, __half>) {
    if constexpr (std::is_same_v<From, double>) return __double2half(value);
    if constexpr (std::is_same_v<From, float>) return __float2half_rn(value);
  } else {
    return static_cast<To>(value);
  }
}

struct Copy {
  static constexpr bool kReadsDestination = false;
  template <class To, class From>
  __device__ static To combine(From value, To) {
    return convert<To>(value);
  }
};

struct Add {
  static constexpr bool kReadsDestination = true;
  template <class To, class From>
  __device__ static To combine(From value, To old) {
    using Sum = std::conditional_t<std::is_same_v<From, double> || std::is_same_v<To, double>, double, float>;
    return convert<To>(convert<Sum>(old) + convert<Sum>(value));
  }
};

template <class From, class To>
__device__ int move_of(const Transfer<From, To>& t, std::uint32_t row) {
  int low = 0, high = t.moves;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (t.first[middle] <= row) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class Operation, class From, class To, int kVector>
__global__ void __launch_bounds__(kThreads) transfer_kernel(const __grid_constant__ Transfer<From, To> t) {
  using Source = Pack<From, kVector>;
  using Destination = Pack<To, kVector>;
  Source in[kUnroll];
  Destination out[kUnroll];
  Destination* place[kUnroll];
  const std::uint32_t begin = blockIdx.x * (kThreads * kUnroll) + threadIdx.x;
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const std::uint32_t index = begin + u * kThreads;
    place[u] = nullptr;
    if (index >= t.vectors) continue;
    const std::uint32_t moved_row = index / t.vectors_per_row, in_row = index - moved_row * t.vectors_per_row;
    const std::uint32_t head = in_row / t.vectors_per_run;
    const std::int64_t at = static_cast<std::int64_t>(in_row - head * t.vectors_per_run) * kVector;
    const int move = move_of(t, moved_row);
    const auto row = static_cast<std::int32_t>(moved_row - t.first[move]);
    const std::int64_t from = t.from[move] + row * t.from_stride[move], to = t.to[move] + row * t.to_stride[move];  // below 2^31
    place[u] = reinterpret_cast<Destination*>(t.destination + to * t.destination_row + head * t.destination_head + at);
    in[u] = *reinterpret_cast<const Source*>(t.source + from * t.source_row + head * t.source_head + at);
    if constexpr (Operation::kReadsDestination) out[u] = *place[u];
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    if (place[u] == nullptr) continue;
#pragma unroll
    for (int v = 0; v < kVector; ++v) out[u].value[v] = Operation::template combine<To>(in[u].value[v], out[u].value[v]);
    *place[u] = out[u];
  }
}

/// Strides in elements of the two sides; the run is contiguous on both.
struct Geometry {
  std::int64_t heads, run;
  std::int64_t source_row, source_head, destination_row, destination_head;
};

Geometry geometry_of(const ConstTensorView& source, const TensorView& destination, bool all_rows) {
  Geometry g{source.size(1), source.size(2), source.stride(0), source.stride(1), destination.stride(0), destination.stride(1)};
  if (g.heads == 1 || (g.source_head == g.run && g.destination_head == g.run)) {
    g.run *= g.heads;
    g.heads = 1;
  }
  // A dense whole is one row: odd widths do not spoil its alignment then.
  if (all_rows && (source.size(0) == 1 || (g.heads == 1 && g.source_row == g.run && g.destination_row == g.run))) {
    g.run *= source.size(0);
    g.source_row = g.destination_row = 0;
  }
  if (g.heads == 1) g.source_head = g.destination_head = 0;
  return g;
}

/// Whether every access to vectors of so many elements is aligned and no run ends inside one.
template <class From, class To>
bool vectors_fit(const Geometry& g, const void* source, const void* destination, std::int64_t elements) {
  const auto aligned = [](const void* address, std::size_t bytes) { return reinterpret_cast<std::uintptr_t>(address) % bytes == 0; };
  const std::int64_t strides = std::gcd(std::gcd(g.source_row, g.source_head), std::gcd(g.destination_row, g.destination_head));
  return g.run % elements == 0 && strides % elements == 0 && aligned(source, static_cast<std::size_t>(elements) * sizeof(From)) &&
         aligned(destination, static_cast<std::size_t>(elements) * sizeof(To));
}

template <class Operation, int kVector, class From, class To>
void launch(Transfer<From, To>& t, std::uint32_t rows, StreamView stream) {
  if (rows == 0) return;
  t.vectors = rows * t.vectors_per_row;
  constexpr std::uint32_t kPerBlock = kThreads * kUnroll;
  const std::uint32_t blocks = (t.vectors + kPerBlock - 1) / kPerBlock;
  transfer_kernel<Operation, From, To, kVector><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream.native())>>>(t);
  periplus::cuda::check(cudaGetLastError(), "launch of a transfer");
}

/// Launches the moves in portions that fit the kernel's parameters and 32-bit indices.
template <class Operation, int kVector, class From, class To>
void run_moves(const Geometry& g, const void* source, void* destination, std::span<const RowMove> moves, StreamView stream) {
  const std::int64_t per_run = g.run / kVector, per_row = per_run * g.heads, most_rows = kMostVectors / per_row;
  if (most_rows == 0)
    throw InvalidArgument("copy: rows of " + std::to_string(g.run * g.heads) + " elements are too long; give the view more rows");
  Transfer<From, To> t{};
  t.source = static_cast<const From*>(source), t.destination = static_cast<To*>(destination);
  t.source_row = g.source_row, t.source_head = g.source_head;
  t.destination_row = g.destination_row, t.destination_head = g.destination_head;
  t.vectors_per_run = static_cast<std::uint32_t>(per_run), t.vectors_per_row = static_cast<std::uint32_t>(per_row);
  std::int64_t rows = 0;  // of this portion
  for (const RowMove& move : moves) {
    const bool stride_fits = std::max(move.from_stride, move.to_stride) <= std::numeric_limits<std::uint16_t>::max();
    for (std::int64_t done = 0; done < move.rows;) {
      if (t.moves == kMostMoves || rows == most_rows) {
        launch<Operation, kVector>(t, static_cast<std::uint32_t>(rows), stream);
        t.moves = 0, rows = 0;
      }
      const std::int64_t count = stride_fits ? std::min(move.rows - done, most_rows - rows) : 1;
      t.from[t.moves] = static_cast<std::int32_t>(move.from + done * move.from_stride);
      t.to[t.moves] = static_cast<std::int32_t>(move.to + done * move.to_stride);
      t.from_stride[t.moves] = static_cast<std::uint16_t>(move.from_stride),
      t.to_stride[t.moves] = static_cast<std::uint16_t>(move.to_stride);
      t.first[t.moves++] = static_cast<std::uint32_t>(rows);
      rows += count, done += count;
    }
  }
  launch<Operation, kVector>(t, static_cast<std::uint32_t>(rows), stream);
}

template <class Operation, class From, class To>
void convert_moves(const ConstTensorView& source, const TensorView& destination, std::span<const RowMove> moves, bool all_rows,
                   StreamView stream) {
  constexpr int kVector = 16 / std::max(sizeof(From), sizeof(To));
  const Geometry g = geometry_of(source, destination, all_rows);
  const RowMove whole{0, 0, 1};
  if (all_rows && g.run * g.heads == source.elements()) moves = {&whole, 1};
  if (vectors_fit<From, To>(g, source.bytes(), destination.bytes(), kVector)) {
    run_moves<Operation, kVector, From, To>(g, source.bytes(), destination.bytes(), moves, stream);
  } else {
    run_moves<Operation, 1, From, To>(g, source.bytes(), destination.bytes(), moves, stream);
  }
}

/// Copies within a type, as units of up to 16 bytes whatever the type.
void copy_bytes_of_moves(const ConstTensorView& source, const TensorView& destination, std::span<const RowMove> moves, bool all_rows,
                         StreamView stream) {
  Geometry g = geometry_of(source, destination, all_rows);
  const RowMove whole{0, 0, 1};
  if (all_rows && g.run * g.heads == source.elements()) moves = {&whole, 1};
  const auto element = static_cast<std::int64_t>(size_of(source.dtype()));
  for (std::int64_t* extent : {&g.run, &g.source_row, &g.source_head, &g.destination_row, &g.destination_head}) *extent *= element;
  const auto in_units = [&]<class Unit>(Unit) {
    constexpr std::int64_t kBytes = sizeof(Unit);
    if (!vectors_fit<std::uint8_t, std::uint8_t>(g, source.bytes(), destination.bytes(), kBytes)) return false;
    Geometry units = g;
    for (std::int64_t* extent : {&units.run, &units.source_row, &units.source_head, &units.destination_row, &units.destination_head}) {
      *extent /= kBytes;
    }
    run_moves<Copy, 1, Unit, Unit>(units, source.bytes(), destination.bytes(), moves, stream);
    return true;
  };
  in_units(uint4{}) || in_units(std::uint64_t{}) || in_units(std::uint32_t{}) || in_units(std::uint16_t{}) || in_units(std::uint8_t{});
}

template <class Operation>
void with_conversion(const ConstTensorView& source, const TensorView& destination, std::span<const RowMove> moves, bool all_rows,
                     std::string_view name, StreamView stream) {
  visit_dtype<double, float, bfloat16, float16>(source.dtype(), name, [&]<class From>() {
    visit_dtype<double, float, bfloat16, float16>(destination.dtype(), name, [&]<class To>() {
      convert_moves<Operation, DeviceValue<From>, DeviceValue<To>>(source, destination, moves, all_rows, stream);
    });
  });
}

}  // namespace

void move_rows(ConstTensorView source, TensorView destination, std::span<const RowMove> moves, StreamView stream) {
  const bool all_rows = moves.size() == 1 && moves[0].from == 0 && moves[0].to == 0 && moves[0].rows == source.size(0) &&
                        moves[0].rows == destination.size(0);
  if (source.dtype() == destination.dtype()) return copy_bytes_of_moves(source, destination, moves, all_rows, stream);
  with_conversion<Copy>(source, destination, moves, all_rows, "copy with conversion", stream);
}

void add(ConstTensorView source, TensorView destination, StreamView stream) {
  const RowMove all{0, 0, source.size(0)};
  with_conversion<Add>(source, destination, {&all, 1}, true, "add", stream);
}

}  // namespace periplus::kernels::cuda
