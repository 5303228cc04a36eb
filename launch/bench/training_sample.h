#pragma once

#include <cstdint>
#include <vector>

#include "launch/options.h"
#include "parallel/train/trainer.h"
#include "runtime/comm/communicator.h"

namespace periplus::launch::bench {

struct TrainingSample {
  std::vector<double> tokens_per_second;  ///< of every step but the first
  double first_loss = 0;
  std::int64_t peak_bytes = 0, state_bytes = 0;
};

/// Refuses options of training that were typed and that a few steps, after which everything is removed, have no use for.
void refuse_options_of_whole_runs(const OptionTable& table);

/// A few training steps in a folder that is removed afterwards. Collective.
TrainingSample train_briefly(const train::Config& config, const comm::Communicator& communicator);

}  // namespace periplus::launch::bench
