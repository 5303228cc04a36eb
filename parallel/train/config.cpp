// What can be trained, said before anything is read, allocated or sent.
#include "parallel/train/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "kernels/matmul.h"
#include "parallel/layout.h"
#include "parallel/strategy/linear/strategy.h"
#include "parallel/strategy/strategy.h"
#include "parallel/train/model/mixer.h"
#include "runtime/error.h"

namespace periplus::train {
namespace {

constexpr std::array<std::string_view, 5> kGates = {"basic", "retention", "lightning", "gla", "mamba2"};
constexpr std::int64_t kLargestConvolution = 64;
constexpr std::array<std::string_view, 3> kTokenTypes = {"u8", "u16", "u32"};
constexpr std::array<std::string_view, 3> kPackings = {"best_fit", "concat", "decompose"};
constexpr std::array<std::string_view, 4> kPlanners = {"none", "static", "adaptive", "flexible"};
constexpr std::array<std::string_view, 4> kRopeScalings = {"none", "linear", "llama3", "yarn"};
constexpr std::array<std::string_view, 2> kRecompute = {"but_attention", "but_hidden"};
constexpr std::array<std::string_view, 4> kDtypes = {"auto", "bf16", "f32", "f64"};
constexpr std::int64_t kByteValues = 256;
/// Keeps every product of two sizes, and the parameter count, far from overflow.
constexpr std::int64_t kLargestSize = std::int64_t{1} << 24;
constexpr std::int64_t kLargestContext = kMostTokens;

void require(bool holds, std::string_view key, const auto& value, std::string_view accepted) {
  if (!holds) throw InvalidArgument(fmt::format("config: {} is {}; it must be {}", key, value, accepted));
}

void require_size(std::string_view key, std::int64_t value, std::int64_t largest = kLargestSize) {
  if (value < 1 || value > largest) throw InvalidArgument(fmt::format("config: {} is {}; it must be 1 to {}", key, value, largest));
}

void require_finite(std::string_view key, double value, double least) {
  if (!std::isfinite(value) || value < least) {
    throw InvalidArgument(fmt::format("config: {} is {}; it must be a finite number of at least {}", key, value, least));
  }
}

void require_one_of(std::string_view key, std::string_view value, std::span<const std::string_view> accepted) {
  for (const std::string_view name : accepted) {
    if (name == value) return;
  }
  throw InvalidArgument(fmt::format("config: {} is '{}'; it must be one of {}", key, value, fmt::join(accepted, ", ")));
}

void check_pattern(std::string_view pattern) {
  std::string accepted;
  for (const MixerKind& kind : mixer_kinds()) accepted += fmt::format("{}{} = {}", accepted.empty() ? "" : ", ", kind.letter, kind.meaning);
  require(!pattern.empty(), "model.pattern", "empty", fmt::format("one or more letters ({})", accepted));
  for (const char letter : pattern) {
    if (find_mixer_kind(letter) == nullptr)
      throw InvalidArgument(fmt::format("config: model.pattern is '{}'; '{}' is no layer kind, accepted: {}", pattern, letter, accepted));
  }
}

/// Keys of some layer kinds: needed where there are such layers, and refused where there are none.
void check_layer_kinds(const ModelConfig& model) {
  std::string used;
  for (std::int64_t layer = 0; layer < model.layers && used.size() < model.pattern.size(); ++layer) used += model.letter_of(layer);
  const auto has = [&](char letter) { return used.find(letter) != std::string::npos; };
  if (has('W')) {
    require(model.window >= 1 && model.window <= kLargestContext, "model.window", model.window,
            fmt::format("1 to {}, because model.pattern '{}' has W layers: tokens back that a token sees", kLargestContext, model.pattern));
  } else {
    require(model.window == 0, "model.window", model.window, fmt::format("left out: model.pattern '{}' has no W layers", model.pattern));
  }
  for (const auto& [key, value] : {std::pair{"model.qk_norm", model.qk_norm}, {"model.qkv_bias", model.qkv_bias}}) {
    require(!value || has('S') || has('W'), key, value,
            fmt::format("left out: model.pattern '{}' has neither S nor W layers", model.pattern));
  }
  if (has('L')) {
    require_one_of("model.gate", model.gate, kGates);
  } else {
    require(model.gate.empty(), "model.gate", model.gate, fmt::format("left out: model.pattern '{}' has no L layers", model.pattern));
  }
  if (has('D') || model.gate == "mamba2") {
    require(model.conv_width == 0 || (model.conv_width >= 2 && model.conv_width <= kLargestConvolution), "model.conv_width",
            model.conv_width, fmt::format("2 to {}", kLargestConvolution));
  } else {
    require(model.conv_width == 0, "model.conv_width", model.conv_width, "left out: only D layers and L layers with mamba2 have one");
  }
}

/// A list as TOML, which --set takes.
std::string list_text(const std::vector<double>& values) { return fmt::format("[{}]", fmt::join(values, ", ")); }

void check_rope(const ModelConfig& model) {
  require(std::isfinite(model.rope_theta) && model.rope_theta > 0, "model.rope_theta", model.rope_theta, "a positive number");
  require_one_of("model.rope_scaling", model.rope_scaling, kRopeScalings);
  const bool none = model.rope_scaling == "none", by_turns = model.rope_scaling == "llama3" || model.rope_scaling == "yarn";
  const std::string kind = fmt::format("model.rope_scaling {}", model.rope_scaling);
  if (none) {
    require(model.rope_factor == 0, "model.rope_factor", model.rope_factor, fmt::format("left out with {}", kind));
  } else {
    require(std::isfinite(model.rope_factor) && model.rope_factor >= 1, "model.rope_factor", model.rope_factor,
            fmt::format("a number of at least 1 with {}", kind));
  }
  const std::vector<double>& turns = model.rope_turns;
  if (!by_turns) {
    require(model.rope_original_context == 0, "model.rope_original_context", model.rope_original_context,
            fmt::format("left out with {}", kind));
    require(turns.empty(), "model.rope_turns", list_text(turns), fmt::format("left out with {}", kind));
    return;
  }
  require(model.rope_original_context >= 1 && model.rope_original_context <= kLargestContext, "model.rope_original_context",
          model.rope_original_context, fmt::format("1 to {} with {}", kLargestContext, kind));
  require(turns.empty() || (turns.size() == 2 && turns[0] > 0 && turns[0] < turns[1] && std::isfinite(turns[1])), "model.rope_turns",
          list_text(turns), "two rising positive numbers");
  require(model.rope_scaling != "yarn" || model.rope_theta > 1, "model.rope_theta", model.rope_theta,
          "above 1 with model.rope_scaling yarn");
}

/// A state moves between ranks for every unit, so layouts that cut a rank's tokens into many are no use.
void check_recurrent(const ModelConfig& model, const ParallelConfig& parallel) {
  try {
    strategy::linear::find_strategy(parallel.linear.strategy);
  } catch (const InvalidArgument& error) {
    throw InvalidArgument(fmt::format("config: parallel.linear_strategy: {}", error.what()));
  }
  const MixerKind* recurrent = nullptr;
  for (std::int64_t layer = 0; layer < std::min(model.layers, std::ssize(model.pattern)); ++layer) {
    const MixerKind* const kind = find_mixer_kind(model.letter_of(layer));
    if (kind->recurrent) recurrent = kind;
  }
  if (recurrent == nullptr) {
    require(parallel.linear.strategy == LinearAttentionOptions().strategy, "parallel.linear_strategy", parallel.linear.strategy,
            fmt::format("left out: no layer of model.pattern '{}' passes a state on", model.pattern));
  }
  if (parallel.linear.keep_transitions) {
    const std::string used = model.pattern_of_layers();
    require(used.find('D') != used.npos && strategy::linear::find_strategy(parallel.linear.strategy).gathers_transitions,
            "parallel.keep_transitions", true,
            "left out: only D layers with parallel.linear_strategy lasp2 gather transitions worth keeping");
  }
  if (recurrent == nullptr) return;
  if (parallel.layout != "contiguous" && parallel.layout != "zigzag") {
    throw InvalidArgument(
        fmt::format("config: parallel.layout is {}, but model.pattern '{}' has {} layers ({}), whose states follow the sequence from rank "
                    "to rank; set parallel.layout to zigzag (softmax layers stay balanced) or contiguous (half the states)",
                    parallel.layout, model.pattern, recurrent->letter, recurrent->meaning));
  }
}

/// What the planner decides must be left to it, and what its cost model does not know cannot be planned.
void check_planner(const ModelConfig& model, const ParallelConfig& parallel) {
  require_one_of("parallel.planner", parallel.planner, kPlanners);
  require(parallel.zero_stage >= 1 && parallel.zero_stage <= 3, "parallel.zero_stage", parallel.zero_stage, "1, 2 or 3");
  if (parallel.planner == "none") {
    require(parallel.machine.empty() || parallel.attention.strategy == "auto", "parallel.machine", parallel.machine,
            "left out: only a parallel.planner and parallel.strategy auto ask for it");
    return;
  }
  require(parallel.attention.digest() == AttentionOptions().digest(), "parallel.strategy", parallel.attention.strategy,
          fmt::format("left out, with all that belongs to it: parallel.planner {} chooses for each group", parallel.planner));
  const std::string used = model.pattern_of_layers();
  require(used.find_first_not_of('S') == used.npos, "model.pattern", model.pattern,
          fmt::format("of S layers only with parallel.planner {}: its cost model knows softmax attention over whole documents",
                      parallel.planner));
}

void check_tokens(const DataConfig& data, std::int64_t vocabulary) {
  require_one_of("data.token_type", data.token_type, kTokenTypes);
  require(data.token_bytes() > 1 || vocabulary >= kByteValues, "model.vocabulary", vocabulary,
          "at least 256: tokens are bytes (data.token_type u8)");
  const std::int64_t ids = std::min(vocabulary, std::int64_t{1} << (8 * data.token_bytes()));
  require(data.document_end >= -1 && data.document_end < ids, "data.document_end", data.document_end,
          fmt::format("-1 (a file is a document) or a token id below {}", ids));
}

void check_validation(const Config& config) {
  const DataConfig& data = config.data;
  const RunConfig& run = config.run;
  require(data.validation_rows >= 0, "data.validation_rows", data.validation_rows, "0 (all) or more");
  require(run.validate_every >= 0, "run.validate_every", run.validate_every, "0 (only at the end) or more");
  if (!data.validation_paths.empty()) return;
  constexpr std::string_view kLeftOut = "left out: data.validation_paths names no text to measure losses on";
  require(data.validation_rows == 0, "data.validation_rows", data.validation_rows, kLeftOut);
  require(run.validate_every == 0, "run.validate_every", run.validate_every, kLeftOut);
}

}  // namespace

void check(const ModelConfig& model) {
  require_size("model.layers", model.layers, kMostLayers);
  require_size("model.hidden", model.hidden);
  require_size("model.heads", model.heads, 65536);
  require_size("model.kv_heads", model.kv_heads, 65536);
  require_size("model.head_size", model.head_size, 65536);
  require_size("model.ffn", model.ffn);
  require_size("model.vocabulary", model.vocabulary);
  require(model.heads % model.kv_heads == 0, "model.kv_heads", model.kv_heads, fmt::format("a divisor of model.heads = {}", model.heads));
  require(model.head_size % 2 == 0, "model.head_size", model.head_size, "even (rotary positions turn pairs)");
  require(std::isfinite(model.norm_epsilon) && model.norm_epsilon > 0, "model.norm_epsilon", model.norm_epsilon, "a positive number");
  check_rope(model);
  check_pattern(model.pattern);
  check_layer_kinds(model);
}

void check(const OptimizerConfig& optimizer) {
  require_finite("optimizer.learning_rate", optimizer.learning_rate, 0);
  require(optimizer.warmup_steps >= 0, "optimizer.warmup_steps", optimizer.warmup_steps, "0 or more");
  require_finite("optimizer.weight_decay", optimizer.weight_decay, 0);
  require_finite("optimizer.clip_norm", optimizer.clip_norm, 0);
  require(optimizer.betas.size() == 2, "optimizer.betas", fmt::format("[{}]", fmt::join(optimizer.betas, ", ")), "two numbers");
  for (const double beta : optimizer.betas) {
    require(beta >= 0 && beta < 1, "optimizer.betas", fmt::format("[{}]", fmt::join(optimizer.betas, ", ")), "two numbers in [0, 1)");
  }
}

void check(const Config& config) {
  check(config.model);
  check(config.optimizer);
  require(!config.data.paths.empty(), "data.paths", "empty", "one or more files, folders or globs");
  require(config.data.context >= 2 && config.data.context <= kLargestContext, "data.context", config.data.context,
          fmt::format("2 to {} tokens", kLargestContext));
  require_one_of("data.packing", config.data.packing, kPackings);
  require_size("data.rows_per_step", config.data.rows_per_step);
  check_tokens(config.data, config.model.vocabulary);
  check_validation(config);
  try {
    if (config.parallel.attention.strategy != "auto") strategy::find_strategy(config.parallel.attention.strategy);
  } catch (const InvalidArgument& error) {
    throw InvalidArgument(fmt::format("config: parallel.strategy: {}", error.what()));
  }
  try {
    layout_kind_from_string(config.parallel.layout);
  } catch (const InvalidArgument& error) {
    throw InvalidArgument(fmt::format("config: parallel.layout: {}", error.what()));
  }
  check_recurrent(config.model, config.parallel);
  check_planner(config.model, config.parallel);
  require(config.run.steps >= 1, "run.steps", config.run.steps, "1 or more");
  require(!config.run.directory.empty(), "run.directory", "empty", "a folder to write to");
  require(config.run.checkpoint_every >= 0, "run.checkpoint_every", config.run.checkpoint_every, "0 (only at the end) or more");
  require(std::isfinite(config.run.deadline_seconds) && config.run.deadline_seconds > 0, "run.deadline_seconds",
          config.run.deadline_seconds, "a positive number");
  require_one_of("run.dtype", config.run.dtype, kDtypes);
  require_one_of("run.recompute", config.run.recompute, kRecompute);
}

DType storage_dtype(const RunConfig& run, Device device) {
  if (run.dtype == "auto") return device.kind == DeviceKind::cuda || kernels::bf16_is_native() ? DType::bf16 : DType::f32;
  return dtype_from_string(run.dtype);
}

std::vector<std::pair<std::string, std::string>> key_values(const Config& config) {
  const auto& [model, data, parallel, optimizer, run] = config;
  const auto text = [](const auto& value) { return fmt::format("{}", value); };
  const auto list = [](const std::vector<std::string>& values) {
    return nlohmann::json(values).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  };
  return {{"model.layers", text(model.layers)},
          {"model.hidden", text(model.hidden)},
          {"model.heads", text(model.heads)},
          {"model.kv_heads", text(model.kv_heads)},
          {"model.head_size", text(model.head_size)},
          {"model.ffn", text(model.ffn)},
          {"model.vocabulary", text(model.vocabulary)},
          {"model.pattern", model.pattern},
          {"model.window", text(model.window)},
          {"model.gate", model.gate},
          {"model.conv_width", text(model.conv_width)},
          {"model.tie_embeddings", text(model.tie_embeddings)},
          {"model.norm_epsilon", text(model.norm_epsilon)},
          {"model.qk_norm", text(model.qk_norm)},
          {"model.qkv_bias", text(model.qkv_bias)},
          {"model.rope_theta", text(model.rope_theta)},
          {"model.rope_scaling", model.rope_scaling},
          {"model.rope_factor", text(model.rope_factor)},
          {"model.rope_original_context", text(model.rope_original_context)},
          {"model.rope_turns", list_text(model.rope_turns)},
          {"data.paths", list(data.paths)},
          {"data.token_type", data.token_type},
          {"data.document_end", text(data.document_end)},
          {"data.context", text(data.context)},
          {"data.packing", data.packing},
          {"data.rows_per_step", text(data.rows_per_step)},
          {"data.validation_paths", list(data.validation_paths)},
          {"data.validation_rows", text(data.validation_rows)},
          {"parallel.strategy", parallel.attention.strategy},
          {"parallel.linear_strategy", parallel.linear.strategy},
          {"parallel.keep_transitions", text(parallel.linear.keep_transitions)},
          {"parallel.pieces", text(parallel.attention.pieces)},
          {"parallel.stages", text(parallel.attention.stages)},
          {"parallel.head_ranks", text(parallel.attention.head_ranks)},
          {"parallel.placement", parallel.attention.placement},
          {"parallel.ranks_per_node", text(parallel.attention.ranks_per_node)},
          {"parallel.layout", parallel.layout},
          {"parallel.planner", parallel.planner},
          {"parallel.zero_stage", text(parallel.zero_stage)},
          {"parallel.machine", parallel.machine},
          {"optimizer.learning_rate", text(optimizer.learning_rate)},
          {"optimizer.warmup_steps", text(optimizer.warmup_steps)},
          {"optimizer.weight_decay", text(optimizer.weight_decay)},
          {"optimizer.clip_norm", text(optimizer.clip_norm)},
          {"optimizer.betas", list_text(optimizer.betas)},
          {"run.steps", text(run.steps)},
          {"run.directory", run.directory},
          {"run.seed", text(run.seed)},
          {"run.initial_weights", run.initial_weights},
          {"run.dtype", std::string(to_string(storage_dtype(run)))},
          {"run.checkpoint_every", text(run.checkpoint_every)},
          {"run.validate_every", text(run.validate_every)},
          {"run.deadline_seconds", text(run.deadline_seconds)},
          {"run.trace", text(run.trace)},
          {"run.recompute", run.recompute},
          {"run.offload_activations", text(run.offload_activations)},
          {"run.offload_optimizer", text(run.offload_optimizer)}};
}

}  // namespace periplus::train
