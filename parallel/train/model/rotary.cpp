#include "parallel/train/model/rotary.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/transformer.h"

namespace periplus::train {
namespace {

constexpr double kTurn = 2 * std::numbers::pi;

/// Share of a frequency that stays, by its turns in the original context.
double llama3_share(const ModelConfig& model, const std::vector<double>& turns, double frequency) {
  const double own = static_cast<double>(model.rope_original_context) * frequency / kTurn;
  return std::clamp((own - turns[0]) / (turns[1] - turns[0]), 0.0, 1.0);
}

/// The same by pair, whole pairs at both ends of the ramp.
double yarn_share(const ModelConfig& model, const std::vector<double>& turns, double pair) {
  const auto width = static_cast<double>(model.head_size);
  const auto pair_of = [&](double own) {  // that turns so often
    return width * std::log(static_cast<double>(model.rope_original_context) / (own * kTurn)) / (2 * std::log(model.rope_theta));
  };
  const double first = std::max(std::floor(pair_of(turns[1])), 0.0), last = std::min(std::ceil(pair_of(turns[0])), width - 1);
  return 1 - std::clamp((pair - first) / std::max(last - first, 1e-3), 0.0, 1.0);
}

}  // namespace

std::vector<double> default_rope_turns(const std::string& scaling) {
  return scaling == "llama3" ? std::vector<double>{1, 4} : scaling == "yarn" ? std::vector<double>{1, 32} : std::vector<double>();
}

Rotary rotary_of(const ModelConfig& model) {
  Rotary rotary{.frequencies = kernels::rope_frequencies(model.rope_theta, model.head_size)};
  if (model.rope_scaling == "none") return rotary;
  const std::vector<double> turns = model.rope_turns.empty() ? default_rope_turns(model.rope_scaling) : model.rope_turns;
  for (std::size_t m = 0; m < rotary.frequencies.size(); ++m) {
    double& frequency = rotary.frequencies[m];
    const double stays = model.rope_scaling == "linear"   ? 0
                         : model.rope_scaling == "llama3" ? llama3_share(model, turns, frequency)
                                                          : yarn_share(model, turns, static_cast<double>(m));
    frequency *= stays + (1 - stays) / model.rope_factor;
  }
  if (model.rope_scaling == "yarn") rotary.score_factor = std::pow(0.1 * std::log(model.rope_factor) + 1, 2);  // q and k carry one each
  return rotary;
}

}  // namespace periplus::train
