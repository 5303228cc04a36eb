#include "parallel/train/model.h"

#include <algorithm>
#include <cmath>
#include <random>

#include <gtest/gtest.h>

#include "parallel/train/random.h"
#include "runtime/comm/thread_transport.h"
#include "tests/parallel/train/scenario.h"

namespace periplus::train {
namespace {

struct Gradients {
  double loss = 0;  // mean over all labels
  std::vector<double> values;
};

/// A packed row with documents of one byte, odd lengths and one that spans all ranks.
struct Row {
  std::vector<std::uint8_t> bytes;
  std::vector<std::int64_t> cu_seqlens;
};

Row make_row(std::initializer_list<std::int64_t> lengths) {
  Row row{{}, {0}};
  std::mt19937_64 engine(7);
  for (const std::int64_t length : lengths) {
    row.cu_seqlens.push_back(row.cu_seqlens.back() + length);
    for (std::int64_t i = 0; i < length; ++i) row.bytes.push_back(static_cast<std::uint8_t>(engine() % 256));
  }
  return row;
}

ModelConfig tiny_model(bool tied) {
  return {.layers = 2, .hidden = 16, .heads = 4, .kv_heads = 2, .head_size = 4, .ffn = 24, .vocabulary = 256, .tie_embeddings = tied};
}

void fill_weights(Model& model, double factor) {
  const auto weights = model.weights().span<double>();
  for (const Parameter& parameter : model.parameters().all()) {
    std::vector<double> values = initial_values(parameter, 3);
    std::mt19937_64 engine = engine_for(5, parameter.name);
    // Larger than the usual start, and norms away from one, so that every derivative is well above rounding.
    for (double& value : values) value = parameter.deviation == 0 ? value + 0.3 * normal(engine) : factor * value;
    std::copy(values.begin(), values.end(), weights.begin() + parameter.offset);
  }
}

/// Sum over ranks of what each rank computes with the same weights; `change` edits the weights beforehand.
Gradients run(const ModelConfig& config, const Row& row, LayoutKind kind, int ranks, bool backward = true,
              const std::function<void(std::span<double>)>& change = {}) {
  Gradients result;
  comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
    const Stream stream([communicator] { communicator.progress(); });
    const Memory memory;
    Model model(config, DType::f64, memory);
    fill_weights(model, 8);
    if (change) change(model.weights().span<double>());
    const Batch batch = shard_row(row.bytes, row.cu_seqlens, kind, communicator.size(), communicator.rank());
    DistributedAttention attention(model.attention_problem(batch), {}, communicator, memory);
    double loss = backward ? model.loss_and_gradients(batch, attention, stream) : model.loss(batch, attention, stream);
    communicator.all_reduce(TensorView(reinterpret_cast<std::byte*>(&loss), DType::f64, {1}), comm::Reduce::sum, stream);
    communicator.all_reduce(model.gradients(), comm::Reduce::sum, stream);
    if (communicator.rank() != 0) return;
    result.loss = loss / static_cast<double>(batch.valid_labels);
    const auto gradients = model.gradients().span<double>();
    result.values.assign(gradients.begin(), gradients.end());
  });
  return result;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

double largest(const std::vector<double>& a) {
  double value = 0;
  for (const double x : a) value = std::max(value, std::abs(x));
  return value;
}

/// Along a random direction of each tensor: touches every element of it at the price of two evaluations.
void expect_finite_differences_agree(const ModelConfig& config, const Row& row, int ranks) {
  const Gradients analytic = run(config, row, LayoutKind::document_zigzag, ranks);
  constexpr double kStep = 1e-5;
  const ParameterTable table(config);
  for (const Parameter& parameter : table.all()) {
    SCOPED_TRACE(parameter.name);
    std::mt19937_64 engine = engine_for(11, parameter.name);
    std::vector<double> direction(static_cast<std::size_t>(parameter.elements));
    for (double& value : direction) value = normal(engine);
    const auto shifted = [&](double step) {
      return run(config, row, LayoutKind::document_zigzag, ranks, false,
                 [&](std::span<double> weights) {
                   for (std::size_t i = 0; i < direction.size(); ++i)
                     weights[static_cast<std::size_t>(parameter.offset) + i] += step * direction[i];
                 })
          .loss;
    };
    const double numeric = (shifted(kStep) - shifted(-kStep)) / (2 * kStep);
    double expected = 0, scale = 0;
    for (std::size_t i = 0; i < direction.size(); ++i) {
      const double term = analytic.values[static_cast<std::size_t>(parameter.offset) + i] * direction[i];
      expected += term;
      scale += term * term;
    }
    EXPECT_GT(scale, 0);
    EXPECT_NEAR(numeric, expected, 2e-6 * std::sqrt(scale) + 1e-9);
  }
}

TEST(Model, GradientsOfEveryTensorMatchFiniteDifferences) {
  const Row row = make_row({1, 9, 37, 2, 16});
  for (const bool tied : {true, false}) {
    for (const int ranks : {1, 2, 3}) {
      SCOPED_TRACE(testing::Message() << "ranks " << ranks << " tied " << tied);
      expect_finite_differences_agree(tiny_model(tied), row, ranks);
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

TEST(Model, RepeatsBitForBit) {
  const Row row = make_row({1, 9, 77, 2, 38});
  for (const int ranks : {1, 3}) {
    const Gradients first = run(tiny_model(true), row, LayoutKind::zigzag, ranks),
                    second = run(tiny_model(true), row, LayoutKind::zigzag, ranks);
    EXPECT_EQ(first.loss, second.loss);
    EXPECT_EQ(first.values, second.values);
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
std::int64_t activation_bytes(const Row& row, int ranks) {
  std::atomic<std::int64_t> largest_peak{0};
  comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
    const Stream stream([communicator] { communicator.progress(); });
    const Memory memory;
    Model model(tiny_model(true), DType::f32, memory);
    fill_zero(model.weights());
    const auto before = static_cast<std::int64_t>(memory.account().current_bytes());
    const Batch batch = shard_row(row.bytes, row.cu_seqlens, LayoutKind::document_zigzag, communicator.size(), communicator.rank());
    DistributedAttention attention(model.attention_problem(batch), {}, communicator, memory);
    model.loss_and_gradients(batch, attention, stream);
    const std::int64_t peak = static_cast<std::int64_t>(memory.account().peak_bytes()) - before;
    for (std::int64_t seen = largest_peak; seen < peak && !largest_peak.compare_exchange_weak(seen, peak);) {
    }
  });
  return largest_peak;
}

TEST(Model, ActivationMemoryFallsWithTheRanks) {
  Row row{std::vector<std::uint8_t>(24 * 512, 'x'), {0}};
  for (int document = 0; document < 24; ++document) row.cu_seqlens.push_back(row.cu_seqlens.back() + 512);
  const std::int64_t one = activation_bytes(row, 1), two = activation_bytes(row, 2), four = activation_bytes(row, 4);
  RecordProperty("bytes_1", static_cast<int>(one));
  RecordProperty("bytes_2", static_cast<int>(two));
  RecordProperty("bytes_4", static_cast<int>(four));
  EXPECT_LT(static_cast<double>(two), 0.65 * static_cast<double>(one));
  EXPECT_LT(static_cast<double>(four), 0.65 * static_cast<double>(two));
}

TEST(Model, FlopsCountMatricesAndTheTrueMaskArea) {
  const ModelConfig config = tiny_model(true);
  const Memory memory;
  const Model model(config, DType::f32, memory);
  const Row row = make_row({4, 6});
  const Batch batch = shard_row(row.bytes, row.cu_seqlens, LayoutKind::contiguous, 1, 0);
  // Per layer: q, o 16x16; k, v 8x16; gate, up, down 24x16. Head 256x16. Area: 4*5/2 + 6*7/2.
  const double matrices = 2 * (2 * 256 + 2 * 128 + 3 * 384) + 256 * 16;
  EXPECT_DOUBLE_EQ(model.flops(batch), 6 * matrices * 10 + 14.0 * 2 * 16 * 31);
}

}  // namespace
}  // namespace periplus::train
