#include "parallel/train/model/mixer.h"

#include <map>

#include "runtime/error.h"
#include "tests/parallel/train/model/model_runs.h"

namespace periplus::train {
namespace {

ModelConfig hybrid(std::string pattern, std::string gate = {}) {
  ModelConfig model{.layers = std::ssize(pattern), .hidden = 12, .heads = 2, .kv_heads = 1, .head_size = 4, .ffn = 16, .vocabulary = 256};
  if (pattern.find('W') != std::string::npos) model.window = 5;
  model.pattern = std::move(pattern);
  model.gate = std::move(gate);
  return model;
}

/// Every mixer by itself, and hybrids of several.
std::vector<ModelConfig> models() {
  std::vector<ModelConfig> all = {hybrid("D"), hybrid("W"), hybrid("SD")};
  for (const char* gate : {"basic", "retention", "lightning", "gla", "mamba2"}) {
    for (const char* pattern : {"SL", "SLLL", "SWLD"}) all.push_back(hybrid(pattern, gate));
  }
  for (const char* pattern : {"S", "SW"}) {
    all.push_back(hybrid(pattern));
    all.back().qk_norm = true;
    all.push_back(hybrid(pattern));
    all.back().qkv_bias = true;
  }
  all.push_back(hybrid("SD"));
  all.back().qk_norm = all.back().qkv_bias = true;
  return all;
}

std::string name_of(const ModelConfig& model) {
  return model.pattern + " " + model.gate + (model.qk_norm ? " qk_norm" : "") + (model.qkv_bias ? " qkv_bias" : "");
}

using Named = std::map<std::string, std::span<double>>;

Named by_name(const ModelConfig& config, std::span<double> weights) {
  const ParameterTable table(config);
  Named named;
  for (const Parameter& parameter : table.all()) {
    named[parameter.name] = weights.subspan(static_cast<std::size_t>(parameter.offset), static_cast<std::size_t>(parameter.elements));
  }
  return named;
}

void scale_norms(const Named& weights, double factor) {
  for (const auto& [name, values] : weights) {
    if (!name.ends_with("norm.weight")) continue;
    for (double& value : values) value *= factor;
  }
}

/// Documents of one token, short ones, and one that spans all ranks.
Row mixed_row() { return make_row({1, 9, 37, 2, 1, 26}); }

TEST(Mixers, LossAndGradientsDoNotDependOnRanksOrLayout) {
  const Row row = mixed_row();
  for (const ModelConfig& model : models()) {
    const Gradients single = run(model, row, LayoutKind::contiguous, 1);
    for (const LayoutKind kind : {LayoutKind::contiguous, LayoutKind::zigzag}) {
      for (const int ranks : {1, 2, 3, 4}) {
        SCOPED_TRACE(testing::Message() << name_of(model) << " " << to_string(kind) << " ranks " << ranks);
        const Gradients distributed = run(model, row, kind, ranks);
        EXPECT_NEAR(distributed.loss, single.loss, 1e-10 * single.loss);
        EXPECT_LT(largest_difference(distributed.values, single.values), 1e-10 * std::max(1.0, largest(single.values)));
      }
    }
  }
}

TEST(Mixers, GradientsOfEveryTensorMatchFiniteDifferences) {
  const Row row = make_row({1, 9, 17, 2});
  for (const ModelConfig& model : models()) {
    if (model.layers > 2 && model.pattern != "SWLD") continue;  // nothing new
    SCOPED_TRACE(name_of(model));
    expect_finite_differences_agree(model, row, LayoutKind::zigzag, 2);
  }
}

TEST(Mixers, DocumentsOfARowAreAsIfAlone) {
  const Row together = make_row({9, 23});
  Row second{{together.tokens.begin() + 9, together.tokens.end()}, {0, 23}},
      first{{together.tokens.begin(), together.tokens.begin() + 9}, {0, 9}};
  for (const ModelConfig& model : models()) {
    SCOPED_TRACE(name_of(model));
    const double apart = run(model, first, LayoutKind::contiguous, 1).loss * 8 + run(model, second, LayoutKind::contiguous, 1).loss * 22;
    EXPECT_NEAR(run(model, together, LayoutKind::zigzag, 3).loss * 30, apart, 1e-9);
  }
}

/// Far above all squares, it alone is what norms divide by: four times of it, and twice the gains, are the same model.
TEST(Mixers, EveryNormHasTheEpsilonOfTheModel) {
  for (ModelConfig model : models()) {
    SCOPED_TRACE(name_of(model));
    const auto loss = [&](double epsilon) {
      model.norm_epsilon = epsilon;
      const auto change = [&](std::span<double> weights) { scale_norms(by_name(model, weights), std::sqrt(epsilon)); };
      return run(model, mixed_row(), LayoutKind::contiguous, 1, false, change).loss;
    };
    EXPECT_NEAR(loss(4e8), loss(1e8), 1e-6);
  }
}

/// Such norms are matrices. Then gains of heads, and biases as the column of a channel that is always 1, can be put into projections.
TEST(Mixers, GainsAndBiasesAreOfTheHeadsTheyAreNamedFor) {
  for (const char* pattern : {"S", "W"}) {
    ModelConfig model = hybrid(pattern);
    model.norm_epsilon = 1e8;
    const auto prepare = [&](std::span<double> weights) {
      const Named named = by_name(model, weights);
      scale_norms(named, 1e4);
      named.at("model.layers.0.input_layernorm.weight")[0] = 1e4;
      const auto columns = static_cast<std::size_t>(model.hidden);
      for (const auto& [name, values] : named) {
        const bool projection = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight") || name.ends_with("v_proj.weight");
        if (!projection && name != "model.embed_tokens.weight") continue;
        for (std::size_t i = 0; i < values.size(); i += columns) values[i] = projection ? 0 : 1;
      }
      return named;
    };
    std::map<std::string, std::vector<double>> added;
    model.qk_norm = model.qkv_bias = true;
    const double apart = run(model, mixed_row(), LayoutKind::contiguous, 1, false, [&](std::span<double> weights) {
                           for (const auto& [name, values] : prepare(weights)) added[name].assign(values.begin(), values.end());
                         }).loss;
    model.qk_norm = model.qkv_bias = false;
    const auto put_in = [&](std::span<double> weights) {
      const Named named = prepare(weights);
      for (const std::string role : {"q", "k", "v"}) {
        const std::string of = "model.layers.0.self_attn." + role;
        const std::span<double> projection = named.at(of + "_proj.weight");
        for (std::size_t i = 0; i < projection.size(); ++i) {
          const std::size_t row = i / static_cast<std::size_t>(model.hidden), channel = row % static_cast<std::size_t>(model.head_size);
          if (i % static_cast<std::size_t>(model.hidden) == 0) projection[i] = added.at(of + "_proj.bias")[row];
          if (role != "v") projection[i] *= added.at(of + "_norm.weight")[channel] / 1e4;
        }
      }
    };
    EXPECT_NEAR(run(model, mixed_row(), LayoutKind::contiguous, 1, false, put_in).loss, apart, 1e-6);
    EXPECT_GT(std::abs(run(model, mixed_row(), LayoutKind::contiguous, 1, false, prepare).loss - apart), 1e-3);
  }
}

TEST(Mixers, RepeatBitForBit) {
  for (const ModelConfig& model : models()) {
    const Gradients first = run(model, mixed_row(), LayoutKind::zigzag, 3), second = run(model, mixed_row(), LayoutKind::zigzag, 3);
    EXPECT_EQ(first.loss, second.loss);
    EXPECT_EQ(first.values, second.values) << name_of(model);
  }
}

/// The same, with batches of other sizes before: tensors are kept from step to step.
TEST(Mixers, EarlierBatchesLeaveNoTrace) {
  for (const ModelConfig& config : models()) {
    SCOPED_TRACE(name_of(config));
    const Stream stream;
    Model model(config, DType::f64, Memory());
    fill_weights(model, 8);
    std::vector<double> losses;
    for (const std::int64_t length : {20, 31, 5, 20}) {
      const Row row = make_row({length});
      const Batch batch = shard_row(row.tokens, row.cu_seqlens, LayoutKind::contiguous, 1, 0);
      model.plan(batch, {.communicator = comm::Communicator()});
      model.zero_gradients(stream);
      losses.push_back(model.loss_and_gradients(stream) / static_cast<double>(batch.valid_labels));
    }
    EXPECT_EQ(losses.front(), losses.back());
    const Gradients fresh = run(config, make_row({20}), LayoutKind::contiguous, 1);
    EXPECT_EQ(losses.back(), fresh.loss);
    const auto gradients = model.gradients().span<double>();
    EXPECT_EQ(std::vector<double>(gradients.begin(), gradients.end()), fresh.values);
  }
}

TEST(Mixers, ParametersOfEachKindAreNamedAndStartAsTheyShould) {
  const ParameterTable table(hybrid("SLD", "mamba2"));
  std::map<std::string, const Parameter*> by_name;
  for (const Parameter& parameter : table.all()) by_name[parameter.name] = &parameter;
  ASSERT_TRUE(by_name.contains("model.layers.0.self_attn.q_proj.weight"));
  ASSERT_TRUE(by_name.contains("model.layers.1.mixer.in_proj_xbc.weight"));
  ASSERT_TRUE(by_name.contains("model.layers.2.linear_attn.dt_bias"));
  const Parameter& taps = *by_name.at("model.layers.1.mixer.conv1d.weight");
  EXPECT_EQ(taps.shape, (Extents{2 * 4 + 2 * 4, 1, 4}));
  EXPECT_TRUE(taps.decays());
  for (const char* name : {"model.layers.1.mixer.A_log", "model.layers.2.linear_attn.A_log"}) {
    EXPECT_FALSE(by_name.at(name)->decays());
    for (const double value : start_values(*by_name.at(name), 1)) {
      EXPECT_GE(value, 0);
      EXPECT_LE(value, std::log(16));
    }
  }
  for (const double value : start_values(*by_name.at("model.layers.2.linear_attn.dt_bias"), 1)) {
    const double step = std::log1p(std::exp(value));
    EXPECT_GE(step, 0.0009999);
    EXPECT_LE(step, 0.1000001);
  }
  EXPECT_EQ(start_values(*by_name.at("model.layers.1.mixer.D"), 1), std::vector<double>(2, 1));
  ModelConfig biased = hybrid("S");
  biased.qkv_bias = true;
  const ParameterTable of_biased(biased);
  for (const Parameter& parameter : of_biased.all()) {
    if (!parameter.name.ends_with("bias")) continue;
    EXPECT_FALSE(parameter.decays());
    EXPECT_EQ(start_values(parameter, 1), std::vector<double>(static_cast<std::size_t>(parameter.elements)));
  }
}

TEST(Mixers, FlopsCountMatricesTapsAndStates) {
  const Row row = make_row({4, 6});
  const Batch batch = shard_row(row.tokens, row.cu_seqlens, LayoutKind::contiguous, 1, 0);
  const Memory memory;
  const Model model(hybrid("WD"), DType::f32, memory);
  // Heads 2 of 4: q, o 8x12, k, v 4x12; z, o 8x12, qkv 24x12, a, b 2x12, taps 24x4; gate, up, down 16x12 twice; head 256x12.
  const double matrices = 2 * 96 + 2 * 48 + 2 * 96 + 288 + 2 * 24 + 96 + 6 * 192 + 256 * 12;
  // A window of five back hides nothing from documents of four and six tokens: 4*5/2 + 6*7/2 pairs.
  EXPECT_DOUBLE_EQ(model.flops(batch), 6 * matrices * 10 + 14.0 * 8 * 31 + 18.0 * 10 * 8 * 4);
}

TEST(Mixers, NarrowTypesFollowF64) {
  const Row row = make_row({40, 24});
  const Batch batch = shard_row(row.tokens, row.cu_seqlens, LayoutKind::contiguous, 1, 0);
  const Stream stream;
  for (ModelConfig config : models()) {
    config.head_size = 16;  // the norm of a head of few channels turns small errors into large ones
    SCOPED_TRACE(name_of(config));
    const Gradients expected = run(config, row, LayoutKind::contiguous, 1);
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Model model(config, dtype, Memory()), wide(config, DType::f64, Memory());
      fill_weights(wide, 8);
      copy(wide.weights(), model.weights());
      model.plan(batch, {.communicator = comm::Communicator()});
      const double loss = model.loss_and_gradients(stream) / static_cast<double>(batch.valid_labels);
      EXPECT_NEAR(loss, expected.loss, (dtype == DType::bf16 ? 1e-2 : 1e-5) * expected.loss);
      double error = 0, size = 0;
      const auto gradients = model.gradients().span<float>();
      for (std::size_t i = 0; i < gradients.size(); ++i) {
        const double difference = static_cast<double>(gradients[i]) - expected.values[i];
        error += difference * difference;
        size += expected.values[i] * expected.values[i];
      }
      EXPECT_LT(std::sqrt(error / size), dtype == DType::bf16 ? 0.1 : 1e-4);
    }
  }
}

}  // namespace
}  // namespace periplus::train
