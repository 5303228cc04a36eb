#include "parallel/train/optimizer.h"

#include <cmath>
#include <limits>
#include <numeric>

#include <gtest/gtest.h>

#include "parallel/train/random.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/error.h"
#include "tests/parallel/train/start_values.h"

namespace periplus::train {
namespace {

ModelConfig tiny_model() { return {.layers = 1, .hidden = 6, .heads = 2, .kv_heads = 1, .head_size = 2, .ffn = 5, .vocabulary = 256}; }

/// Multiples of 1/64: sums over ranks are exact in any order.
float gradient_of(int contribution, std::int64_t element, std::int64_t step) {
  std::mt19937_64 engine = engine_for(static_cast<std::uint64_t>(contribution * 1000 + step), std::to_string(element % 97));
  return std::floor(static_cast<float>(uniform(engine)) * 64.0F - 32.0F) / 64.0F;
}

std::vector<float> to_vector(const TensorView& tensor) { return {tensor.span<float>().begin(), tensor.span<float>().end()}; }

struct Outcome {
  std::vector<float> weights;
  std::vector<double> norms;
};

/// Three contributions to the gradient, spread over the ranks; three updates.
Outcome optimise(int ranks) {
  constexpr int kContributions = 3;
  Outcome outcome;
  comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
    const Stream stream;
    const Memory memory;
    const ParameterTable table(tiny_model());
    ShardedAdamw optimizer(table, DType::f32, communicator, memory);
    optimizer.initialise(9, stream);
    const Tensor weights({table.elements()}, DType::f32, memory);
    optimizer.publish(weights, stream);
    for (std::int64_t step = 1; step <= 3; ++step) {
      const Tensor gradients = Tensor::zeros({table.elements()}, DType::f32, memory);
      const auto values = gradients.view().span<float>();
      for (int contribution = communicator.rank(); contribution < kContributions; contribution += communicator.size()) {
        for (std::size_t i = 0; i < values.size(); ++i) values[i] += gradient_of(contribution, static_cast<std::int64_t>(i), step);
      }
      optimizer.sum(gradients, stream);
      const double norm = optimizer.norm(stream);
      if (communicator.rank() == 0) outcome.norms.push_back(norm);
      optimizer.update(OptimizerConfig{}, 1e-2, 0.5, step, weights, stream);
    }
    const auto result = weights.view().span<float>();
    if (communicator.rank() == communicator.size() - 1) outcome.weights.assign(result.begin(), result.end());
  });
  return outcome;
}

TEST(ShardedAdamw, GivesOnWhatStartValuesThrow) {
  const ParameterTable table(tiny_model());
  ShardedAdamw optimizer(table, DType::f32, comm::Communicator(), Memory());
  const auto fail = [](const Parameter& parameter, std::int64_t, TensorView) { throw InvalidArgument(parameter.name); };
  EXPECT_THROW(optimizer.initialise(fail, Stream()), InvalidArgument);
}

TEST(ShardedAdamw, EqualsTheUnshardedUpdate) {
  const Outcome single = optimise(1);
  for (const int ranks : {2, 3, 4}) {
    const Outcome sharded = optimise(ranks);
    EXPECT_EQ(sharded.weights, single.weights) << ranks;
    for (std::size_t i = 0; i < single.norms.size(); ++i) EXPECT_NEAR(sharded.norms[i], single.norms[i], 1e-12 * single.norms[i]);
  }
}

