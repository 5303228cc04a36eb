#include "parallel/train/model/model.h"

#include <algorithm>
#include <atomic>

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "tests/parallel/train/model/model_runs.h"

namespace periplus::train {
namespace {

ModelConfig tiny_model(bool tied) {
  return {.layers = 2, .hidden = 16, .heads = 4, .kv_heads = 2, .head_size = 4, .ffn = 24, .vocabulary = 256, .tie_embeddings = tied};
}

TEST(Model, GradientsOfEveryTensorMatchFiniteDifferences) {
  const Row row = make_row({1, 9, 37, 2, 16});
  for (const bool tied : {true, false}) {
    for (const int ranks : {1, 2, 3}) {
      SCOPED_TRACE(testing::Message() << "ranks " << ranks << " tied " << tied);
      expect_finite_differences_agree(tiny_model(tied), row, LayoutKind::document_zigzag, ranks);
    }
  }
}

TEST(Model, LossAndGradientsDoNotDependOnRanksOrLayout) {
  // 130 rows: also more ranks than tokens in some documents.
  const Row row = make_row({1, 9, 77, 2, 3, 38});
  for (const bool tied : {true, false}) {
    const Gradients single = run(tiny_model(tied), row, LayoutKind::contiguous, 1);
    for (const LayoutKind kind : {LayoutKind::contiguous, LayoutKind::zigzag, LayoutKind::striped, LayoutKind::document_zigzag}) {
      for (const int ranks : {1, 2, 3, 4}) {
        SCOPED_TRACE(testing::Message() << to_string(kind) << " ranks " << ranks << " tied " << tied);
        const Gradients distributed = run(tiny_model(tied), row, kind, ranks);
        EXPECT_NEAR(distributed.loss, single.loss, 1e-11 * single.loss);
        EXPECT_LT(largest_difference(distributed.values, single.values), 1e-11 * std::max(1.0, largest(single.values)));
      }
    }
  }
}

TEST(Model, RefusesAConfigurationThatCannotBeComputed) {
  const auto refusal = [](const auto& change) -> std::string {
    ModelConfig config = tiny_model(true);
    change(config);
    try {
      Model(config, DType::f64, Memory());
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "accepted";
  };
  const auto expect = [&](std::string_view part, const auto& change) {
    const std::string message = refusal(change);
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  expect("model.pattern", [](ModelConfig& model) { model.pattern = ""; });
  expect("model.pattern", [](ModelConfig& model) { model.pattern = "X"; });
  expect("model.gate", [](ModelConfig& model) { model.pattern = "L"; });
  expect("model.window", [](ModelConfig& model) { model.pattern = "W"; });
  expect("model.layers", [](ModelConfig& model) { model.layers = -1; });
  expect("model.norm_epsilon", [](ModelConfig& model) { model.norm_epsilon = -1; });
  expect("model.rope_scaling", [](ModelConfig& model) { model.rope_scaling = "ntk"; });
}

TEST(Model, RepeatsBitForBit) {
  const Row row = make_row({1, 9, 77, 2, 38});
  for (const int ranks : {1, 3}) {
    const Gradients first = run(tiny_model(true), row, LayoutKind::zigzag, ranks),
                    second = run(tiny_model(true), row, LayoutKind::zigzag, ranks);
    EXPECT_EQ(first.loss, second.loss);
    EXPECT_EQ(first.values, second.values);
  }
}

TEST(Model, KeptHiddenValuesGiveTheSameBits) {
  for (const std::initializer_list<std::int64_t> lengths : {std::initializer_list<std::int64_t>{1, 9, 2300, 2, 38}, {2}}) {
    const Row row = make_row(lengths);
    for (const int ranks : {1, 3}) {
      const Gradients again = run(tiny_model(true), row, LayoutKind::zigzag, ranks),
                      kept = run(tiny_model(true), row, LayoutKind::zigzag, ranks, true, {}, true);
      EXPECT_EQ(kept.loss, again.loss);
      EXPECT_EQ(kept.values, again.values);
    }
  }
}

/// What is asked of the other ranks, in the order in which it is; and what comes of it.
TEST(Model, WeightsAreFetchedBeforeTheirUseAndGradientsTakenWhenTheyAreComplete) {
  const Row row = make_row({1, 9, 37});
  const Batch batch = shard_row(row.tokens, row.cu_seqlens, LayoutKind::contiguous, 1, 0);
  const Stream stream;
  const Memory memory;
  for (const bool tied : {true, false}) {
    ModelConfig config = tiny_model(tied);
    config.layers = 3;
    Model whole(config, DType::f64, memory), parts(config, DType::f64, memory, {.gradients = false, .weights = false});
    fill_weights(whole, 8);
    whole.plan(batch, {});
    parts.plan(batch, {});
    const Tensor taken({parts.parameters().elements()}, DType::f64, memory);
    std::string order;
    const auto of = [&](std::size_t section, TensorView flat) {
      const Section& part = parts.parameters().sections()[section];
      return flat.slice(0, part.begin, part.elements);
    };
    const SectionExchange exchange = {.fetch =
                                          [&](std::size_t section, TensorView weights) {
                                            order += " fetch " + std::to_string(section);
                                            copy(of(section, whole.weights()), weights);
                                          },
                                      .take =
                                          [&](std::size_t section, ConstTensorView gradients) {
                                            order += " take " + std::to_string(section);
                                            copy(gradients, of(section, taken));
                                          }};
    const std::string expected = " fetch 0 fetch 1 fetch 2 fetch 3 fetch 4 take 4 take 3 fetch 2 take 2 fetch 1 take 1 take 0";
    const double loss = whole.loss_and_gradients(stream);
    for (int batches = 0; batches < 2; ++batches) {
      order.clear();
      EXPECT_EQ(parts.loss_and_gradients(stream, exchange), loss);
      EXPECT_EQ(order, expected);
      EXPECT_TRUE(std::ranges::equal(taken.view().span<double>(), whole.gradients().span<double>()));
    }
    order.clear();
    parts.stand_by(stream, exchange);
    EXPECT_EQ(order, expected);
    EXPECT_EQ(std::ranges::count(taken.view().span<double>(), 0.0), parts.parameters().elements());
  }
}

TEST(Model, RowsShorterThanTheRanksAndBelowEarlierOnesWork) {
  const Row row = make_row({2});
  const Gradients single = run(tiny_model(true), row, LayoutKind::contiguous, 1),
                  many = run(tiny_model(true), row, LayoutKind::contiguous, 4);
  EXPECT_NEAR(many.loss, single.loss, 1e-11);
  EXPECT_LT(largest_difference(many.values, single.values), 1e-11);
}

/// Peak bytes above what the model itself holds, largest over ranks.
std::int64_t activation_bytes(const Row& row, int ranks, bool keeps_hidden = false) {
  std::atomic<std::int64_t> largest_peak{0};
  comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
    const Stream stream([communicator] { communicator.progress(); });
    const Memory memory;
    Model model(tiny_model(true), DType::f32, memory, {.hidden = keeps_hidden});
    fill_zero(model.weights());
    const auto before = static_cast<std::int64_t>(memory.account().current_bytes());
    const Batch batch = shard_row(row.tokens, row.cu_seqlens, LayoutKind::document_zigzag, communicator.size(), communicator.rank());
    model.plan(batch, {.communicator = communicator});
    model.loss_and_gradients(stream);
    const std::int64_t peak = static_cast<std::int64_t>(memory.account().peak_bytes()) - before;
    for (std::int64_t seen = largest_peak; seen < peak && !largest_peak.compare_exchange_weak(seen, peak);) {
    }
  });
  return largest_peak;
}

TEST(Model, ActivationMemoryFallsWithTheRanks) {
  Row row{std::vector<std::int32_t>(24 * 512, 'x'), {0}};
  for (int document = 0; document < 24; ++document) row.cu_seqlens.push_back(row.cu_seqlens.back() + 512);
  const std::int64_t one = activation_bytes(row, 1), two = activation_bytes(row, 2), four = activation_bytes(row, 4);
  RecordProperty("bytes_1", static_cast<int>(one));
  RecordProperty("bytes_2", static_cast<int>(two));
  RecordProperty("bytes_4", static_cast<int>(four));
  EXPECT_LT(static_cast<double>(two), 0.65 * static_cast<double>(one));
  EXPECT_LT(static_cast<double>(four), 0.65 * static_cast<double>(two));
  // Gate and up of both layers and 12,288 rows, less the tile of 1,024 rows that all layers share.
  EXPECT_EQ(activation_bytes(row, 1, true) - one, 2 * 24 * 4 * (2 * 12288 - 1024));
}

TEST(Model, FlopsCountMatricesAndTheTrueMaskArea) {
  const ModelConfig config = tiny_model(true);
  const Memory memory;
  const Model model(config, DType::f32, memory);
  const Row row = make_row({4, 6});
  const Batch batch = shard_row(row.tokens, row.cu_seqlens, LayoutKind::contiguous, 1, 0);
  // Per layer: q, o 16x16; k, v 8x16; gate, up, down 24x16. Head 256x16. Area: 4*5/2 + 6*7/2.
  const double matrices = 2 * (2 * 256 + 2 * 128 + 3 * 384) + 256 * 16;
  EXPECT_DOUBLE_EQ(model.flops(batch), 6 * matrices * 10 + 14.0 * 2 * 16 * 31);
}

}  // namespace
}  // namespace periplus::train
