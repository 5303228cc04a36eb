#include "parallel/mask.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus {
namespace {

// Nearly all strides are 1, and a 64-bit division costs as much as the rest of a band.
std::int64_t floor_divide(std::int64_t a, std::int64_t b) { return b == 1 ? a : a >= 0 ? a / b : -((-a + b - 1) / b); }
std::int64_t ceil_divide(std::int64_t a, std::int64_t b) { return -floor_divide(-a, b); }

/// Shrinks the rectangle to the pairs it allows; false if there are none.
bool tighten(Band& band) {
  band.q0 = std::max(band.q0, band.k0 - band.hi);
  band.q1 = std::min(band.q1, band.k1 - band.lo);
  if (band.q0 >= band.q1 || band.lo > band.hi) return false;
  band.k0 = std::max(band.k0, band.q0 + band.lo);
  band.k1 = std::min(band.k1, band.q1 + band.hi);
  return band.k0 < band.k1;
}

void push_tight(std::vector<Band>& bands, Band band) {
  if (tighten(band)) bands.push_back(band);
}

/// A global band seen from one query segment and one key segment whose strides agree, in local rows.
bool to_local(const Band& global, const Segment& q, const Segment& k, Band& local) {
  const std::int64_t stride = q.length > 1 ? q.stride : k.stride;
  const std::int64_t shift = k.global0 - q.global0;  // global k - q of the two first rows
  Band t;                                            // in rows of the segments
  t.lo = global.lo <= -kUnbounded ? -kUnbounded : ceil_divide(global.lo - shift, stride);
  t.hi = global.hi >= kUnbounded ? kUnbounded : floor_divide(global.hi - shift, stride);
  if (t.lo > t.hi) return false;  // a window narrower than the stride; cheap to see before the divisions below
  t.q0 = std::max<std::int64_t>(0, ceil_divide(global.q0 - q.global0, stride));
  t.q1 = std::min(q.length, ceil_divide(global.q1 - q.global0, stride));
  t.k0 = std::max<std::int64_t>(0, ceil_divide(global.k0 - k.global0, stride));
  t.k1 = std::min(k.length, ceil_divide(global.k1 - k.global0, stride));
  if (t.q0 >= t.q1 || t.k0 >= t.k1 || !tighten(t)) return false;
  local = moved(t, q.local0, k.local0);
  return true;
}

}  // namespace

Mask::Mask(const MaskSpec& spec, std::span<const std::int64_t> cu_seqlens)
    : spec_(spec), cu_seqlens_(cu_seqlens.begin(), cu_seqlens.end()) {
  if (spec.window_left < -1 || spec.window_right < -1 || spec.sink_tokens < 0) {
    throw InvalidArgument(fmt::format("mask: window {},{} and {} sink tokens; windows are >= 0 or -1 for unlimited, sink tokens >= 0",
                                      spec.window_left, spec.window_right, spec.sink_tokens));
  }
  // Windows wider than any sequence are unbounded; negating or adding them as they are could overflow.
  const auto bound = [](std::int64_t window) { return window < 0 ? kUnbounded : std::min(window, kUnbounded); };
  const std::int64_t lo = -bound(spec.window_left), right = bound(spec.window_right);
  const std::int64_t hi = spec.causal ? std::min<std::int64_t>(right, 0) : right;
  for (std::size_t d = 0; d + 1 < cu_seqlens.size(); ++d) {
    const std::int64_t a = cu_seqlens[d], b = cu_seqlens[d + 1];
    push_tight(bands_, {a, b, a, b, lo, hi});
    if (spec.sink_tokens > 0 && lo > -kUnbounded) {
      // Left of the window, so the two bands never share a pair.
      push_tight(bands_, {a, b, a, a + std::min(spec.sink_tokens, b - a), -kUnbounded, lo - 1});
    }
    if (spec.sink_tokens > 0 && !spec.causal && hi < kUnbounded) {
      push_tight(bands_, {a, b, a, a + std::min(spec.sink_tokens, b - a), hi + 1, kUnbounded});
    }
  }
  std::sort(bands_.begin(), bands_.end(), [](const Band& x, const Band& y) { return std::pair(x.q0, x.k0) < std::pair(y.q0, y.k0); });
  std::vector<std::int64_t> words;
  for (const Band& band : bands_) words.insert(words.end(), {band.q0, band.q1, band.k0, band.k1, band.lo, band.hi});
  digest_ = hash64({reinterpret_cast<const char*>(words.data()), words.size() * sizeof(std::int64_t)});
}

std::int64_t Mask::area() const noexcept {
  std::int64_t sum = 0;
  for (const Band& band : bands_) sum += periplus::area(band);
  return sum;
}

void append_bands_between(const Band& global, const Segment& q, const Segment& k, std::vector<Band>& bands) {
  Band local;
  if (q.stride == k.stride || q.length == 1 || k.length == 1) {
    if (to_local(global, q, k, local)) bands.push_back(local);
    return;
  }
  // Rows of unlike spacing do not meet in one band: a band per query row.
  for (std::int64_t t = 0; t < q.length; ++t) {
    const Segment row{q.rank, q.local0 + t, q.global0 + t * q.stride, 1, k.stride, q.document};
    if (to_local(global, row, k, local)) bands.push_back(local);
  }
}

void append_bands_between(const SequenceLayout& layout, const Mask& mask, int q_rank, int k_rank, std::vector<Band>& bands) {
  const std::span<const Segment> queries = layout.segments_by_global(q_rank), keys = layout.segments_by_global(k_rank);
  const std::span<const Band> global = mask.bands();
  std::size_t first_band = 0, first_key = 0;
  for (const Segment& q : queries) {
    // Bands and documents rise together, so neither cursor ever has to go back.
    while (first_band < global.size() && global[first_band].q1 <= q.global0) ++first_band;
    while (first_key < keys.size() && keys[first_key].document < q.document) ++first_key;
    for (std::size_t b = first_band; b < global.size() && global[b].q0 < q.global_end(); ++b) {
      if (global[b].q1 <= q.global0) continue;
      for (std::size_t k = first_key; k < keys.size() && keys[k].document == q.document; ++k) {
        // Most pairs end here: of a causal mask half of them, and what lies further behind does so too.
        if (keys[k].global0 - (q.global_end() - 1) > global[b].hi) break;
        if (keys[k].global0 < global[b].k1 && keys[k].global_end() > global[b].k0) append_bands_between(global[b], q, keys[k], bands);
      }
    }
  }
}

RowRange hull(const RowRange& a, const RowRange& b) noexcept {
  if (a.rows() == 0 || b.rows() == 0) return a.rows() == 0 ? b : a;
  return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

std::int64_t area_of_rank(const SequenceLayout& layout, const Mask& mask, int rank) {
  std::vector<Band> bands;
  for (int k_rank = 0; k_rank < layout.ranks(); ++k_rank) append_bands_between(layout, mask, rank, k_rank, bands);
  std::int64_t sum = 0;
  for (const Band& band : bands) sum += area(band);
  return sum;
}

}  // namespace periplus
