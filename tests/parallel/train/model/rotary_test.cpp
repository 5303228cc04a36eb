#include "parallel/train/model/rotary.h"

#include <cmath>
#include <utility>

#include <gtest/gtest.h>

#include "kernels/transformer.h"

namespace periplus::train {
namespace {

/// Of transformers 4.45, which computes in f32.
void expect_frequencies(const ModelConfig& model, const std::vector<std::pair<std::size_t, double>>& expected) {
  const std::vector<double> frequencies = rotary_of(model).frequencies;
  ASSERT_EQ(static_cast<std::int64_t>(frequencies.size()), model.head_size / 2);
  for (const auto& [pair, frequency] : expected) EXPECT_NEAR(frequencies[pair] / frequency, 1, 2e-6) << pair;
}

TEST(Rotary, WithoutScalingIsThatOfTheBase) {
  const ModelConfig model{.head_size = 64, .rope_theta = 500000};
  EXPECT_EQ(rotary_of(model).frequencies, kernels::rope_frequencies(500000, 64));
  EXPECT_EQ(rotary_of(model).score_factor, 1);
}

TEST(Rotary, LinearDividesAll) {
  const ModelConfig model{.head_size = 16, .rope_scaling = "linear", .rope_factor = 4};
  const std::vector<double> plain = kernels::rope_frequencies(10000, 16), scaled = rotary_of(model).frequencies;
  for (std::size_t m = 0; m < plain.size(); ++m) EXPECT_DOUBLE_EQ(scaled[m], plain[m] / 4);
}

TEST(Rotary, Llama3LowersWhatTurnsSeldom) {
  const ModelConfig model{
      .head_size = 128, .rope_theta = 500000, .rope_scaling = "llama3", .rope_factor = 8, .rope_original_context = 8192};
  expect_frequencies(model, {{0, 1},
                             {20, 0.01656044},
                             {28, 0.003211446},
                             {29, 0.002166571},
                             {30, 0.001371894},
                             {31, 0.0008567515},
                             {32, 0.000524846},
                             {34, 0.0001785078},
                             {36, 7.784655e-05},
                             {63, 3.068926e-07}});
  EXPECT_EQ(rotary_of(model).score_factor, 1);
}

TEST(Rotary, YarnLowersByPairAndSharpensScores) {
  const ModelConfig model{.head_size = 128, .rope_scaling = "yarn", .rope_factor = 16, .rope_original_context = 4096};
  expect_frequencies(model, {{0, 1},
                             {20, 0.05623413},
                             {24, 0.0270618},
                             {28, 0.01265314},
                             {32, 0.005673077},
                             {40, 0.000881789},
                             {48, 6.25e-05},
                             {63, 7.217387e-06}});
  EXPECT_NEAR(rotary_of(model).score_factor, 1.2772588722239782 * 1.2772588722239782, 1e-12);
  ModelConfig narrow{.head_size = 64, .rope_scaling = "yarn", .rope_factor = 4, .rope_original_context = 2048, .rope_turns = {2, 16}};
  expect_frequencies(narrow, {{0, 1}, {10, 0.05623413}, {20, 0.0007905695}, {24, 0.00025}, {31, 3.333804e-05}});
  // The whole ramp between two neighbours.
  narrow.rope_turns = {5, 5.001};
  for (const double frequency : rotary_of(narrow).frequencies) EXPECT_TRUE(std::isfinite(frequency) && frequency > 0);
}

}  // namespace
}  // namespace periplus::train
