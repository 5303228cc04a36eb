// Whole runs of a tiny model on a CUDA device, against the same on the CPU. Linked with fake_device.cpp the same tests check the
// waits between streams and hosts without a device; its kernels are those of the CPU.
#include "tests/parallel/execute/cuda_test.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include <nlohmann/json.hpp>

#include "kernels/transfer.h"
#include "parallel/train/model/model.h"
#include "parallel/train/model/tiles.h"
#include "parallel/train/optimizer.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/home_stream.h"
#include "runtime/device_tensor.h"
#include "runtime/error.h"
#include "runtime/file.h"
#include "tests/parallel/train/planned_runs.h"
#include "tests/parallel/train/scenario.h"

namespace periplus::train {
namespace {

constexpr Device kDevice{DeviceKind::cuda, 0};

class TrainerOnCuda : public test::OnCuda {
 protected:
  TrainerOnCuda() { write_corpus(folder_ / "corpus"); }
  /// A run of its own folder each time.
  Config config(const std::string& dtype) {
    Config config = tiny_config(folder_.path());
    config.run.dtype = dtype;
    config.run.directory = (folder_ / std::to_string(++runs_)).string();
    return config;
  }
  TemporaryFolder folder_;
  int runs_ = 0;
};

Outcome run_on(Device device, const Config& config, int ranks, bool resume = false) {
  return run_training(config, ranks, resume, 0, device);
}

void expect_close(const Outcome& run, const Outcome& expected, double tolerance) {
  ASSERT_EQ(run.steps.size(), expected.steps.size());
  for (std::size_t i = 0; i < run.steps.size(); ++i) {
    EXPECT_NEAR(run.steps[i].loss, expected.steps[i].loss, tolerance * expected.steps[i].loss) << "step " << i + 1;
    EXPECT_NEAR(run.steps[i].grad_norm, expected.steps[i].grad_norm, 10 * tolerance * expected.steps[i].grad_norm) << "step " << i + 1;
  }
}

/// Of losses over eight steps, in which differences of single roundings grow.
double tolerance_of(const std::string& dtype) { return dtype == "f64" ? 1e-10 : dtype == "f32" ? 1e-5 : 1e-2; }

TEST_F(TrainerOnCuda, LossesAreThoseOfTheCpu) {
  for (const char* dtype : {"f64", "f32", "bf16"}) {
    SCOPED_TRACE(dtype);
    expect_close(run_on(kDevice, config(dtype), 1), run_on({}, config(dtype), 1), tolerance_of(dtype));
  }
}

/// Heads that the tensor cores' kernels take, groups of them, a row of many tiles of keys.
TEST_F(TrainerOnCuda, LossesOfAWiderModelAreThoseOfTheCpu) {
  Config on_device = config("bf16");
  on_device.model = {.layers = 2, .hidden = 128, .heads = 4, .kv_heads = 2, .head_size = 64, .ffn = 192, .vocabulary = 256};
  on_device.model.tie_embeddings = false;
  on_device.data.context = test::device_is_fake() ? 96 : 640;
  on_device.run.steps = 4;
  for (int document = 0; document < 8; ++document) write_text(folder_ / "long" / std::to_string(document), seeded_text(900, 40 + document));
  on_device.data.paths = {(folder_ / "long").string()};
  Config on_cpu = on_device;
  on_cpu.run.directory = (folder_ / "cpu").string();
  expect_close(run_on(kDevice, on_device, 1), run_on({}, on_cpu, 1), tolerance_of("bf16"));
}

TEST_F(TrainerOnCuda, LossesDoNotDependOnVirtualRanks) {
  for (const char* dtype : {"f64", "bf16"}) {
    const Outcome single = run_on(kDevice, config(dtype), 1);
    for (const int ranks : {2, 4}) {
      for (const char* layout : {"zigzag", "striped", "balanced"}) {
        SCOPED_TRACE(testing::Message() << dtype << ", " << ranks << " ranks, " << layout);
        Config spread = config(dtype);
        spread.parallel.layout = layout;
        expect_close(run_on(kDevice, spread, ranks), single, tolerance_of(dtype));
      }
    }
  }
}

/// Every mixer by itself and beside others, whose states and halos pass from rank to rank.
TEST_F(TrainerOnCuda, LossesOfHybridsAreThoseOfTheCpu) {
  const auto hybrid = [&](const std::string& pattern, const std::string& gate, const char* dtype) {
    Config mixed = config(dtype);
    mixed.model.layers = static_cast<std::int64_t>(pattern.size());
    mixed.model.head_size = 16;
    mixed.model.pattern = pattern;
    mixed.model.gate = gate;
    mixed.model.window = pattern.find('W') != std::string::npos ? 8 : 0;
    mixed.parallel.layout = "zigzag";
    mixed.run.steps = 4;
    return mixed;
  };
  const std::pair<const char*, const char*> kinds[] = {{"D", ""},          {"L", "basic"},  {"L", "retention"},
                                                       {"L", "lightning"}, {"SWLD", "gla"}, {"SLDL", "mamba2"}};
  for (const auto& [pattern, gate] : kinds) {
    for (const char* dtype : {"f64", "f32", "bf16"}) {
      const Outcome on_cpu = run_on({}, hybrid(pattern, gate, dtype), 1);
      for (const int ranks : {1, 2, 3}) {
        SCOPED_TRACE(testing::Message() << pattern << " " << gate << ", " << dtype << ", " << ranks << " ranks");
        expect_close(run_on(kDevice, hybrid(pattern, gate, dtype), ranks), on_cpu, tolerance_of(dtype));
      }
    }
  }
}

TEST_F(TrainerOnCuda, LossesOfPlannedGroupsAreThoseOfTheCpu) {
  for (const char* dtype : {"f64", "f32"}) {
    Config rows = config(dtype);
    rows.data.rows_per_step = 3, rows.model.layers = 4;
    const Outcome on_cpu = run_on({}, rows, 1);
    for (const char* planner : {"static", "flexible"}) {
      for (const int ranks : {2, 3}) {
        SCOPED_TRACE(testing::Message() << dtype << ", " << planner << ", " << ranks << " ranks");
        Config planned = rows;
        planned.parallel.planner = planner;
        planned.run.offload_activations = planned.run.offload_optimizer = ranks == 3;  // over a link that the machine's file does not tell
        planned.run.directory = (folder_ / std::to_string(++runs_)).string();
        const MachineDescription machine = machine_for(planned, storage_dtype(planned.run), ranks, 40, kDevice);
        const Outcome on_device = run_training(planned, ranks, false, 0, kDevice, machine);
        EXPECT_GT(on_device.steps.front().micro_batches, 1);
        expect_close(on_device, on_cpu, tolerance_of(dtype));
      }
    }
  }
}

/// Forward alone, between steps; weights that come from files; angles and scores of YaRN; norms and biases of q and k.
TEST_F(TrainerOnCuda, ValidationOfATrainedModelAtALongerContextIsThatOfTheCpu) {
  for (const char* dtype : {"f64", "bf16"}) {
    Config trained = config(dtype);
    trained.model.qk_norm = trained.model.qkv_bias = true;
    run_on({}, trained, 1);
    const auto longer = [&](Device device, int ranks) {
      Config on = config(dtype);
      on.model.qk_norm = on.model.qkv_bias = true;
      on.run.initial_weights = checkpoint_folder(trained, 8).string();
      on.model.rope_scaling = "yarn", on.model.rope_factor = 2, on.model.rope_original_context = 64;
      on.data.context = 128;
      on.data.validation_paths = {(folder_ / "corpus/7.txt").string(), (folder_ / "corpus/8.txt").string()};
      on.run.validate_every = 1, on.run.steps = 3;
      return run_on(device, on, ranks);
    };
    const Outcome on_cpu = longer({}, 1);
    for (const int ranks : {1, 3}) {
      SCOPED_TRACE(testing::Message() << dtype << ", " << ranks << " ranks");
      const Outcome on_device = longer(kDevice, ranks);
      expect_close(on_device, on_cpu, tolerance_of(dtype));
      for (std::size_t i = 0; i < on_cpu.steps.size(); ++i) {
        EXPECT_NEAR(on_device.steps[i].validation_loss.value() / on_cpu.steps[i].validation_loss.value(), 1, tolerance_of(dtype)) << i;
      }
    }
  }
}

TEST_F(TrainerOnCuda, GradientsAreSummedSliceBySlice) {
  const ParameterTable table(config("f32").model);
  const auto gradient_of = [](int rank, std::int64_t i) { return std::sin(static_cast<float>(i * (rank + 1))); };
  for (const int ranks : {1, 2, 3}) {
    comm::run_thread_ranks(ranks, [&](const comm::Communicator& communicator) {
      const Stream stream = cuda::make_stream(kDevice.index);
      const cuda::HomeStream home(stream);
      Tensor host({table.elements()}, DType::f32, Memory());
      for (std::int64_t i = 0; i < table.elements(); ++i)
        host.view().span<float>()[static_cast<std::size_t>(i)] = gradient_of(communicator.rank(), i);
      const Tensor gradients = to_device(host, Memory(kDevice), stream);
      for (const std::size_t inbox : {4, 1000, 1 << 20}) {
        ShardedAdamw optimizer(table, DType::f32, communicator, Memory(kDevice), {.inbox_bytes = inbox});
        optimizer.sum(gradients, stream);
        const Tensor sum = to_host(optimizer.gradient(), stream);
        for (const Shards::Part& part : optimizer.own_parts()) {
          for (std::int64_t i = part.begin; i < part.begin + part.count; ++i) {
            float expected = gradient_of(0, i);
            for (int rank = 1; rank < ranks; ++rank) expected += gradient_of(rank, i);
            ASSERT_EQ(sum.view().span<float>()[static_cast<std::size_t>(part.offset + i - part.begin)], expected)
                << i << " of " << ranks << " ranks, inbox " << inbox;
          }
        }
      }
    });
  }
}

TEST_F(TrainerOnCuda, LossesOfEveryZeroStageAreThoseOfTheCpu) {
  for (const char* dtype : {"f64", "bf16"}) {
    for (const int rows : {1, 3}) {
      const auto shared = [&](int stage) {
        Config on = config(dtype);
        on.parallel.zero_stage = stage, on.data.rows_per_step = rows;
        on.model.tie_embeddings = rows == 1;
        on.data.validation_paths = {(folder_ / "corpus/7.txt").string()};
        on.run.validate_every = 1, on.run.steps = 4;
        return on;
      };
      const Outcome on_cpu = run_on({}, shared(1), 1);
      for (const int stage : {2, 3}) {
        for (const int ranks : {1, 2, 3}) {
          SCOPED_TRACE(testing::Message() << dtype << ", " << rows << " rows, stage " << stage << ", " << ranks << " ranks");
          expect_close(run_on(kDevice, shared(stage), ranks), on_cpu, tolerance_of(dtype));
        }
      }
    }
  }
}

/// Layers enough that places are used again, of kinds that keep different things, on rows of different numbers.
TEST_F(TrainerOnCuda, ActivationsThatWaitOnTheHostChangeNothing) {
  for (const std::string pattern : {"S", "WD", "SLSD"}) {
    for (const char* recompute : {"but_attention", "but_hidden"}) {
      for (const int ranks : {1, 2}) {
        SCOPED_TRACE(testing::Message() << pattern << ", " << recompute << ", " << ranks << " ranks");
        const auto run = [&](bool offload) {
          Config deep = config("f32");
          deep.model.layers = 9, deep.model.pattern = pattern, deep.model.head_size = 16;
          deep.model.gate = pattern.find('L') == std::string::npos ? "" : "gla";
          deep.model.window = pattern[0] == 'W' ? 8 : 0;
          deep.parallel.layout = "zigzag", deep.run.recompute = recompute, deep.run.offload_activations = offload;
          deep.data.validation_paths = {(folder_ / "corpus/3.txt").string()}, deep.run.validate_every = 2;
          deep.run.steps = 5;
          return run_on(kDevice, deep, ranks);
        };
        const Outcome on_host = run(true), on_device = run(false);
        EXPECT_EQ(on_host.losses(), on_device.losses());
        for (std::size_t i = 0; i < on_device.steps.size(); ++i) {
          EXPECT_EQ(on_host.steps[i].grad_norm, on_device.steps[i].grad_norm);
          EXPECT_EQ(on_host.steps[i].validation_loss, on_device.steps[i].validation_loss);
        }
        EXPECT_LT(on_host.steps.back().peak_memory_bytes, on_device.steps.back().peak_memory_bytes);
      }
    }
  }
}

/// Whoever catches what ends a step goes on with the next, here with one that takes the same room and with one that takes more.
TEST_F(TrainerOnCuda, AStepThatFailedMovesNothingIntoTheNext) {
  constexpr std::size_t kNone = 1000;
  ModelConfig shape = config("f32").model;
  shape.layers = 8;
  const auto batch_of = [](std::int64_t rows) {
    std::vector<std::int32_t> tokens;
    for (std::int64_t i = 0; i < rows; ++i) tokens.push_back(static_cast<std::int32_t>(i * i % 251));
    return shard_row(tokens, std::vector<std::int64_t>{0, rows}, LayoutKind::contiguous, 1, 0);
  };
  const Batch first = batch_of(32), larger = batch_of(48);
  comm::run_thread_ranks(1, [&](const comm::Communicator& communicator) {
    const Stream stream = cuda::make_stream(kDevice.index);
    const cuda::HomeStream home(stream);
    const auto loss_of = [&](Model& model, const Batch& batch, std::size_t failing) {
      cuda::synchronize(stream);
      Planning planning{.communicator = communicator};
      planning.stream = stream;
      model.plan(batch, planning);
      return model.loss_and_gradients(stream, {.take = [&](std::size_t section, ConstTensorView) {
                                        if (section == failing) throw DeviceError("of a test");
                                      }});
    };
    const auto make = [&] {
      auto model = std::make_unique<Model>(shape, DType::f32, Memory(kDevice), ModelStorage{.gradients = false, .offload = true});
      Tensor weights({model->parameters().elements()}, DType::f32, Memory());
      for (std::int64_t i = 0; i < weights.shape()[0]; ++i)
        weights.view().span<float>()[static_cast<std::size_t>(i)] = 0.3F * std::sin(static_cast<float>(i));
      upload(weights, model->weights(), stream);
      return model;
    };
    for (const Batch* next : {&first, &larger}) {
      const double expected = loss_of(*make(), *next, kNone);
      for (std::size_t failing = 1; failing <= 8; ++failing) {
        const auto model = make();
        EXPECT_THROW(loss_of(*model, first, failing), DeviceError);
        EXPECT_EQ(loss_of(*model, *next, kNone), expected) << failing;
      }
    }
  });
}

TEST_F(TrainerOnCuda, WhatIsKeptComesBackFromTheHostWhenRowsHaveGrown) {
  constexpr std::size_t kSets = 6;
  const Stream stream = cuda::make_stream(kDevice.index);
  const cuda::HomeStream home(stream);
  Kept kept(kSets, {{{8}, DType::f32}}, Memory(kDevice), true);
  for (const std::int64_t rows : {4, 1000, 1001, 3, 2000}) {
    const auto values_of = [&](std::size_t set) {
      Tensor values({rows, 8}, DType::f32, Memory());
      std::ranges::fill(values.view().span<float>(), static_cast<float>(rows) + static_cast<float>(set));
      return values;
    };
    kept.resize(rows);
    for (std::size_t set = 0; set < kSets; ++set) {
      kept.begin_write(set, stream);
      upload(values_of(set), top(kept.tensor(set, 0), rows), stream);
      kept.end_write(set, stream);
    }
    for (std::size_t set = kSets; set-- > 0;) {
      kept.begin_read(set, stream);
      const Tensor got = to_host(top(kept.tensor(set, 0), rows), stream);
      ASSERT_TRUE(std::ranges::equal(got.view().span<float>(), values_of(set).view().span<float>())) << rows << " rows, set " << set;
      kept.end_read(set, stream);
    }
    cuda::synchronize(stream);
  }
}

TEST_F(TrainerOnCuda, TheHostUpdatesWeightsSliceBySlice) {
  constexpr std::int64_t kElements = 1000;
  const auto values = [](double phase) {
    Tensor tensor({kElements}, DType::f32, Memory());
    for (std::size_t i = 0; i < kElements; ++i)
      tensor.view().span<float>()[i] = static_cast<float>(std::sin(phase + static_cast<double>(i)));
    return tensor;
  };
  const Stream stream = cuda::make_stream(kDevice.index), host;
  const cuda::HomeStream home(stream);
  const Tensor master = values(1), m = Tensor::zeros({kElements}, DType::f32, Memory()),
               v = Tensor::zeros({kElements}, DType::f32, Memory());
  const Tensor working({kElements}, DType::bf16, Memory(kDevice));
  const Tensor expected = values(1), m_expected = Tensor::zeros({kElements}, DType::f32, Memory()),
               v_expected = Tensor::zeros({kElements}, DType::f32, Memory()), working_expected({kElements}, DType::bf16, Memory());
  HostAdamw adamw(kDevice, DType::f32, DType::bf16, 64);
  for (int step = 1; step <= 4; ++step) {
    kernels::AdamwOptions options{.step = step};
    const Tensor gradient = values(step), sent = to_device(gradient, Memory(kDevice), stream),
                 there({kElements}, DType::f32, Memory(kDevice));
    // What the stream has still to do comes first.
    kernels::copy(as_row(sent.view()), as_row(there.view()), stream);
    fill_zero(working, stream);
    std::vector<HostAdamw::Run> runs;
    for (const std::int64_t begin : {0, 300, 301}) {  // up to the next one
      const std::int64_t count = (begin == 0 ? 300 : begin == 300 ? 301 : kElements) - begin;
      const auto part = [&](const Tensor& tensor) { return tensor.view().slice(0, begin, count); };
      options.weight_decay = begin == 300 ? 0.1 : 0.0;
      kernels::adamw(part(expected), part(m_expected), part(v_expected), part(gradient), part(working_expected), options, host);
      runs.push_back({part(master), part(m), part(v), part(there), part(working), options.weight_decay});
    }
    adamw.update(runs, options, stream);
    const Tensor got = to_host(working, stream);
    for (std::size_t i = 0; i < kElements; ++i) {
      ASSERT_EQ(got.view().span<bfloat16>()[i].bits, working_expected.view().span<bfloat16>()[i].bits) << "step " << step << ", " << i;
    }
  }
  for (std::size_t i = 0; i < kElements; ++i) ASSERT_EQ(master.view().span<float>()[i], expected.view().span<float>()[i]) << i;
}

TEST_F(TrainerOnCuda, AnOptimizerOnTheHostTrainsAsOneOnTheDevice) {
  for (const char* dtype : {"f32", "bf16"}) {
    for (const int stage : {1, 3}) {
      for (const int ranks : {1, 2}) {
        SCOPED_TRACE(testing::Message() << dtype << ", stage " << stage << ", " << ranks << " ranks");
        const auto on = [&](bool host) {
          Config one = config(dtype);
          one.parallel.zero_stage = stage, one.run.offload_optimizer = host;
          return one;
        };
        const Outcome on_host = run_on(kDevice, on(true), ranks), on_device = run_on(kDevice, on(false), ranks);
        expect_close(on_host, on_device, tolerance_of(dtype));
        if (test::device_is_fake()) {
          EXPECT_EQ(on_host.losses(), on_device.losses()) << "the same kernels";
        }
        EXPECT_LT(on_host.result.state_bytes, on_device.result.state_bytes);
        const auto tells = [](const Outcome& run, const std::string& what) {
          return std::ranges::any_of(run.messages, [&](const std::string& message) { return message.find(what) != std::string::npos; });
        };
        EXPECT_TRUE(tells(on_host, " MiB of weights and gradients here"));
        EXPECT_TRUE(tells(on_device, " MiB of weights, gradients and optimizer state here"));
      }
    }
  }
}

TEST_F(TrainerOnCuda, AnOptimizerOnTheHostContinuesOneOnTheDevice) {
  Config whole = config("f64"), parts = config("f64");
  const Outcome expected = run_on(kDevice, whole, 2);
  parts.run.offload_optimizer = true, parts.run.checkpoint_every = 3;
  const Outcome first = run_training(parts, 2, false, 3, kDevice);
  parts.run.offload_optimizer = false;
  const Outcome second = run_training(parts, 2, true, 5, kDevice);
  parts.run.offload_optimizer = true;
  const Outcome third = run_training(parts, 2, true, 0, kDevice);
  ASSERT_FALSE(third.steps.empty());
  EXPECT_NEAR(third.steps.back().loss, expected.steps.back().loss, 1e-10);
}

TEST_F(TrainerOnCuda, RepeatsBitForBit) {
  for (const int ranks : {1, 3})
    EXPECT_EQ(run_on(kDevice, config("bf16"), ranks).losses(), run_on(kDevice, config("bf16"), ranks).losses());
}

TEST_F(TrainerOnCuda, CheckpointsCrossDevices) {
  const Outcome whole = run_on({}, config("f32"), 1);
  for (const bool device_first : {true, false}) {
    SCOPED_TRACE(device_first ? "device, then CPU" : "CPU, then device");
    Config halves = config("f32");
    Config first = halves;
    first.run.checkpoint_every = 4;
    first.run.steps = 8;
    // A stop after half of the steps: the schedule of the learning rate is that of the whole run.
    const Outcome begun = run_training(first, 2, false, 4, device_first ? kDevice : Device());
    ASSERT_GE(begun.steps.size(), 4u);
    ASSERT_LT(begun.steps.size(), 8u);
    Outcome joined = begun;
    const Outcome rest = run_on(device_first ? Device() : kDevice, halves, 3, true);
    joined.steps.insert(joined.steps.end(), rest.steps.begin(), rest.steps.end());
    expect_close(joined, whole, tolerance_of("f32"));
  }
}

TEST_F(TrainerOnCuda, AnInfiniteGradientIsNamed) {
  Config broken = config("f32");
  broken.optimizer.learning_rate = 1e30;
  broken.optimizer.warmup_steps = 0;
  broken.optimizer.clip_norm = 0;
  try {
    run_on(kDevice, broken, 2);
    ADD_FAILURE() << "accepted";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("is not finite: first in "), std::string::npos) << error.what();
  }
}

/// The times are those of the device; what is checked of them holds on any.
TEST_F(TrainerOnCuda, TracesHoldTheSameStepsAsOnTheCpu) {
  const auto trace_on = [&](Device device) {
    Config traced = config("f32");
    traced.run.trace = true;
    traced.run.steps = 3;
    run_on(device, traced, 2);
    return nlohmann::json::parse(read_file(std::filesystem::path(traced.run.directory) / "trace.json", 64 << 20)).at("traceEvents");
  };
  const auto count = [](const nlohmann::json& events) {
    std::map<std::pair<std::string, int>, int> counts;
    for (const auto& event : events) ++counts[{event.value("name", "") + event.value("ph", ""), event.value("pid", -1)}];
    return counts;
  };
  const nlohmann::json events = trace_on(kDevice);
  EXPECT_EQ(count(events), count(trace_on({})));
  std::map<int, std::pair<double, double>> passes;  // forward and backward, by rank
  for (const auto& event : events) {
    if (event.at("ph") != "X") continue;
    EXPECT_GE(event.at("ts").get<double>(), 0) << event;
    EXPECT_GE(event.at("dur").get<double>(), 0) << event;
    const double begin = event.at("ts");
    if (event.at("name") == "forward and backward") passes[event.at("pid")] = {begin, begin + event.at("dur").get<double>()};
  }
  ASSERT_EQ(passes.size(), 2u);
  std::map<int, double> sent;  // where arrows start, by their number
  for (const auto& event : events) {
    if (event.at("ph") == "s") sent[event.at("id")] = event.at("ts");
  }
  EXPECT_FALSE(sent.empty());
  for (const auto& event : events) {
    if (event.at("ph") == "f") {
      EXPECT_GE(event.at("ts").get<double>(), sent.at(event.at("id")) - 1) << event;
    }
  }
  for (const auto& event : events) {
    if (event.at("ph") != "X" || event.at("args").at("step") < 0) continue;
    const auto [begin, end] = passes[event.at("pid")];
    EXPECT_GE(event.at("ts").get<double>(), begin - 1) << event;  // a microsecond for rounding
    EXPECT_LE(event.at("ts").get<double>() + event.at("dur").get<double>(), end + 1) << event;
  }
}

}  // namespace
}  // namespace periplus::train
