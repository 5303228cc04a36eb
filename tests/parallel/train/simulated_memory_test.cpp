// The simulator's count of memory against what the trainer's ranks hold.
#include <gtest/gtest.h>

#include "parallel/train/planner_costs.h"
#include "tests/parallel/train/planned_runs.h"
#include "tests/parallel/train/scenario.h"

namespace periplus::train {
namespace {

constexpr std::int64_t kRows = 2048;

Config config_of(const TemporaryFolder& folder, const std::string& recompute, std::int64_t stage) {
  Config config = tiny_config(folder.path());
  config.model = {.layers = 6, .hidden = 128, .heads = 2, .kv_heads = 1, .head_size = 64, .ffn = 384, .vocabulary = 256};
  config.data.context = kRows;
  config.parallel.zero_stage = stage;
  config.run.dtype = "bf16", config.run.recompute = recompute, config.run.steps = 1;
  return config;
}

double bytes_held(const Config& config, int ranks) {
  return static_cast<double>(run_training(config, ranks).steps.front().peak_memory_bytes);
}

double bytes_simulated(const Config& config, int ranks) {
  const simulate::Machine machine = machine_for(config, DType::bf16, ranks, 1).simulated;
  const simulate::Shape shape = simulated_shape(config.model, DType::bf16);
  return simulate::simulate_iteration(shape, machine, simulated_training(config, ranks, {kRows})).memory.total();
}

TEST(SimulatedMemory, IsWhatARankHolds) {
  const double tiles = 1024 * (12.0 * 128 + 8.0 * 384);  // temporaries of the feed-forward part, which the simulator leaves out
  for (const int ranks : {1, 2, 3}) {
    for (const std::string recompute : {"but_attention", "but_hidden"}) {
      double held_by_first = 0, simulated_of_first = 0;
      for (const std::int64_t stage : {1, 2, 3}) {
        SCOPED_TRACE(testing::Message() << ranks << " ranks, " << recompute << ", stage " << stage);
        const TemporaryFolder folder;
        write_text(folder / "corpus/a.txt", seeded_text(kRows, 1));
        const Config config = config_of(folder, recompute, stage);
        const double held = bytes_held(config, ranks), simulated = bytes_simulated(config, ranks);
        EXPECT_GT(simulated + tiles, held * 0.98);
        EXPECT_LT(simulated, held * 1.02);
        if (stage == 1) held_by_first = held, simulated_of_first = simulated;
        EXPECT_NEAR(simulated_of_first - simulated, held_by_first - held, 0.005 * held) << "what the stage spares";
      }
    }
  }
}

}  // namespace
}  // namespace periplus::train
