#include "parallel/planner/bucket.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::planner {
namespace {

constexpr std::int64_t kUnreachable = std::numeric_limits<std::int64_t>::max() / 2;

/// least[q][i]: padding of the first i lengths in q + 1 buckets.
class Cuts {
 public:
  Cuts(std::span<const std::int64_t> lengths, int buckets) : lengths_(lengths), sums_(lengths.size() + 1, 0) {
    for (std::size_t i = 0; i < lengths.size(); ++i) sums_[i + 1] = sums_[i] + lengths[i];
    const std::size_t ends = lengths.size() + 1;
    least_.assign(ends, kUnreachable);
    least_[0] = 0;
    cut_.assign(static_cast<std::size_t>(buckets), std::vector<int>(ends, 0));
    for (int q = 0; q < buckets; ++q) {
      before_ = least_;
      least_.assign(ends, kUnreachable);
      least_[0] = 0;
      fill(q, 1, static_cast<int>(lengths.size()), 0, static_cast<int>(lengths.size()) - 1);
    }
  }

  std::vector<int> ends() const {
    std::vector<int> ends;
    int end = static_cast<int>(lengths_.size());
    for (std::size_t q = cut_.size(); q-- > 0 && end > 0;) {
      ends.push_back(end);
      end = cut_[q][static_cast<std::size_t>(end)];
    }
    std::ranges::reverse(ends);
    return ends;
  }

 private:
  std::int64_t padding(int begin, int end) const {
    const auto b = static_cast<std::size_t>(begin), e = static_cast<std::size_t>(end);
    return lengths_[e - 1] * (end - begin) - (sums_[e] - sums_[b]);
  }

  /// Ends first..last, whose best cuts lie in [least_cut, most_cut].
  void fill(int q, int first, int last, int least_cut, int most_cut) {
    if (first > last) return;
    const int end = (first + last) / 2;
    std::int64_t best = kUnreachable;
    int best_cut = least_cut;
    for (int cut = least_cut; cut <= std::min(most_cut, end - 1); ++cut) {
      const std::int64_t before = before_[static_cast<std::size_t>(cut)];
      if (before == kUnreachable) continue;
      if (const std::int64_t sum = before + padding(cut, end); sum < best) best = sum, best_cut = cut;
    }
    least_[static_cast<std::size_t>(end)] = best;
    cut_[static_cast<std::size_t>(q)][static_cast<std::size_t>(end)] = best_cut;
    fill(q, first, end - 1, least_cut, best_cut);
    fill(q, end + 1, last, best_cut, most_cut);
  }

  std::span<const std::int64_t> lengths_;
  std::vector<std::int64_t> sums_, before_, least_;
  std::vector<std::vector<int>> cut_;
};

}  // namespace

std::vector<int> cut_into_buckets(std::span<const std::int64_t> lengths, int buckets) {
  if (buckets < 1) throw InvalidArgument(fmt::format("cut_into_buckets: {} buckets; there must be at least 1", buckets));
  if (!std::ranges::is_sorted(lengths) || (!lengths.empty() && lengths.front() < 0))
    throw InvalidArgument("cut_into_buckets: the lengths must be ascending and >= 0");
  if (lengths.empty()) return {};
  return Cuts(lengths, std::min(buckets, static_cast<int>(lengths.size()))).ends();
}

std::int64_t padding_of(std::span<const std::int64_t> lengths, std::span<const int> ends) {
  std::int64_t sum = 0;
  int begin = 0;
  for (const int end : ends) {
    for (int i = begin; i < end; ++i) sum += lengths[static_cast<std::size_t>(end) - 1] - lengths[static_cast<std::size_t>(i)];
    begin = end;
  }
  return sum;
}

}  // namespace periplus::planner
