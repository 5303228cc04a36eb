// Bands on units of 32 query rows x 32 keys. Included by level_<unit>.cpp after a unit.
//
// A unit is skipped, computed as it is, or computed and then masked. Most are one of the first two: only units that an edge
// of a band crosses pay for their mask. A unit may be crossed by several bands (documents shorter than 32 rows); a mask is
// one word for each key, whose bits are the query rows that may see it, and bands are or-ed into it.
#pragma once

#include "kernels/cpu/bf16/kernels.h"
#include "kernels/cpu/bf16/softmax.h"

namespace periplus::kernels::cpu {
namespace {

/// Where a unit lies in the problem.
struct UnitPlace {
  std::int64_t q0, q1;  ///< Query rows [q0, q1), at most 32.
  std::int64_t k0, k1;  ///< Keys, likewise.
};

/// The bits of rows [begin, end) out of 32.
inline std::uint32_t row_bits(std::int64_t begin, std::int64_t end) {
  begin = larger(begin, 0);
  end = smaller(end, 32);
  if (begin >= end) return 0;
  return static_cast<std::uint32_t>(((std::uint64_t{1} << end) - 1) & ~((std::uint64_t{1} << begin) - 1));
}

/// Rows below `end`, lane by lane.
inline Words rows_below(Ints end) {
  const Ints some = end < 1 ? Ints{} + 1 : end > 32 ? Ints{} + 32 : end;
  return end > 0 ? ~Words{} >> Words(32 - some) : Words{};
}

/// Of a unit: bit r of word k says whether query row r may see key k.
struct Visible {
  std::uint32_t rows[bf16::kUnit];
};
inline Visible visible_pairs(const bf16::TileBands& tile, const UnitPlace& at) {
  // Farther away is as good as anywhere, so that numbers fit a lane.
  const auto near = [](std::int64_t n) { return static_cast<std::int32_t>(larger(-64, smaller(n, 64))); };
  Visible visible;
  for (std::int32_t first = 0; first < bf16::kUnit; first += kLanes) {
    const Ints key = lane_numbers() + first;
    Words bits = {};
    for (std::int64_t b = 0; b < tile.count; ++b) {
      const Band& band = tile.bands[b];
      const Ints in_band = (key >= near(band.k0 - at.k0)) & (key < near(smaller(band.k1, at.k1) - at.k0));
      const Ints first_row = key + near(at.k0 - band.hi - at.q0), end = key + near(at.k0 - band.lo + 1 - at.q0);
      bits |= Words(in_band) & rows_below(end) & ~rows_below(first_row) & row_bits(band.q0 - at.q0, band.q1 - at.q0);
    }
    __builtin_memcpy(visible.rows + first, &bits, sizeof bits);
  }
  return visible;
}

/// fn(k, rows) for each key of `keys` that some of the rows [row, row + 32) may see; `rows` are the bits of those.
template <class Fn>
void for_each_seen(const bf16::TileBands& tile, std::int64_t row, KeyRange keys, const Fn& fn) {
  for (std::int64_t first = keys.begin; first < keys.end; first += bf16::kUnit) {
    const UnitPlace at{row, row + bf16::kUnit, first, smaller(first + bf16::kUnit, keys.end)};
    const Visible visible = visible_pairs(tile, at);
    for (std::int64_t k = at.k0; k < at.k1; ++k) {
      if (visible.rows[k - at.k0] != 0) fn(k, visible.rows[k - at.k0]);
    }
  }
}

/// Whether one band allows every pair of the unit.
inline bool wholly_allowed(const bf16::TileBands& tile, const UnitPlace& at) {
  if (at.k1 - at.k0 < bf16::kUnit) return false;  // lanes past the last key must be hidden
  for (std::int64_t b = 0; b < tile.count; ++b) {
    const Band& band = tile.bands[b];
    if (band.q0 <= at.q0 && band.q1 >= at.q1 && band.k0 <= at.k0 && band.k1 >= at.k1 && at.k0 - (at.q1 - 1) >= band.lo &&
        at.k1 - 1 - at.q0 <= band.hi) {
      return true;
    }
  }
  return false;
}

/// Hides the pairs that no band allows.
inline void hide(const bf16::TileBands& tile, const UnitPlace& at, float* scores) {
  const Vec hidden = splat(-kInfinity);
  const Visible visible = visible_pairs(tile, at);
  for (std::int64_t key = 0; key < bf16::kUnit; ++key) {
    for (std::int64_t half = 0; half < 2; ++half) {
      float* row = score_row(scores, half, key);
      store(row, Unit::keep(load(row), visible.rows[key] >> (16 * half), hidden));
    }
  }
}

/// The keys of [k0, k1) that any row of the tile may see lie in the returned range.
inline KeyRange keys_seen(const bf16::TileBands& tile, std::int64_t k0, std::int64_t k1) {
  KeyRange range{k1, k0};
  for (std::int64_t b = 0; b < tile.count; ++b) {
    range.begin = smaller(range.begin, larger(k0, tile.bands[b].k0));
    range.end = larger(range.end, smaller(k1, tile.bands[b].k1));
  }
  return range;
}

}  // namespace
}  // namespace periplus::kernels::cpu
