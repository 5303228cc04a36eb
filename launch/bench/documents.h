#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/band.h"

/// Document lengths as in Wikipedia, and their packing into rows of fixed length.
namespace periplus::launch::bench {

/// A length by the published quantiles (p50 347, p75 862, p90 2112, p95 3721, p99 10921, p99.9 37367, p99.99 101537),
/// log-linear between them, from 16 tokens up and at most `longest`.
std::int64_t wikipedia_length(std::mt19937_64& random, std::int64_t longest);

/// Documents of one row of `tokens` tokens: lengths are drawn and each goes to the open row it fills best; this is the row
/// opened first. What stays free is one more document, so the lengths sum to `tokens`.
std::vector<std::int64_t> wikipedia_row(std::uint64_t seed, std::int64_t tokens);

/// Causal attention within each document.
std::vector<Band> document_bands(const std::vector<std::int64_t>& lengths);

}  // namespace periplus::launch::bench
