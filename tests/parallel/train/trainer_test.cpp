#include "parallel/train/trainer.h"

#include <cmath>
#include <map>
#include <sstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "parallel/strategy/strategy.h"
#include "parallel/train/metrics.h"
#include "parallel/train/shards.h"
#include "runtime/error.h"
#include "runtime/file.h"
#include "runtime/out_of_memory.h"
#include "tests/parallel/train/scenario.h"

namespace periplus::train {
namespace {

namespace fs = std::filesystem;

std::vector<nlohmann::json> metrics_of(const Config& config) {
  std::istringstream lines(read_file(fs::path(config.run.directory) / "metrics.jsonl", 1 << 20));
  std::vector<nlohmann::json> objects;
  for (std::string line; std::getline(lines, line);) objects.push_back(nlohmann::json::parse(line));
  return objects;
}

class Trainer : public testing::Test {
 protected:
  Trainer() { write_corpus(folder_ / "corpus"); }
  TemporaryFolder folder_;
};

TEST_F(Trainer, LearnsAndWritesOneMetricsLineForEveryStep) {
  Config config = tiny_config(folder_.path());
  config.run.steps = 60;
  config.optimizer.learning_rate = 2e-2;
  const Outcome outcome = run_training(config, 2);
  ASSERT_EQ(outcome.steps.size(), 60u);
  EXPECT_EQ(outcome.result.last_step, 60);
  EXPECT_FALSE(outcome.result.stopped_by_request);
  EXPECT_NEAR(outcome.steps.front().loss, std::log(256), 0.3);
  EXPECT_LT(outcome.result.mean_last_losses, outcome.result.unigram_entropy);
  double last_ten = 0;
  for (std::size_t i = 50; i < 60; ++i) last_ten += outcome.steps[i].loss / 10;
  EXPECT_NEAR(outcome.result.mean_last_losses, last_ten, 1e-12);

  const std::vector<nlohmann::json> lines = metrics_of(config);
  ASSERT_EQ(lines.size(), 60u);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    for (const char* key : {"step", "loss", "grad_norm", "tokens", "tokens_per_second", "step_seconds", "flops_per_second", "mfu",
                            "exposed_comm_seconds", "peak_memory_bytes", "ranks"}) {
      EXPECT_TRUE(lines[i].contains(key)) << key;
    }
    EXPECT_EQ(lines[i]["step"], i + 1);
    EXPECT_EQ(lines[i]["loss"].get<double>(), outcome.steps[i].loss);
    EXPECT_EQ(lines[i]["ranks"], 2);
    EXPECT_GT(lines[i]["peak_memory_bytes"], 0);
    EXPECT_GE(lines[i]["exposed_comm_seconds"], 0);
    EXPECT_LE(lines[i]["tokens"], config.data.context);
  }
}

TEST_F(Trainer, MeasuresAPeakAgainThatAStepExceeds) {
  Config config = tiny_config(folder_.path());
  config.run.steps = 3;
  std::atomic<int> measured{0};
  const auto disturbed_at_first = [&](DType, Device) { return measured++ < 2 ? 1.0 : 1e15; };
  const Outcome outcome = run_training(config, 2, false, 0, {}, {}, disturbed_at_first);
  EXPECT_EQ(measured, 4);
  for (const StepMetrics& metrics : outcome.steps) EXPECT_DOUBLE_EQ(metrics.mfu, metrics.flops_per_second / 2e15);
}

TEST_F(Trainer, MfuIsAtMostOneWhateverPeakWasMeasured) {
  Config config = tiny_config(folder_.path());
  const Outcome outcome = run_training(config, 2, false, 0, {}, {}, [](DType, Device) { return 1.0; });
  ASSERT_EQ(outcome.steps.size(), 8u);
  for (const StepMetrics& metrics : outcome.steps) {
    EXPECT_GT(metrics.mfu, 0);
    EXPECT_LE(metrics.mfu, 1);
  }
}

TEST_F(Trainer, LossesDoNotDependOnRanksOrLayout) {
  Config config = tiny_config(folder_.path());
  config.run.dtype = "f64";
  config.run.directory = (folder_ / "single").string();
  const std::vector<double> single = run_training(config, 1).losses();
  ASSERT_EQ(single.size(), 8u);
  for (const std::string layout : {"contiguous", "zigzag", "striped", "document_zigzag"}) {
    for (const int ranks : {2, 3, 4}) {
      config.parallel.layout = layout;
      config.run.directory = (folder_ / (layout + std::to_string(ranks))).string();
      const std::vector<double> losses = run_training(config, ranks).losses();
      for (std::size_t i = 0; i < single.size(); ++i)
        EXPECT_NEAR(losses[i], single[i], 1e-10) << layout << " " << ranks << " step " << i + 1;
    }
  }
}

TEST_F(Trainer, SharingOutGradientsAndWeightsSparesMemoryAndChangesNoLoss) {
  for (const bool tied : {true, false}) {
    for (const std::int64_t rows : {1, 3}) {
      for (const int ranks : {1, 2, 3}) {
        SCOPED_TRACE(testing::Message() << "tied " << tied << ", " << rows << " rows, " << ranks << " ranks");
        Config config = tiny_config(folder_.path());
        config.run.dtype = "f64";
        config.model.layers = 3, config.model.tie_embeddings = tied, config.data.rows_per_step = rows;
        const std::string name = std::to_string(tied) + std::to_string(rows) + std::to_string(ranks);
        config.run.directory = (folder_ / ("whole" + name)).string();
        const Outcome whole = run_training(config, ranks);
        // Of a buffer that has room for the embedding, a layer, and what is behind the layers, and of the own part, here all in f64.
        const ParameterTable parameters(config.model);
        const auto sections = parameters.sections();
        const double elsewhere = 8.0 * static_cast<double>((config.model.layers - 1) * sections[1].elements);
        const double own = 8.0 * static_cast<double>(Shards(sections, ranks).elements(0));
        for (const std::int64_t stage : {2, 3}) {
          config.parallel.zero_stage = stage;
          config.run.directory = (folder_ / ("shared" + std::to_string(stage) + name)).string();
          const Outcome shared = run_training(config, ranks);
          if (rows == 1) {
            EXPECT_EQ(shared.losses(), whole.losses()) << stage;
          } else {
            for (std::size_t i = 0; i < 8; ++i) EXPECT_NEAR(shared.losses()[i], whole.losses()[i], 1e-12) << stage << " " << i;
          }
          const double spared = stage == 2 ? elsewhere : 2 * elsewhere - own;
          EXPECT_NEAR(static_cast<double>(whole.result.state_bytes - shared.result.state_bytes), spared, 1024) << stage;
        }
        // Another stage goes on from its checkpoint.
        config.parallel.zero_stage = 1, config.run.steps = 10;
        EXPECT_EQ(run_training(config, 4 - ranks, true).steps.size(), 2u);
      }
    }
  }
}

/// Over links so slow that messages of gradients and weights take most of a step.
TEST_F(Trainer, WaitingForSharedWeightsAndGradientsIsExposed) {
  constexpr double kRate = 4e6;
  Config config = tiny_config(folder_.path());
  config.model.layers = 3, config.model.ffn = 240;
  config.parallel.zero_stage = 3, config.run.steps = 2;
  double exposed = 0;
  comm::run_thread_ranks(2,
                         [&](const comm::Communicator& communicator) {
                           TrainOptions options{.measure_peak = {}, .on_step = {}, .on_message = {}};
                           if (communicator.rank() == 0)
                             options.on_step = [&](const StepMetrics& metrics) { exposed = metrics.exposed_comm_seconds; };
                           train(config, options, communicator);
                         },
                         {.links = comm::Links{{.bytes_per_second = kRate}}});
  // A rank receives half of all weights, of the layers but the last again, and of all gradients.
  const ParameterTable parameters(config.model);
  const std::int64_t elements = (2 * parameters.elements() + (config.model.layers - 1) * parameters.sections()[1].elements) / 2;
  EXPECT_GT(exposed, 0.95 * 4 * static_cast<double>(elements) / kRate);
}

TEST_F(Trainer, LossesOfHybridsDoNotDependOnRanksLayoutOrStrategy) {
  Config config = tiny_config(folder_.path());
  config.run.dtype = "f64";
  config.model.layers = 4;
  config.model.window = 20;
  config.model.gate = "gla";
  // Without S, the window allows the strategy that is for windows only.
  for (const std::string pattern : {"SWLD", "WL"}) {
    config.model.pattern = pattern;
    config.parallel = {.attention = {}, .linear = {}, .layout = "contiguous"};
    config.run.directory = (folder_ / (pattern + "single")).string();
    const std::vector<double> single = run_training(config, 1).losses();
    for (const std::string layout : {"contiguous", "zigzag"}) {
      for (const std::string strategy : {"lasp2", "lasp", "all_scan"}) {
        config.parallel.layout = layout;
        config.parallel.linear = {.strategy = strategy, .keep_transitions = strategy == "lasp2" && pattern == "SWLD"};
        config.parallel.attention.strategy = strategy == "lasp2" ? "ring" : pattern == "WL" ? "halo" : "auto";
        config.run.directory = (folder_ / (pattern + layout + strategy)).string();
        const std::vector<double> losses = run_training(config, 3).losses();
        ASSERT_EQ(losses.size(), single.size());
        for (std::size_t i = 0; i < single.size(); ++i)
          EXPECT_NEAR(losses[i], single[i], 1e-10) << pattern << " " << layout << " " << strategy << " step " << i + 1;
      }
    }
  }
}

TEST_F(Trainer, LossesDoNotDependOnTheStrategy) {
  Config config = tiny_config(folder_.path());
  config.run.dtype = "f64";
  config.run.directory = (folder_ / "single").string();
  const std::vector<double> single = run_training(config, 1).losses();
  for (const strategy::Strategy& strategy : strategy::strategies()) {
    const std::string name(strategy.name);
    if (name == "halo") continue;  // it is for sliding windows: see the hybrids
    config.parallel.attention.strategy = name;
    config.parallel.layout = name == "balanced_helper" ? "contiguous" : "document_zigzag";
    config.run.directory = (folder_ / name).string();
    const std::vector<double> losses = run_training(config, 3).losses();
    ASSERT_EQ(losses.size(), single.size());
    for (std::size_t i = 0; i < single.size(); ++i) EXPECT_NEAR(losses[i], single[i], 1e-10) << name << " step " << i + 1;
  }
}

TEST_F(Trainer, TwoRunsAreEqualBitForBit) {
  Config config = tiny_config(folder_.path());
  for (const char* dtype : {"f32", "bf16"}) {
    config.run.dtype = dtype;
    config.run.directory = (folder_ / (std::string(dtype) + "first")).string();
    const std::vector<double> first = run_training(config, 3).losses();
    config.run.directory = (folder_ / (std::string(dtype) + "second")).string();
    EXPECT_EQ(run_training(config, 3).losses(), first) << dtype;
  }
}

TEST_F(Trainer, MeasuresLossesOfTextThatItDoesNotTrainOn) {
  Config config = tiny_config(folder_.path());
  config.run.dtype = "f64";
  config.data.validation_paths = {(folder_ / "corpus/7.txt").string(), (folder_ / "corpus/8.txt").string()};
  config.run.validate_every = 3;
  const Outcome outcome = run_training(config, 1);
  ASSERT_EQ(outcome.steps.size(), 8u);
  for (const StepMetrics& metrics : outcome.steps)
    EXPECT_EQ(metrics.validation_loss.has_value(), metrics.step % 3 == 0 || metrics.step == 8) << metrics.step;
  EXPECT_EQ(outcome.result.validation_loss, outcome.steps.back().validation_loss);
  const std::vector<StepMetrics> written = read_metrics(config.run.directory);
  ASSERT_EQ(written.size(), 8u);
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(to_json_line(written[i]), to_json_line(outcome.steps[i]));
  EXPECT_LT(*outcome.result.validation_loss, *outcome.steps[2].validation_loss);

  // Measuring changes nothing, and nothing is learnt from the text.
  Config without = config;
  without.data.paths = {(folder_ / "corpus/[0-6].txt").string(), (folder_ / "corpus/9.txt").string(), (folder_ / "corpus/1?.txt").string()};
  without.data.validation_paths = {};
  without.run.validate_every = 0;
  without.run.directory = (folder_ / "without").string();
  EXPECT_EQ(run_training(without, 1).losses(), outcome.losses());

  for (const int ranks : {2, 3}) {
    config.run.directory = (folder_ / std::to_string(ranks)).string();
    const Outcome spread = run_training(config, ranks);
    for (const std::size_t i : {2u, 5u, 7u}) EXPECT_NEAR(*spread.steps[i].validation_loss, *outcome.steps[i].validation_loss, 1e-10);
  }
}

TEST_F(Trainer, TokenIdsOfOneFileAreTheSameTextAsBytesOfMany) {
  Config config = tiny_config(folder_.path());
  config.run.dtype = "f64";
  std::vector<std::uint16_t> ids;
  for (const char* const name : {"3", "5", "9"}) {
    const std::string text = read_file(folder_ / "corpus" / (std::string(name) + ".txt"), 1 << 20) + "\xff";
    write_text(folder_ / "ended" / name, text);
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  }
  write_text(folder_ / "ids/all.bin", std::string(reinterpret_cast<const char*>(ids.data()), 2 * ids.size()));
  config.data.paths = {(folder_ / "ended").string()};
  const Outcome bytes = run_training(config, 2);
  config.data.paths = {(folder_ / "ids").string()};
  config.data.token_type = "u16", config.data.document_end = 0xff;
  config.run.directory = (folder_ / "from ids").string();
  const Outcome from_ids = run_training(config, 2);
  EXPECT_EQ(from_ids.losses(), bytes.losses());
  EXPECT_EQ(from_ids.result.unigram_entropy, bytes.result.unigram_entropy);
  EXPECT_NE(read_file(checkpoint_folder(config, 8) / "config.json", 1 << 20).find("\"eos_token_id\": 255"), std::string::npos);
}

TEST_F(Trainer, ValidationLossIsTheMeanOverAllLabels) {
  // With weights that stay, losses of training on the same rows, weighted by their labels, are its parts.
  Config config = tiny_config(folder_.path());
  config.run.dtype = "f64";
  config.optimizer.learning_rate = 0;
  Config on_it = config;
  on_it.data.paths = {(folder_ / "corpus/9.txt").string(), (folder_ / "corpus/11.txt").string()};  // 33 and 250 bytes: 5 rows of one piece
  on_it.run.steps = 5;
  on_it.run.directory = (folder_ / "on it").string();
  double sum = 0, labels = 0;
  for (const StepMetrics& metrics : run_training(on_it, 2).steps) {
    sum += metrics.loss * static_cast<double>(metrics.tokens - 1);
    labels += static_cast<double>(metrics.tokens - 1);
  }
  config.data.validation_paths = on_it.data.paths;
  const Outcome all = run_training(config, 2);
  EXPECT_NEAR(*all.result.validation_loss, sum / labels, 1e-12);

  config.data.validation_rows = 2;
  config.run.validate_every = 1;
  config.run.directory = (folder_ / "two rows").string();
  const Outcome two = run_training(config, 2);
  EXPECT_NE(two.result.validation_loss, all.result.validation_loss);
  for (const StepMetrics& metrics : two.steps) EXPECT_EQ(metrics.validation_loss, two.result.validation_loss);
}

TEST_F(Trainer, AFinishedRunCanBeValidated) {
  Config config = tiny_config(folder_.path());
  config.data.validation_paths = {(folder_ / "corpus/7.txt").string()};
  const Outcome trained = run_training(config, 2), again = run_training(config, 3, true);
  EXPECT_EQ(again.result.steps_run, 0);
  EXPECT_NEAR(again.result.validation_loss.value(), trained.result.validation_loss.value(), 1e-5);

  const std::vector<nlohmann::json> lines = metrics_of(config);
  ASSERT_EQ(lines.size(), 8u);
  EXPECT_EQ(lines[7].at("validation_loss"), again.result.validation_loss.value());
  EXPECT_EQ(lines[6].at("loss"), trained.steps[6].loss);

  const std::atomic<bool> stop{true};
  comm::run_thread_ranks(2, [&](const comm::Communicator& communicator) {
    const TrainResult stopped =
        train(config, {.resume = true, .measure_peak = {}, .stop_requested = &stop, .on_step = {}, .on_message = {}}, communicator);
    EXPECT_TRUE(stopped.stopped_by_request);
    EXPECT_FALSE(stopped.validation_loss);
  });
  config.data.validation_paths = {(folder_ / "corpus/0.txt").string()};
  config.run.directory = (folder_ / "other").string();
  try {
    run_training(config, 2);
    FAIL() << "measured the loss of one byte";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("where nothing is predicted"), std::string::npos) << error.what();
  }
}

