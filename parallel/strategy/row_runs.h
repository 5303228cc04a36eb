#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/mask.h"

namespace periplus::strategy {

/// Rows of one rank: rising, apart from each other.
using RowRuns = std::vector<RowRange>;

std::int64_t rows_of(std::span<const RowRange> runs);
/// The key rows of the bands, and perhaps some between them: few runs, for each is a message.
RowRuns rows_needed(std::span<const Band> bands);
/// Appends the bands on keys that lie one after another as the runs say, `first` rows further on.
void append_compacted(std::span<const Band> bands, std::span<const RowRange> runs, std::int64_t first, std::vector<Band>& to);

}  // namespace periplus::strategy
