#pragma once

#include <cstdint>
#include <string>

#include "parallel/train/config.h"
#include "parallel/train/data/corpus.h"
#include "runtime/comm/communicator.h"

namespace periplus::train {

// What ranks of a run do before its first step. With a communicator: collective, and fails on all ranks if it fails on any.

/// check(config), which must be the same everywhere. Needs no data, so that a mistake is reported before a corpus is walked.
void check_on_all_ranks(const Config& config, bool resume, const comm::Communicator& communicator);

/// open_corpora(config), which must find the same files everywhere.
Corpora open_on_all_ranks(const Config& config, const comm::Communicator& communicator);

/// sampled_entropy() of rank 0.
Entropy entropy_on_all_ranks(const Corpus& corpus, std::uint64_t seed, const comm::Communicator& communicator);

/// As in "SLLLS with gla gates".
std::string description_of_layers(const ModelConfig& model);

}  // namespace periplus::train
