#include "kernels/band_tiles.h"

#include <algorithm>

namespace periplus::kernels {
namespace {

Band cut(Band band, BandTiles::Axis axis, std::int64_t begin, std::int64_t end) noexcept {
  auto& first = axis == BandTiles::Axis::query ? band.q0 : band.k0;
  auto& last = axis == BandTiles::Axis::query ? band.q1 : band.k1;
  first = std::max(first, begin);
  last = std::min(last, end);
  return tighten(band);
}

std::vector<std::int64_t> even_cuts(std::int64_t rows, std::int64_t tile_rows) {
  std::vector<std::int64_t> cuts;
  for (std::int64_t at = 0; at < rows; at += tile_rows) cuts.push_back(at);
  cuts.push_back(rows);
  return cuts;
}

}  // namespace

Band tighten(Band band) noexcept {
  if (band.q0 >= band.q1 || band.k0 >= band.k1 || band.lo > band.hi) return {};
  band.lo = std::clamp(band.lo, -kUnbounded, kUnbounded);
  band.hi = std::clamp(band.hi, -kUnbounded, kUnbounded);
  band.q0 = std::max(band.q0, band.k0 - band.hi);
  band.q1 = std::min(band.q1, band.k1 - band.lo);
  if (band.q0 >= band.q1) return {};
  band.k0 = std::max(band.k0, band.q0 + band.lo);
  band.k1 = std::min(band.k1, band.q1 + band.hi);
  band.lo = std::max(band.lo, band.k0 - (band.q1 - 1));
  band.hi = std::min(band.hi, band.k1 - 1 - band.q0);
  return band;
}

BandTiles::BandTiles(std::span<const Band> bands, Axis axis, std::int64_t rows, std::int64_t tile_rows)
    : BandTiles(bands, axis, even_cuts(rows, tile_rows)) {}

BandTiles::BandTiles(std::span<const Band> bands, Axis axis, std::span<const std::int64_t> cuts) : first_(cuts.size(), 0) {
  const auto for_each_piece = [&](auto&& visit) {
    for (const Band& given : bands) {
      const Band band = tighten(given);
      if (band.q0 >= band.q1) continue;
      const std::int64_t begin = axis == Axis::query ? band.q0 : band.k0;
      const std::int64_t end = axis == Axis::query ? band.q1 : band.k1;
      auto tile = static_cast<std::size_t>(std::ranges::upper_bound(cuts, begin) - cuts.begin()) - 1;
      for (; tile + 1 < cuts.size() && cuts[tile] < end; ++tile) {
        const Band piece = cut(band, axis, cuts[tile], cuts[tile + 1]);
        if (piece.q0 < piece.q1) visit(tile, piece);
      }
    }
  };
  for_each_piece([&](std::size_t tile, const Band& piece) {
    ++first_[tile + 1];
    area_ += periplus::area(piece);
  });
  for (std::size_t tile = 1; tile < first_.size(); ++tile) first_[tile] += first_[tile - 1];
  bands_.resize(first_.back());
  std::vector<std::size_t> next(first_.begin(), first_.end() - 1);
  for_each_piece([&](std::size_t tile, const Band& piece) { bands_[next[tile]++] = piece; });
}

}  // namespace periplus::kernels
