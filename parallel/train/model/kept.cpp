#include "parallel/train/model/kept.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace periplus::train {

Kept::Kept(std::size_t sets, std::vector<Part> parts, const Memory& memory, bool offload)
    : sets_(sets), parts_(std::move(parts)), memory_(memory), on_device_(offload ? std::min(sets, kPlaces) : sets) {
  if (!offload || sets <= kPlaces) return;
  const int device = memory.device().index;
  mover_ = cuda::make_stream(device);
  for (std::array<cuda::Event, kPlaces>* events : {&ready_, &moved_}) {
    for (cuda::Event& event : *events) event = cuda::Event(device);
  }
}

Kept::~Kept() {
  if (mover_) cuda::drain(*mover_);
}

Extents Kept::shape_of(const Part& part, std::int64_t rows) const {
  std::vector<std::int64_t> shape = {rows};
  shape.insert(shape.end(), part.of_row.begin(), part.of_row.end());
  return Extents(shape);
}

void Kept::resize(std::int64_t rows) {
  if (mover_) cuda::synchronize(*mover_);  // after a step that an error ended it may still be at work
  rows_ = rows;
  if (rows <= capacity_) return;
  capacity_ = -1;  // until memory is had
  // Old tensors go first: two generations at once would double the peak.
  for (std::vector<Tensor>& set : on_device_) set.clear();
  for (std::vector<Tensor>& set : on_device_) {
    for (const Part& part : parts_) set.emplace_back(shape_of(part, rows), part.dtype, memory_);
  }
  if (mover_ && rows > host_capacity_) resize_host(rows_on_host(rows));
  capacity_ = rows;
}

std::int64_t Kept::rows_on_host(std::int64_t rows) noexcept {
  const auto power = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(std::max<std::int64_t>(rows, 8))));
  const std::int64_t step = power / 8;
  return (rows + step - 1) / step * step;
}

void Kept::resize_host(std::int64_t rows) {
  host_capacity_ = -1;
  on_host_.clear();
  for (std::size_t set = 0; moves(set); ++set) {
    std::vector<cuda::PinnedBuffer>& host = on_host_.emplace_back();
    for (const Part& part : parts_) host.emplace_back(bytes_of(part, rows));
  }
  host_capacity_ = rows;
}

std::size_t Kept::bytes_of(const Part& part, std::int64_t rows) const {
  return static_cast<std::size_t>(shape_of(part, rows).product()) * size_of(part.dtype);
}

/// copy(host, device, bytes) for every tensor of a set that moves, behind what the stream has been told.
template <class Copy>
void Kept::move(std::size_t set, StreamView stream, const Copy& copy) {
  const std::size_t place = place_of(set);
  ready_[place].record(stream);
  ready_[place].order(*mover_);
  for (std::size_t part = 0; part < parts_.size(); ++part) {
    copy(on_host_[set][part].data(), tensor(set, part).view().bytes(), bytes_of(parts_[part], rows_));
  }
  moved_[place].record(*mover_);
}

void Kept::begin_write(std::size_t set, StreamView stream) {
  if (mover_ && set >= kPlaces) moved_[place_of(set)].order(stream);  // what was in its place has left
}

void Kept::end_write(std::size_t set, StreamView stream, bool will_be_read) {
  if (!will_be_read || !moves(set)) return;
  move(set, stream, [&](std::byte* host, const std::byte* device, std::size_t bytes) { cuda::copy_bytes(host, device, bytes, *mover_); });
}

void Kept::begin_read(std::size_t set, StreamView stream) {
  if (moves(set)) moved_[place_of(set)].order(stream);
}

void Kept::end_read(std::size_t set, StreamView stream) {
  if (!mover_ || set < kPlaces) return;
  move(set - kPlaces, stream,
       [&](std::byte* host, std::byte* device, std::size_t bytes) { cuda::copy_bytes(device, host, bytes, *mover_); });
}

}  // namespace periplus::train