TEST_F(Trainer, WeightsAndMetricsAreSavedBeforeAValidationThatFails) {
  Config config = tiny_config(folder_.path());
  const fs::path held_out = folder_ / "corpus/7.txt";
  config.data.validation_paths = {held_out.string()};
  comm::run_thread_ranks(2, [&](const comm::Communicator& communicator) {
    const auto shorten = [&](const StepMetrics& metrics) {
      if (metrics.step == 7) fs::resize_file(held_out, 1);
    };
    EXPECT_THROW(train(config, {.measure_peak = {}, .on_step = shorten, .on_message = {}}, communicator), DeviceError);
  });
  config.data.validation_paths = {};
  config.data.paths = {(folder_ / "corpus/[0-6].txt").string(), (folder_ / "corpus/[89].txt").string(),
                       (folder_ / "corpus/1?.txt").string()};
  EXPECT_EQ(run_training(config, 2, true).result.steps_run, 0);
  EXPECT_EQ(metrics_of(config).size(), 8u);
}

TEST_F(Trainer, AValidationThatWasCutShortIsMadeUpForOnResuming) {
  Config config = tiny_config(folder_.path());
  const fs::path held_out = folder_ / "corpus/7.txt";
  const std::string text = read_file(held_out, 1 << 20);
  config.data.validation_paths = {held_out.string()};
  config.run.validate_every = config.run.checkpoint_every = 3;
  comm::run_thread_ranks(2, [&](const comm::Communicator& communicator) {
    const auto shorten = [&](const StepMetrics& metrics) {
      if (metrics.step == 5) fs::resize_file(held_out, 1);
    };
    EXPECT_THROW(train(config, {.measure_peak = {}, .on_step = shorten, .on_message = {}}, communicator), DeviceError);
  });
  write_text(held_out, text);
  EXPECT_EQ(run_training(config, 2, true).result.steps_run, 2);
  const std::vector<StepMetrics> resumed = read_metrics(config.run.directory);
  config.run.directory = (folder_ / "whole").string();
  const std::vector<StepMetrics> whole = run_training(config, 2).steps;
  ASSERT_EQ(resumed.size(), 8u);
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(resumed[i].validation_loss, whole[i].validation_loss) << whole[i].step;
}

