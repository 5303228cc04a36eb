#include "parallel/planner/chunk.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::planner {
namespace {

std::vector<int> ends_of_runs(std::span<const std::int64_t> lengths, std::int64_t largest) {
  std::vector<int> ends;
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    if (sum > largest - lengths[i]) ends.push_back(static_cast<int>(i)), sum = 0;
    sum += lengths[i];
  }
  ends.push_back(static_cast<int>(lengths.size()));
  return ends;
}

}  // namespace

std::vector<int> cut_into_chunks(std::span<const std::int64_t> lengths, int chunks) {
  if (chunks < 1) throw InvalidArgument(fmt::format("cut_into_chunks: {} chunks; there must be at least 1", chunks));
  if (lengths.empty()) return {};
  std::int64_t low = std::ranges::max(lengths), high = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (static_cast<int>(ends_of_runs(lengths, middle).size()) <= chunks) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return ends_of_runs(lengths, low);
}

}  // namespace periplus::planner
