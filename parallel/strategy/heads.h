#pragma once

#include <algorithm>
#include <vector>

namespace periplus::strategy {

/// Query heads that one attend step can take together with the KV heads they use: whole groups of one KV head each, or
/// heads of a single KV head. Counted from the first heads of the views at hand.
struct HeadPart {
  int q_head = 0, q_heads = 0;
  int kv_head = 0, kv_heads = 0;
  friend bool operator==(const HeadPart&, const HeadPart&) = default;
};

/// Consecutive query heads [first, first + count) of a problem with `group` query heads to a KV head, and the KV heads
/// they use: query head h uses KV head h / group (algorithms.md 1.6).
struct HeadRange {
  int first = 0, count = 0, group = 1;

  int kv_first() const noexcept { return first / group; }
  int kv_count() const noexcept { return count == 0 ? 0 : (first + count - 1) / group - kv_first() + 1; }

  /// The share of member `index` of `members` in `q_heads` query heads: sizes differ by at most one.
  static HeadRange share(int q_heads, int group, int index, int members) noexcept {
    const int begin = static_cast<int>(static_cast<long long>(q_heads) * index / members);
    const int end = static_cast<int>(static_cast<long long>(q_heads) * (index + 1) / members);
    return {begin, end - begin, group};
  }

  /// Attend steps for the KV heads [kv_begin, kv_begin + kv_number) of this range (counted from kv_first()): one for all
  /// heads whose group is whole, one each for a KV head whose group is cut off at an end.
  std::vector<HeadPart> parts(int kv_begin, int kv_number) const {
    std::vector<HeadPart> result;
    bool last_whole = false;
    for (int kv = kv_begin; kv < kv_begin + kv_number; ++kv) {
      const int begin = std::max(first, (kv_first() + kv) * group), end = std::min(first + count, (kv_first() + kv + 1) * group);
      const bool whole = end - begin == group;
      if (whole && last_whole) {
        result.back().q_heads += group, ++result.back().kv_heads;
      } else if (begin < end) {
        result.push_back({begin - first, end - begin, kv, 1});
      }
      last_whole = whole;
    }
    return result;
  }
  std::vector<HeadPart> parts() const { return parts(0, kv_count()); }
};

}  // namespace periplus::strategy
