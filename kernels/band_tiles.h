#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/band.h"

/// Bands cut along query rows or keys into tiles, so that a kernel finds the bands of a tile without searching.
namespace periplus::kernels {

/// The same pairs with rows, keys and bounds made as tight as the others allow: every row has a key, every key may be
/// reached, and lo, hi are finite. A band without pairs comes back with q0 == q1.
Band tighten(Band band) noexcept;

class BandTiles {
 public:
  enum class Axis { query, key };
  /// `rows` is the extent of the axis. Within a tile, bands keep their order.
  BandTiles(std::span<const Band> bands, Axis axis, std::int64_t rows, std::int64_t tile_rows);
  /// Tile i begins at cuts[i] and ends at cuts[i + 1]; the last cut is the extent of the axis.
  BandTiles(std::span<const Band> bands, Axis axis, std::span<const std::int64_t> cuts);

  std::int64_t tiles() const noexcept { return static_cast<std::int64_t>(first_.size()) - 1; }
  /// Tightened bands that lie inside the tile along the axis.
  std::span<const Band> of(std::int64_t tile) const noexcept {
    const auto at = static_cast<std::size_t>(tile);
    return {bands_.data() + first_[at], first_[at + 1] - first_[at]};
  }
  /// Allowed pairs of all bands.
  std::int64_t area() const noexcept { return area_; }

 private:
  std::vector<std::size_t> first_;
  std::vector<Band> bands_;
  std::int64_t area_ = 0;
};

}  // namespace periplus::kernels
