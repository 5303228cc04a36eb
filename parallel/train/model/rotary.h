#pragma once

#include <vector>

#include "parallel/train/config.h"

namespace periplus::train {

/// How q and k of softmax layers are turned (algorithms.md 10.2).
struct Rotary {
  std::vector<double> frequencies;  ///< [head_size / 2], radians a token.
  double score_factor = 1;          ///< Of the scale of scores.
};

/// A model that was trained on short contexts is taken to long ones by lowering its frequencies: all of them (linear), or those that turn
/// less than a few times in the context it was trained on, with a ramp over the turns (llama3) or over the pairs (yarn) in between.
/// Source   Chen et al. 2023 (linear), Peng et al. 2024 (YaRN), Llama 3.1.
Rotary rotary_of(const ModelConfig& model);

/// Of a kind of scaling, if model.rope_turns is empty.
std::vector<double> default_rope_turns(const std::string& scaling);

}  // namespace periplus::train
