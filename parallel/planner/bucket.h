#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace periplus::planner {

/// Cuts lengths, ascending, into at most `buckets` runs such that rounding each up to the longest of its run adds the fewest
/// tokens. Returns the ends of the runs: the last is lengths.size().
///
/// Errors   InvalidArgument for buckets < 1, lengths that are not ascending or below 0.
/// Cost     O(buckets x n log n) by divide and conquer: the padding satisfies the quadrangle inequality, so that the best
///          cut before i never moves left as i grows.
/// Source   FlexSP (arXiv 2412.01523) poses the problem, with an O(buckets x n^2) program.
std::vector<int> cut_into_buckets(std::span<const std::int64_t> lengths, int buckets);

/// Tokens that such rounding adds.
std::int64_t padding_of(std::span<const std::int64_t> lengths, std::span<const int> ends);

}  // namespace periplus::planner
