#include "parallel/plan/fingerprint.h"

#include <algorithm>
#include <random>
#include <utility>

#include "kernels/band.h"
#include "runtime/error.h"

namespace periplus::plan {

namespace field {

std::uint64_t power(std::uint64_t base, std::uint64_t exponent) noexcept {
  std::uint64_t result = 1;
  for (; exponent > 0; exponent >>= 1, base = multiply(base, base)) {
    if (exponent & 1) result = multiply(result, base);
  }
  return result;
}

std::uint64_t inverse(std::uint64_t a) noexcept { return power(a, kPrime - 2); }

}  // namespace field

namespace {

// Nearly always by 1.
std::int64_t ceil_divide(std::int64_t a, std::int64_t b) { return b == 1 ? a : a > 0 ? (a + b - 1) / b : -(-a / b); }
std::int64_t floor_divide(std::int64_t a, std::int64_t b) { return -ceil_divide(-a, b); }

std::vector<std::uint64_t> powers_of(std::uint64_t base, std::int64_t count) {
  std::vector<std::uint64_t> powers(static_cast<std::size_t>(count) + 1, 1);
  for (std::size_t i = 1; i < powers.size(); ++i) powers[i] = field::multiply(powers[i - 1], base);
  return powers;
}

}  // namespace

Fingerprint::Fingerprint(std::int64_t tokens, std::int64_t heads, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto draw = [&] { return 2 + random() % (field::kPrime - 3); };
  a_.powers = powers_of(draw(), std::max<std::int64_t>(tokens, 1));
  b_.powers = powers_of(draw(), std::max<std::int64_t>(tokens, 1));
  const std::vector<std::uint64_t> c = powers_of(draw(), heads);
  head_sums_.assign(1, 0);
  for (std::int64_t h = 0; h < heads; ++h) head_sums_.push_back(field::add(head_sums_.back(), c[static_cast<std::size_t>(h)]));
}

std::uint64_t Fingerprint::heads(std::int64_t head0, std::int64_t count) const {
  return field::subtract(head_sums_.at(static_cast<std::size_t>(head0 + count)), head_sums_.at(static_cast<std::size_t>(head0)));
}

std::uint64_t Fingerprint::inverse_minus_one(std::uint64_t value) const {
  for (const auto& [known, inverse] : inverses_) {
    if (known == value) return inverse;
  }
  inverses_.emplace_back(value, field::inverse(field::subtract(value, 1)));
  return inverses_.back().second;
}

std::uint64_t Fingerprint::band(const StridedRows& queries, const StridedRows& keys, std::int64_t lo, std::int64_t hi) const {
  if (queries.count <= 0 || keys.count <= 0 || lo > hi) return 0;
  const std::int64_t shift = queries.first - keys.first;
  // In steps of the key stride: ceil((lo + shift + t qs)/ks) <= u <= floor((hi + shift + t qs)/ks).
  const auto in_steps = [](std::int64_t bound, std::int64_t by, std::int64_t stride, bool up) {
    if (bound <= -kUnbounded / 2 || bound >= kUnbounded / 2) return bound;
    return up ? ceil_divide(bound + by, stride) : floor_divide(bound + by, stride);
  };
  if (queries.stride == keys.stride || queries.stride % keys.stride == 0) {
    const std::int64_t slope = queries.stride == keys.stride ? 1 : queries.stride / keys.stride;
    return staircase(a_, queries, b_, keys, slope, in_steps(lo, shift, keys.stride, true), in_steps(hi, shift, keys.stride, false));
  }
  if (queries.stride != 1) throw InternalError("fingerprint: strides of queries and keys do not divide");
  // The transposed staircase: u outside, t inside, -hi <= query - key <= -lo.
  return staircase(b_, keys, a_, queries, keys.stride, in_steps(-hi, -shift, 1, true), in_steps(-lo, -shift, 1, false));
}

/// sum over the rows of X^row.
std::uint64_t Fingerprint::sum_of(const Axis& axis, const StridedRows& rows) const {
  const std::uint64_t ratio = axis.power(rows.stride), last = axis.power(rows.first + (rows.count - 1) * rows.stride);
  return field::multiply(field::subtract(field::multiply(last, ratio), axis.power(rows.first)), inverse_minus_one(ratio));
}

/// sum over t of X^t sum over u in [max(0, lo + slope t), min(n, hi + 1 + slope t)) of Y^u, each inner sum telescoped to
/// the difference of its two ends.
std::uint64_t Fingerprint::staircase(const Axis& outer, const StridedRows& rows, const Axis& inner, const StridedRows& columns,
                                     std::int64_t slope, std::int64_t lo, std::int64_t hi) const {
  const std::int64_t t0 = std::max<std::int64_t>(0, hi >= kUnbounded / 2 ? 0 : ceil_divide(-hi, slope));
  const std::int64_t t1 = std::min(rows.count, lo <= -kUnbounded / 2 ? rows.count : ceil_divide(columns.count - lo, slope));
  if (t0 >= t1) return 0;
  // Most bands are rectangles: each of their rows meets all columns.
  if (lo + slope * (t1 - 1) <= 0 && hi + 1 + slope * t0 >= columns.count)
    return field::multiply(sum_of(outer, {rows.first + t0 * rows.stride, t1 - t0, rows.stride}), sum_of(inner, columns));
  const std::uint64_t upper = edge(outer, rows, inner, columns, slope, t0, t1, hi + 1, -kUnbounded, columns.count);
  const std::uint64_t lower = edge(outer, rows, inner, columns, slope, t0, t1, lo, 0, kUnbounded);
  const std::uint64_t step = inner.power(columns.stride);
  return field::multiply(field::subtract(upper, lower), inverse_minus_one(step));
}

/// sum over t in [t0, t1) of X^t Y^min(max(offset + slope t, clamp_low), clamp_high); only one of the clamps is finite.
std::uint64_t Fingerprint::edge(const Axis& outer, const StridedRows& rows, const Axis& inner, const StridedRows& columns,
                                std::int64_t slope, std::int64_t t0, std::int64_t t1, std::int64_t offset, std::int64_t clamp_low,
                                std::int64_t clamp_high) const {
  const auto x = [&](std::int64_t t) { return outer.power(rows.first + t * rows.stride); };
  const auto y = [&](std::int64_t u) { return inner.power(columns.first + u * columns.stride); };
  const auto geometric = [&](std::uint64_t ratio, std::uint64_t ratio_to_n) {
    return field::multiply(field::subtract(ratio_to_n, 1), inverse_minus_one(ratio));
  };
  const auto flat = [&](std::int64_t begin, std::int64_t end, std::int64_t u) -> std::uint64_t {
    if (begin >= end) return 0;
    return field::multiply(field::multiply(x(begin), y(u)), geometric(outer.power(rows.stride), outer.power((end - begin) * rows.stride)));
  };
  const auto sloped = [&](std::int64_t begin, std::int64_t end) -> std::uint64_t {
    if (begin >= end) return 0;
    const std::int64_t rise = slope * columns.stride, n = end - begin;
    const std::uint64_t ratio = field::multiply(outer.power(rows.stride), inner.power(rise));
    const std::uint64_t ratio_to_n = field::multiply(outer.power(n * rows.stride), inner.power(n * rise));
    return field::multiply(field::multiply(x(begin), y(offset + slope * begin)), geometric(ratio, ratio_to_n));
  };
  const auto reach = [&](std::int64_t u) {  // first t with offset + slope t >= u
    if (offset >= kUnbounded / 2) return t0;
    return offset <= -kUnbounded / 2 ? t1 : std::clamp(ceil_divide(u - offset, slope), t0, t1);
  };
  if (clamp_low > -kUnbounded) {
    const std::int64_t turn = reach(clamp_low);
    return field::add(flat(t0, turn, clamp_low), sloped(turn, t1));
  }
  const std::int64_t turn = reach(clamp_high);
  return field::add(sloped(t0, turn), flat(turn, t1, clamp_high));
}

}  // namespace periplus::plan
