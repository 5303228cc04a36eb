#include "kernels/cuda/tables.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

#include "kernels/cuda/staging.h"
#include "kernels/cuda/stream_cache.h"
#include "runtime/memory.h"

namespace periplus::kernels::cuda {
namespace {

struct Key {
  std::vector<Band> bands;
  RowAxis axis;
  std::int64_t query_rows, key_rows, tile_rows, tile_columns, heads, row_heads;
  bool fixed_columns, cut_rows;
  friend bool operator==(const Key&, const Key&) = default;
};

struct Table {
  Key key;
  Buffer memory;
  ResidentSchedule schedule;
  std::size_t bytes() const { return memory.bytes(); }
};

std::uint64_t hash_of(const Key& key) {
  std::uint64_t hash = 0xcbf29ce484222325;
  const auto mix = [&](std::uint64_t value) { hash = (hash ^ value) * 0x9e3779b97f4a7c15 + (hash >> 29); };
  for (const Band& band : key.bands) {
    for (const std::int64_t value : {band.q0, band.q1, band.k0, band.k1, band.lo, band.hi}) mix(static_cast<std::uint64_t>(value));
  }
  for (const std::int64_t value : {key.query_rows, key.key_rows, key.tile_rows, key.heads, key.row_heads})
    mix(static_cast<std::uint64_t>(value));
  return hash;
}

constexpr std::size_t kAlignment = 256;

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

Table make_table(const Key& key, StreamView stream) {
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
  Buffer memory(image.size(), Memory(stream.device()));
  copy_from_host(memory.data(), image.data(), image.size(), static_cast<cudaStream_t>(stream.native()));
  const auto at = [&]<class T>(std::size_t offset, T*) { return reinterpret_cast<T*>(memory.data() + offset); };
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
  return {key, std::move(memory), resident};
}

}  // namespace

ResidentSchedule resident_schedule(std::span<const Band> bands, RowAxis axis, std::int64_t query_rows, std::int64_t key_rows,
                                   const ScheduleTiles& tiles, std::int64_t heads, StreamView stream, std::int64_t row_heads) {
  // Never destroyed: at exit the driver may be gone before it.
  static StreamCache<Table>& tables = *new StreamCache<Table>;
  const Key key{{bands.begin(), bands.end()}, axis,          query_rows, key_rows, tiles.rows, tiles.columns, heads, row_heads,
                tiles.fixed_columns,          tiles.cut_rows};
  const auto table = tables.find(
      stream, hash_of(key), [&](const Table& kept) { return kept.key == key; }, [&] { return make_table(key, stream); });
  return table->schedule;
}

}  // namespace periplus::kernels::cuda