TEST_F(Trainer, AStopRequestOnOneRankSavesAndStopsAllInTheSameStep) {
  const Config config = tiny_config(folder_.path());
  const Outcome outcome = run_training(config, 3, false, 4);
  EXPECT_TRUE(outcome.result.stopped_by_request);
  EXPECT_LT(outcome.result.last_step, config.run.steps);
  EXPECT_GE(outcome.result.last_step, 3);
  EXPECT_TRUE(fs::exists(checkpoint_folder(config, outcome.result.last_step) / "manifest.json"));
}

TEST_F(Trainer, WritesATraceWithEveryRank) {
  Config config = tiny_config(folder_.path());
  config.run.steps = 2;
  config.run.trace = true;
  run_training(config, 2);
  const nlohmann::json trace = nlohmann::json::parse(read_file(folder_ / "run/trace.json", 64 << 20));
  std::vector<int> events(2), sent(2), received(2);
  std::map<int, double> begins;  // of messages, by their number
  for (const auto& event : trace["traceEvents"]) {
    if (event["ph"] == "s") begins[event["id"]] = event["ts"];
    // The ranks count time from one moment: what arrives was sent before.
    if (event["ph"] == "f") {
      EXPECT_GE(event["ts"].get<double>(), begins.at(event["id"]) - 0.01) << event;
    }
    auto& counts = event["ph"] == "s" ? sent : event["ph"] == "f" ? received : events;
    if (event["ph"] != "M") ++counts.at(event["pid"].get<std::size_t>());
  }
  EXPECT_GT(events[0], 4);
  EXPECT_GT(events[1], 4);
  const int messages = 6 * static_cast<int>(config.model.layers);  // of k, v forward; of k, v and of their sums backward
  EXPECT_EQ(sent, (std::vector<int>{messages, messages}));
  EXPECT_EQ(received, sent);
}

