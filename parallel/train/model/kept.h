#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/cuda/device.h"
#include "runtime/cuda/pinned.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace periplus::train {

/// What layers keep from forward for backward: a set of tensors each, written in rising and read in falling order, in the memory of the
/// model's device. Offloaded, all sets but the last two move to page-locked host memory and come back, on a stream of their own
/// beside the layers between, and the device has room for two (algorithms.md 10.7).
class Kept {
 public:
  /// A tensor of a set: its shape behind the rows.
  struct Part {
    std::vector<std::int64_t> of_row;
    DType dtype;
  };
  Kept(std::size_t sets, std::vector<Part> parts, const Memory& memory, bool offload);
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;
  /// Waits for what still moves.
  ~Kept();

  /// Rows that host memory is taken for when so many are to be kept: up to an eighth more; for a power of two, exactly that. Page-locking
  /// is slow (under 2 GB/s), and the next rows, which documents fill differently, shall fit too.
  static std::int64_t rows_on_host(std::int64_t rows) noexcept;

  /// For batches of so many rows. What was kept is lost if that is more than ever before; then the host must have waited for all work.
  /// Waits for what still moves.
  /// Errors: DeviceError where memory is not to be had.
  void resize(std::int64_t rows);

  /// [rows or more, ...]: written between begin_write and end_write, still there until the next but one is written; and read, or changed,
  /// between begin_read and end_read.
  const Tensor& tensor(std::size_t set, std::size_t part) const { return on_device_[place_of(set)][part]; }
  void begin_write(std::size_t set, StreamView stream);
  /// will_be_read: before the set is written again.
  void end_write(std::size_t set, StreamView stream, bool will_be_read = true);
  void begin_read(std::size_t set, StreamView stream);
  void end_read(std::size_t set, StreamView stream);

 private:
  static constexpr std::size_t kPlaces = 2;

  Extents shape_of(const Part& part, std::int64_t rows) const;
  std::size_t bytes_of(const Part& part, std::int64_t rows) const;
  void resize_host(std::int64_t rows);
  bool moves(std::size_t set) const { return mover_ && set + kPlaces < sets_; }
  std::size_t place_of(std::size_t set) const { return mover_ ? set % kPlaces : set; }
  template <class Copy>
  void move(std::size_t set, StreamView stream, const Copy& copy);

  std::size_t sets_;
  std::vector<Part> parts_;
  Memory memory_;
  std::int64_t rows_ = 0, capacity_ = -1, host_capacity_ = -1;
  std::vector<std::vector<Tensor>> on_device_;            // by place and part
  std::vector<std::vector<cuda::PinnedBuffer>> on_host_;  // by set that moves, and part
  std::optional<Stream> mover_;
  std::array<cuda::Event, kPlaces> ready_, moved_;
};

}  // namespace periplus::train
