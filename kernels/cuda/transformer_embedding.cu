// Token embedding: a row gather, and its transpose by lists of the tokens that name each row, made on the host.
#include <vector>

#include "kernels/cuda/transformer.cuh"
#include "kernels/cuda/transformer.h"

namespace periplus::kernels::cuda {
namespace {

constexpr int kThreads = 256;

template <class Unit>
__global__ void __launch_bounds__(kThreads)
    gather_rows(std::int64_t rows, std::int64_t units, const std::int32_t* tokens, const Unit* table, Unit* x) {
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const Unit* const from = table + tokens[row] * units;
    for (std::int64_t unit = threadIdx.x; unit < units; unit += blockDim.x) x[row * units + unit] = from[unit];
  }
}

/// False if rows do not consist of aligned units.
template <class Unit>
bool gather_as(std::int64_t rows, std::size_t row_bytes, const std::int32_t* tokens, const std::byte* table, std::byte* x,
               cudaStream_t stream) {
  const auto whole = [](std::uintptr_t value) { return value % sizeof(Unit) == 0; };
  if (!whole(row_bytes) || !whole(reinterpret_cast<std::uintptr_t>(table)) || !whole(reinterpret_cast<std::uintptr_t>(x))) return false;
  const auto units = static_cast<std::int64_t>(row_bytes / sizeof(Unit));
  const unsigned threads = std::min<unsigned>(row_threads(units, 1), kThreads);
  launch("launch of embedding", gather_rows<Unit>, blocks_for(rows), threads, 0, stream, rows, units, tokens,
         reinterpret_cast<const Unit*>(table), reinterpret_cast<Unit*>(x));
  return true;
}

/// Which tokens name each row of the table that is named at all.
struct TokenLists {
  std::vector<std::int64_t> rows;
  std::vector<std::int64_t> begin;  ///< rows.size() + 1 places in `order`.
  std::vector<std::int64_t> order;  ///< Numbers of tokens: ascending within a row.
};

TokenLists lists_of(std::span<const std::int32_t> tokens, std::int64_t vocabulary) {
  std::vector<std::int64_t> next(static_cast<std::size_t>(vocabulary));  // counts, then the place of a row's next token
  for (const std::int32_t token : tokens) ++next[static_cast<std::size_t>(token)];
  TokenLists lists;
  std::int64_t place = 0;
  for (std::size_t row = 0; row < next.size(); ++row) {
    const std::int64_t count = next[row];
    next[row] = place;
    if (count == 0) continue;
    lists.rows.push_back(static_cast<std::int64_t>(row));
    lists.begin.push_back(place);
    place += count;
  }
  lists.begin.push_back(place);
  lists.order.resize(tokens.size());
  for (std::size_t n = 0; n < tokens.size(); ++n) {
    lists.order[static_cast<std::size_t>(next[static_cast<std::size_t>(tokens[n])]++)] = static_cast<std::int64_t>(n);
  }
  return lists;
}

constexpr int kSumThreads = 128;

/// dtable[row] += its tokens' dx, one after the other: the CPU's order and bits. Blocks along y share a row's columns, since
/// a frequent token has a long list.
template <int count, class T, class A>
__global__ void __launch_bounds__(kSumThreads) add_listed_rows(std::int64_t lists, const std::int64_t* rows, const std::int64_t* begin,
                                                               const std::int64_t* order, std::int64_t channels, const T* dx, A* dtable) {
  const std::int64_t start = (std::int64_t{blockIdx.y} * kSumThreads + threadIdx.x) * count;
  const std::int64_t step = std::int64_t{gridDim.y} * kSumThreads * count;
  for (std::int64_t list = blockIdx.x; list < lists; list += gridDim.x) {
    for (std::int64_t column = start; column < channels; column += step) {
      A* const to = dtable + rows[list] * channels + column;
      auto sum = load<count>(to);
#pragma unroll 8
      for (std::int64_t at = begin[list]; at < begin[list + 1]; ++at) {
        const auto values = load<count>(dx + order[at] * channels + column);
#pragma unroll
        for (int i = 0; i < count; ++i) sum.value[i] += static_cast<A>(values.value[i]);
      }
      store(sum, to);
    }
  }
}

}  // namespace

void embedding(std::span<const std::int32_t> tokens, ConstTensorView table, TensorView x, StreamView stream) {
  if (x.elements() == 0) return;
  const cudaStream_t native = launch_stream(stream);
  const Scratch<std::int32_t> list(tokens, native);
  const std::int64_t rows = x.size(0);
  const std::size_t row_bytes = static_cast<std::size_t>(x.size(1)) * size_of(x.dtype());
  const auto as = [&]<class Unit>(Unit) { return gather_as<Unit>(rows, row_bytes, list.data(), table.bytes(), x.bytes(), native); };
  as(uint4{}) || as(std::uint64_t{}) || as(std::uint32_t{}) || as(std::uint16_t{}) || as(std::uint8_t{});
}

void embedding_backward(std::span<const std::int32_t> tokens, ConstTensorView dx, TensorView dtable, StreamView stream) {
  if (dx.elements() == 0) return;
  const cudaStream_t native = launch_stream(stream);
  const TokenLists lists = lists_of(tokens, dtable.size(0));
  const Scratch<std::int64_t> rows(lists.rows, native), begin(lists.begin, native), order(lists.order, native);
  const auto list_count = static_cast<std::int64_t>(lists.rows.size());
  const std::int64_t channels = dx.size(1);
  visit_dtype<bfloat16, float, double>(dx.dtype(), "embedding_backward", [&]<class T>() {
    using A = AccumulatorOf<T>;
    const bool wide = channels % kPerAccess<T> == 0 && starts_aligned(kPerAccess<T>, {dx, dtable});
    with_access<kPerAccess<T>>(wide, [&]<int count>(std::integral_constant<int, count>) {
      constexpr std::int64_t kPerBlock = kSumThreads * count, kMostAlongY = 65535;
      const auto column_blocks = static_cast<unsigned>(std::min((channels + kPerBlock - 1) / kPerBlock, kMostAlongY));
      launch("launch of embedding_backward", add_listed_rows<count, DeviceValue<T>, A>, dim3(blocks_for(list_count), column_blocks),
             kSumThreads, 0, native, list_count, rows.data(), begin.data(), order.data(), channels, device_data<T>(dx),
             device_data<A>(dtable));
    });
  });
}

}  // namespace periplus::kernels::cuda
