#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace periplus::planner {

/// Cuts lengths, in the order given, into at most `chunks` runs whose largest sum is least. Returns the ends of the runs.
/// Cost: O(n log(sum)). Source: FlexSP (arXiv 2412.01523), Eq. 24, there a dynamic program.
std::vector<int> cut_into_chunks(std::span<const std::int64_t> lengths, int chunks);

}  // namespace periplus::planner
