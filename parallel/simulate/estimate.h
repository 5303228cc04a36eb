#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/simulate/iteration.h"

namespace periplus::simulate {

struct EstimateOptions {
  std::int64_t tokens = 0;  ///< Of a sequence.
  int devices = 0;          ///< 0: all of the machine.
  int micro_batches = 1;
};

/// A way to train that fits, and what it takes.
struct Candidate {
  Training training;
  Iteration iteration;
};

struct Estimate {
  std::vector<Candidate> candidates;  ///< By falling tokens/s; empty: no way fits.
  std::int64_t longest = 0;           ///< Tokens of a sequence, by the ring over all devices, that fit in device memory.
  std::int64_t longest_on_host = 0;   ///< The same with activations and optimizer on the host; 0: the machine's file knows no host.
  double host_bytes = 0;              ///< That it takes of the host for each device; whether the host has them is not known.
};

/// How fast our trainer trains a model on a machine with sequences of a length: which strategy, over how many ranks, what is computed again
/// and what ZeRO splits. Of the degrees that fit, powers of two and all devices, up to kMostContext, the least and the next two doublings
/// are simulated, with each strategy and the least recomputation and ZeRO stage that fit; the other devices are replicas. Not
/// counted: tiles of rows, some 2 GB of a device for a model of 8 B parameters.
///
/// Errors   InvalidArgument as simulate_iteration.
/// Cost     Some ten simulated iterations: 1 s for 64 devices.
Estimate estimate(const Shape& shape, const Machine& machine, const EstimateOptions& options);

/// The most tokens of a sequence that fit, all else as given: up to 2^40. `workspace`: bytes of attention's plans for each token
/// of a rank.
std::int64_t longest_that_fits(const Shape& shape, const Machine& machine, Training training, double workspace);

}  // namespace periplus::simulate