TEST(ShardedAdamw, SectionsOfSeveralBatchesAddUp) {
  const ParameterTable table(tiny_model());
  for (const int ranks : {1, 2, 3}) {
    comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
      const Stream stream;
      const Memory memory;
      ShardedAdamw at_once(table, DType::f32, communicator, memory), by_section(table, DType::f32, communicator, memory);
      const Tensor gradients({table.elements()}, DType::f32, memory);
      const auto values = gradients.view().span<float>();
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = gradient_of(communicator.rank(), static_cast<std::int64_t>(i), 1);
      for (const kernels::Update update : {kernels::Update::overwrite, kernels::Update::accumulate}) {
        for (std::size_t section = table.sections().size(); section-- > 0;) {
          const Section& of = table.sections()[section];
          by_section.sum(section, gradients.view().slice(0, of.begin, of.elements), update, stream);
        }
      }
      for (float& value : values) value *= 2;
      at_once.sum(gradients, stream);
      EXPECT_EQ(to_vector(by_section.gradient()), to_vector(at_once.gradient()));
      EXPECT_EQ(by_section.norm(stream), at_once.norm(stream));
    });
  }
}

TEST(ShardedAdamw, NormsOfOneDimensionDoNotDecay) {
  const Stream stream;
  const Memory memory;
  const ParameterTable table(tiny_model());
  ShardedAdamw optimizer(table, DType::f32, {}, memory);
  optimizer.initialise(9, stream);
  const Tensor weights({table.elements()}, DType::f32, memory);
  optimizer.publish(weights, stream);
  const std::vector<float> before(weights.view().span<float>().begin(), weights.view().span<float>().end());
  optimizer.sum(Tensor::zeros({table.elements()}, DType::f32, memory), stream);
  optimizer.update({.weight_decay = 0.5}, 0.1, 1, 1, weights, stream);
  for (const Parameter& parameter : table.all()) {
    const auto first = static_cast<std::size_t>(parameter.offset);
    const float expected = parameter.shape.dims > 1 ? before[first] * (1.0F - 0.05F) : before[first];
    EXPECT_NEAR(weights.view().span<float>()[first], expected, 1e-6F * std::abs(expected)) << parameter.name;
  }
}

TEST(ShardedAdamw, ANonFiniteGradientIsNamedOnEveryRank) {
  const ParameterTable table(tiny_model());
  std::atomic<int> named{0};
  comm::run_thread_ranks(3, [&](comm::Communicator communicator) {
    const Stream stream;
    const Memory memory;
    ShardedAdamw optimizer(table, DType::f32, communicator, memory);
    const Tensor gradients = Tensor::zeros({table.elements()}, DType::f32, memory);
    const Parameter& broken = table.all()[table.all().size() - 3];
    if (communicator.rank() == 1)
      gradients.view().span<float>()[static_cast<std::size_t>(broken.offset)] = std::numeric_limits<float>::infinity();
    optimizer.sum(gradients, stream);
    EXPECT_FALSE(std::isfinite(optimizer.norm(stream)));
    try {
      optimizer.throw_not_finite(17, stream);
    } catch (const InvalidArgument& error) {
      const std::string message = error.what();
      if (message.find("step 17") != std::string::npos && message.find(broken.name) != std::string::npos) ++named;
    }
  });
  EXPECT_EQ(named, 3);
}

TEST(ShardedAdamw, RefusesBetasThatAreNotTwo) {
  const ParameterTable table(tiny_model());
  ShardedAdamw optimizer(table, DType::f32, {}, Memory());
  const Tensor weights({table.elements()}, DType::f32, Memory());
  for (const std::vector<double>& betas : {std::vector<double>{}, {0.9}, {0.9, 0.95, 0.99}}) {
    OptimizerConfig config;
    config.betas = betas;
    EXPECT_THROW(optimizer.update(config, 1e-2, 1, 1, weights, Stream()), InvalidArgument);
  }
}

