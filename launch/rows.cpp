#include "launch/rows.h"

#include <cstring>

namespace periplus::launch {
namespace {

Extents with_rows(const Extents& shape, std::int64_t rows) {
  Extents result = shape;
  result[0] = rows;
  return result;
}

std::size_t row_bytes(const ConstTensorView& tensor) {
  std::size_t bytes = size_of(tensor.dtype());
  for (int dim = 1; dim < tensor.dims(); ++dim) bytes *= static_cast<std::size_t>(tensor.size(dim));
  return bytes;
}

}  // namespace

Tensor take_rows(ConstTensorView whole, const SequenceLayout& layout, int rank, const Memory& memory) {
  Tensor local(with_rows(whole.shape(), layout.rows_of(rank)), whole.dtype(), memory);
  const std::size_t bytes = row_bytes(whole);
  std::byte* to = local.view().bytes();
  for (const std::int64_t row : layout.global_rows(rank)) {
    std::memcpy(to, whole.bytes() + static_cast<std::size_t>(row) * bytes, bytes);
    to += bytes;
  }
  return local;
}

void put_rows(ConstTensorView local, const SequenceLayout& layout, int rank, TensorView whole) {
  const std::size_t bytes = row_bytes(local);
  const std::byte* from = local.bytes();
  for (const std::int64_t row : layout.global_rows(rank)) {
    std::memcpy(whole.bytes() + static_cast<std::size_t>(row) * bytes, from, bytes);
    from += bytes;
  }
}

Tensor gather_rows(ConstTensorView local, const SequenceLayout& layout, const comm::Communicator& communicator, const Memory& memory) {
  const Stream stream;
  const comm::Purpose purpose{.operation = "gather result", .lane = comm::kCollectiveLane};
  if (communicator.rank() != 0) {
    const comm::Send send{0, local.bytes(), local.size_bytes()};
    communicator.exchange({&send, 1}, {}, purpose, stream).wait();
    return {};
  }
  Tensor whole(with_rows(local.shape(), layout.tokens()), local.dtype(), memory);
  put_rows(local, layout, 0, whole);
  for (int rank = 1; rank < communicator.size(); ++rank) {
    const Tensor part(with_rows(local.shape(), layout.rows_of(rank)), local.dtype(), memory);
    const comm::Receive receive{rank, part.view().bytes(), part.view().size_bytes()};
    communicator.exchange({}, {&receive, 1}, purpose, stream).wait();
    put_rows(part, layout, rank, whole);
  }
  return whole;
}

}  // namespace periplus::launch
