#include "launch/bench/documents.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "parallel/train/random.h"

namespace periplus::launch::bench {
namespace {

struct Quantile {
  double probability, tokens;
};
// The shortest length is not published; documents below the median hold few tokens, so it matters little.
constexpr std::array<Quantile, 9> kQuantiles = {
    {{0, 16}, {0.5, 347}, {0.75, 862}, {0.9, 2112}, {0.95, 3721}, {0.99, 10921}, {0.999, 37367}, {0.9999, 101537}, {1, 1.82e6}}};

struct Row {
  std::vector<std::int64_t> lengths;
  std::int64_t free = 0;
};

}  // namespace

std::int64_t wikipedia_length(std::mt19937_64& random, std::int64_t longest) {
  const double probability = train::uniform(random);
  const auto above = std::ranges::find_if(kQuantiles.begin() + 1, kQuantiles.end() - 1,
                                          [&](const Quantile& quantile) { return probability < quantile.probability; });
  const Quantile &low = *(above - 1), &high = *above;
  const double share = (probability - low.probability) / (high.probability - low.probability);
  const double tokens = low.tokens * std::pow(high.tokens / low.tokens, share);
  return std::min<std::int64_t>(std::llround(tokens), longest);
}

std::vector<std::int64_t> wikipedia_row(std::uint64_t seed, std::int64_t tokens) {
  constexpr int kDocuments = 512;
  std::mt19937_64 random(seed);
  std::vector<Row> rows;
  for (int i = 0; i < kDocuments; ++i) {
    const std::int64_t length = wikipedia_length(random, tokens);
    Row* best = nullptr;
    for (Row& row : rows) {
      if (row.free >= length && (best == nullptr || row.free < best->free)) best = &row;
    }
    if (best == nullptr) best = &rows.emplace_back(Row{{}, tokens});
    best->lengths.push_back(length);
    best->free -= length;
  }
  Row& first = rows.front();
  if (first.free > 0) first.lengths.push_back(first.free);
  return first.lengths;
}

std::vector<Band> document_bands(const std::vector<std::int64_t>& lengths) {
  std::vector<Band> bands;
  std::int64_t begin = 0;
  for (const std::int64_t length : lengths) {
    bands.push_back({begin, begin + length, begin, begin + length, -kUnbounded, 0});
    begin += length;
  }
  return bands;
}

}  // namespace periplus::launch::bench