TEST(Shards, CoverEverySectionEvenly) {
  const std::vector<Section> sections = {{0, 7}, {7, 1}, {8, 100}, {108, 101}};
  for (const int ranks : {1, 2, 3, 8}) {
    const Shards shards(sections, ranks);
    std::vector<int> owners(209);
    for (int rank = 0; rank < ranks; ++rank) {
      std::int64_t offset = 0;
      for (const Shards::Part& part : shards.of_rank(rank)) {
        EXPECT_EQ(part.offset, offset);
        offset += part.count;
        for (std::int64_t i = 0; i < part.count; ++i) ++owners[static_cast<std::size_t>(part.begin + i)];
      }
      EXPECT_EQ(shards.elements(rank), offset);
    }
    EXPECT_EQ(owners, std::vector<int>(209, 1));
    for (std::size_t section = 0; section < sections.size(); ++section) {
      const std::vector<std::int64_t> counts = shards.counts(section);
      EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}), sections[section].elements);
      EXPECT_LE(*std::max_element(counts.begin(), counts.end()) - *std::min_element(counts.begin(), counts.end()), 1);
    }
    EXPECT_EQ(shards.largest_part(), (101 + ranks - 1) / ranks);
  }
}

TEST(Shards, KnowTheOwnersOfATensor) {
  const std::vector<Section> sections = {{0, 7}, {7, 1}, {8, 100}, {108, 101}};
  const Shards shards(sections, 3);
  std::int64_t next = 20;
  for (const Shards::Part& owner : shards.owners(20, 60)) {
    EXPECT_EQ(owner.begin, next);
    const Shards::Part& whole = shards.part(2, owner.rank);
    EXPECT_EQ(owner.offset - whole.offset, owner.begin - whole.begin);
    EXPECT_GT(owner.count, 0);
    next += owner.count;
  }
  EXPECT_EQ(next, 80);
  EXPECT_EQ(shards.owners(20, 60).size(), 3u);
  ASSERT_EQ(shards.owners(7, 1).size(), 1u);
  EXPECT_EQ(shards.owners(7, 1).front().rank, 2);
}

TEST(LearningRate, WarmsUpThenFallsToATenth) {
  const OptimizerConfig config{.learning_rate = 2.0, .warmup_steps = 4};
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 1, 20), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 4, 20), 2.0);
  EXPECT_NEAR(learning_rate_at(config, 12, 20), 0.5 * (2.0 + 0.2), 1e-12);
  EXPECT_NEAR(learning_rate_at(config, 20, 20), 0.2, 1e-12);
  for (std::int64_t step = 5; step <= 20; ++step) EXPECT_LT(learning_rate_at(config, step, 20), learning_rate_at(config, step - 1, 20));
  EXPECT_DOUBLE_EQ(learning_rate_at({.learning_rate = 1, .warmup_steps = 0}, 1, 1), 0.1);
}

TEST(Parameters, HaveHuggingFaceNamesAndStartIndependentlyOfEachOther) {
  const ParameterTable tied(tiny_model());
  ModelConfig untied_model = tiny_model();
  untied_model.tie_embeddings = false;
  const ParameterTable untied(untied_model);
  std::vector<std::string> names;
  for (const Parameter& parameter : untied.all()) names.push_back(parameter.name);
  EXPECT_EQ(names, (std::vector<std::string>{"model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
                                             "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
                                             "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.o_proj.weight",
                                             "model.layers.0.post_attention_layernorm.weight", "model.layers.0.mlp.gate_proj.weight",
                                             "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight",
                                             "model.norm.weight", "lm_head.weight"}));
  EXPECT_EQ(tied.matmul_elements(), untied.matmul_elements());
  EXPECT_EQ(untied.elements() - tied.elements(), 256 * 6);
  EXPECT_EQ(start_values(tied.all()[2], 4), start_values(untied.all()[2], 4));
  EXPECT_NE(start_values(tied.all()[2], 4), start_values(tied.all()[2], 5));
  const std::vector<double> embedding = start_values(tied.all()[0], 4);
  const auto expect_part = [&](std::int64_t first, std::int64_t count) {
    EXPECT_EQ(start_values(tied.all()[0], 4, first, count),
              std::vector<double>(embedding.begin() + first, embedding.begin() + first + count));
  };
  expect_part(7, 100), expect_part(1535, 1), expect_part(12, 0);
  const double squares = std::inner_product(embedding.begin(), embedding.end(), embedding.begin(), 0.0);
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(embedding.size())), 0.02, 0.002);
}

}  // namespace
}  // namespace periplus::train