TEST_F(Trainer, MistakesAreOneSentenceOnEveryRank) {
  Config config = tiny_config(folder_.path());
  config.data.paths = {(folder_ / "nowhere").string()};
  EXPECT_THROW(run_training(config, 2), InvalidArgument);
  config = tiny_config(folder_.path());
  config.model.pattern = "SL";
  EXPECT_THROW(run_training(config, 2), InvalidArgument);
  config = tiny_config(folder_.path());
  EXPECT_THROW(run_training(config, 2, true), InvalidArgument);  // nothing to resume from
  run_training(config, 2);
  EXPECT_THROW(run_training(config, 2), InvalidArgument);  // would overwrite a finished run
}

TEST_F(Trainer, RanksThatDisagreeAreToldAboutWhat) {
  comm::run_thread_ranks(3, [&](const comm::Communicator& communicator) {
    Config config = tiny_config(folder_.path());
    if (communicator.rank() == 2) config.run.seed = 7;
    try {
      train(config, {.measure_peak = {}, .on_step = {}, .on_message = {}}, communicator);
      ADD_FAILURE() << "trained with two seeds";
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find("rank 2 of 3 was given run.seed = 7, rank 0 run.seed = 1;"), std::string::npos)
          << error.what();
    }
  });
}

TEST_F(Trainer, MemoryThatIsNotThereIsNamedWithItsRank) {
  comm::run_thread_ranks(2, [&](const comm::Communicator& communicator) {
    const auto allocate = [](const StepMetrics&) { throw std::bad_alloc(); };
    try {
      train(tiny_config(folder_.path()), {.measure_peak = {}, .on_step = allocate, .on_message = {}}, communicator);
      ADD_FAILURE() << "trained on";
    } catch (const DeviceError& error) {
      EXPECT_EQ(std::string(error.what()), std::string(kOutOfMemory) + " (rank 0 of 2)");
    }
  });
}

TEST_F(Trainer, DivergenceIsNamedNotTrainedOn) {
  Config config = tiny_config(folder_.path());
  config.optimizer.learning_rate = 1e30;
  try {
    run_training(config, 2);
    FAIL() << "trained with a learning rate of 1e30";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("not finite"), std::string::npos) << error.what();
  }
}

TEST_F(Trainer, RowsWithoutLabelsChangeNothing) {
  fs::remove_all(folder_ / "corpus");
  write_text(folder_ / "corpus/a", "a");
  write_text(folder_ / "corpus/b", "b");
  Config config = tiny_config(folder_.path());
  config.run.steps = 2;
  const Outcome outcome = run_training(config, 2);
  EXPECT_EQ(outcome.losses(), (std::vector<double>{0, 0}));
}

}  // namespace
}  // namespace periplus::train
