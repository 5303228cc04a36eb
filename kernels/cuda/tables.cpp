#include "kernels/cuda/tables.h"

#include <algorithm>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include <cuda_runtime.h>
#include <fmt/format.h>

#include "kernels/cuda/staging.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::kernels::cuda {
namespace {

struct Key {
  std::vector<Band> bands;
  RowAxis axis;
  std::int64_t query_rows, key_rows, tile_rows, tile_columns, heads, row_heads;
  bool fixed_columns, cut_rows;
  int device;
  void* stream;
  friend bool operator==(const Key&, const Key&) = default;
};

struct Entry {
  std::uint64_t hash;
  Key key;
  std::byte* memory;
  std::size_t bytes;
  ResidentSchedule schedule;
};

std::uint64_t hash_of(const Key& key) {
  std::uint64_t hash = 0xcbf29ce484222325;
  const auto mix = [&](std::uint64_t value) { hash = (hash ^ value) * 0x9e3779b97f4a7c15 + (hash >> 29); };
  for (const Band& band : key.bands) {
    for (const std::int64_t value : {band.q0, band.q1, band.k0, band.k1, band.lo, band.hi}) mix(static_cast<std::uint64_t>(value));
  }
  for (const std::int64_t value : {key.query_rows, key.key_rows, key.tile_rows, key.heads, key.row_heads})
    mix(static_cast<std::uint64_t>(value));
  mix(reinterpret_cast<std::uintptr_t>(key.stream));
  return hash;
}

constexpr std::size_t kAlignment = 256;
constexpr std::size_t kMostBytes = std::size_t{64} << 20;  // of a stream

/// Parts of one allocation, each aligned.
class Parts {
 public:
  std::size_t add(std::size_t bytes) {
    const std::size_t at = total_;
    total_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  }
  std::size_t total() const noexcept { return total_; }

 private:
  std::size_t total_ = 0;
};

Entry make_entry(const Key& key) {
  const ScheduleTiles tiles{key.tile_rows, key.tile_columns, key.fixed_columns, key.cut_rows};
  const Schedule schedule = make_schedule(key.bands, key.axis, key.query_rows, key.key_rows, tiles);
  const std::int64_t column_extent = key.axis == RowAxis::query ? key.key_rows : key.query_rows;
  const std::int64_t column_tiles = key.fixed_columns ? (column_extent + key.tile_columns - 1) / key.tile_columns : 0;
  Parts parts;
  const auto bytes_of = [](const auto& vector) { return vector.size() * sizeof(vector[0]); };
  const std::size_t rows = parts.add(bytes_of(schedule.rows)), columns = parts.add(bytes_of(schedule.columns)),
                    masks = parts.add(bytes_of(schedule.masks)), unreached = parts.add(bytes_of(schedule.unreached)),
                    counters = parts.add(2 * sizeof(std::int32_t)),
                    turns = parts.add(static_cast<std::size_t>(column_tiles * key.heads) * sizeof(std::int32_t)),
                    row_turns = parts.add(schedule.rows.size() * static_cast<std::size_t>(key.row_heads) * sizeof(std::int32_t));
  std::vector<std::byte> image(parts.total(), std::byte{0});
  const auto put = [&](std::size_t at, const auto& vector) {
    if (!vector.empty()) std::memcpy(image.data() + at, vector.data(), bytes_of(vector));
  };
  put(rows, schedule.rows);
  put(columns, schedule.columns);
  put(masks, schedule.masks);
  put(unreached, schedule.unreached);
  std::byte* const memory = periplus::cuda::allocate(key.device, image.size());
  if (memory == nullptr) {
    throw DeviceError(fmt::format("attention: cannot allocate {} bytes on cuda:{} for the schedule of {} bands", image.size(), key.device,
                                  key.bands.size()));
  }
  copy_from_host(memory, image.data(), image.size(), static_cast<cudaStream_t>(key.stream));
  const auto at = [&]<class T>(std::size_t offset, T*) { return reinterpret_cast<T*>(memory + offset); };
  std::int32_t longest = 0;
  for (const RowTile& row : schedule.rows) longest = std::max(longest, row.columns);
  const ResidentSchedule resident{at(rows, static_cast<const RowTile*>(nullptr)),
                                  at(columns, static_cast<const ColumnTile*>(nullptr)),
                                  at(masks, static_cast<const MaskBand*>(nullptr)),
                                  at(unreached, static_cast<const std::int32_t*>(nullptr)),
                                  static_cast<std::int32_t>(schedule.rows.size()),
                                  schedule.reached_rows,
                                  static_cast<std::int32_t>(schedule.unreached.size()),
                                  static_cast<std::int32_t>(column_tiles),
                                  longest,
                                  at(counters, static_cast<std::int32_t*>(nullptr)),
                                  at(turns, static_cast<std::int32_t*>(nullptr)),
                                  at(row_turns, static_cast<std::int32_t*>(nullptr))};
  return {hash_of(key), key, memory, image.size(), resident};
}

/// Kept until those of a stream take too much room; then all of the stream go. Those of others may be in other threads' hands.
class Tables {
 public:
  ResidentSchedule find(const Key& key) {
    const std::lock_guard lock(mutex_);
    const std::uint64_t hash = hash_of(key);
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->hash != hash || !(entry->key == key)) continue;
      entries_.splice(entries_.begin(), entries_, entry);
      return entry->schedule;
    }
    std::size_t& bytes = bytes_[{key.device, key.stream}];
    if (bytes > kMostBytes) {
      drop_all_of(key.device, key.stream);
      bytes = 0;
    }
    entries_.push_front(make_entry(key));
    bytes += entries_.front().bytes;
    return entries_.front().schedule;
  }

 private:
  void drop_all_of(int device, void* stream) {
    entries_.remove_if([&](const Entry& entry) {
      if (entry.key.device != device || entry.key.stream != stream) return false;
      periplus::cuda::release(device, entry.memory);
      return true;
    });
  }
  std::mutex mutex_;
  std::list<Entry> entries_;
  std::map<std::pair<int, void*>, std::size_t> bytes_;
};

}  // namespace

ResidentSchedule resident_schedule(std::span<const Band> bands, RowAxis axis, std::int64_t query_rows, std::int64_t key_rows,
                                   const ScheduleTiles& tiles, std::int64_t heads, StreamView stream, std::int64_t row_heads) {
  // Never destroyed: at exit the driver may be gone before it.
  static Tables& tables = *new Tables;
  return tables.find({{bands.begin(), bands.end()},
                      axis,
                      query_rows,
                      key_rows,
                      tiles.rows,
                      tiles.columns,
                      heads,
                      row_heads,
                      tiles.fixed_columns,
                      tiles.cut_rows,
                      stream.device().index,
                      stream.native()});
}

}  // namespace periplus::kernels::cuda
