#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "parallel/linear_attention.h"
#include "parallel/problem.h"
#include "runtime/dtype.h"

namespace periplus::train {

inline constexpr std::int64_t kMostLayers = 65536;

/// Shape of the language model. Tables and keys have the names of the TOML file.
struct ModelConfig {
  std::int64_t layers = 5;
  std::int64_t hidden = 448;
  std::int64_t heads = 2;
  std::int64_t kv_heads = 1;
  std::int64_t head_size = 64;
  std::int64_t ffn = 1344;
  std::int64_t vocabulary = 256;
  std::string pattern = "S";    ///< Kind of each layer, repeated: letters of mixer_kinds().
  std::int64_t window = 0;      ///< W layers: tokens back that a token sees; 0: not set.
  std::string gate = {};        ///< L layers: basic | retention | lightning | gla | mamba2; empty: not set.
  std::int64_t conv_width = 0;  ///< Tokens that the short convolution of D and mamba2 layers reads; 0: not set, 4.
  bool tie_embeddings = true;
  double norm_epsilon = 1e-5;  ///< Of every RMS norm, inside the root.
  bool qk_norm = false;        ///< S and W layers: an RMS norm of each head's q and k, before they are turned (Qwen3).
  bool qkv_bias = false;       ///< S and W layers: q, k and v have biases (Qwen2).
  double rope_theta = 10000;
  std::string rope_scaling = "none";       ///< none | linear | llama3 | yarn: how the frequencies of rope_theta are lowered (rotary.h).
  double rope_factor = 0;                  ///< Unless none: by what; 0: not set.
  std::int64_t rope_original_context = 0;  ///< llama3, yarn: tokens that the model was trained on before; 0: not set.
  std::vector<double> rope_turns = {};     ///< llama3, yarn: turns in them, up to which frequencies are lowered in full and from which not.

  /// Without the letters that no layer gets.
  std::string pattern_of_layers() const { return pattern.substr(0, static_cast<std::size_t>(layers)); }
  char letter_of(std::int64_t layer) const { return pattern[static_cast<std::size_t>(layer) % pattern.size()]; }
  std::int64_t convolution_width() const noexcept { return conv_width != 0 ? conv_width : 4; }
};

struct DataConfig {
  std::vector<std::string> paths;                  ///< Files, folders or globs.
  std::string token_type = "u8";                   ///< What they hold: bytes, or token ids as u16 | u32, the lowest byte first.
  std::int64_t document_end = -1;                  ///< Token that is the last one of a document; -1: a file is a document.
  std::int64_t context = 8192;                     ///< Tokens of one row.
  std::string packing = "best_fit";                ///< best_fit | concat | decompose
  std::int64_t rows_per_step = 1;                  ///< Rows of a training step.
  std::vector<std::string> validation_paths = {};  ///< As paths: text that losses are measured on and that is not trained on.
  std::int64_t validation_rows = 0;                ///< Rows of it that the seed picks; 0: all.

  int token_bytes() const noexcept { return token_type == "u8" ? 1 : token_type == "u16" ? 2 : 4; }
};

struct ParallelConfig {
  AttentionOptions attention;
  LinearAttentionOptions linear;  ///< Of the layers that a state passes through.
  std::string layout = "document_zigzag";
  /// Who works on which documents of a step: none, all ranks on each row | static, groups of one size for the whole run | adaptive,
  /// of one size for each step | flexible, of any sizes (planner/planner.h). The planner chooses strategies, too.
  std::string planner = "none";
  /// What ranks share out. 1: optimizer states; every rank sums up its gradients of all parameters, in the accumulator type, before they
  /// are summed over ranks once a step. 2: gradients too: a rank has those of one layer at a time, which are summed over ranks for every
  /// row while backward runs. 3: weights too, which are gathered layer by layer, forward and backward.
  std::int64_t zero_stage = 1;
  std::string machine = {};  ///< What the planner plans for and strategy auto chooses by: a name or a file; empty: this machine, measured.
};

struct OptimizerConfig {
  double learning_rate = 1e-3;
  std::int64_t warmup_steps = 10;
  double weight_decay = 0.1;
  double clip_norm = 1.0;  ///< 0: no clipping.
  std::vector<double> betas = {0.9, 0.95};
};

struct RunConfig {
  std::int64_t steps = 50;
  std::string directory = "runs/train";
  std::uint64_t seed = 1;
  std::string initial_weights = {};   ///< Folder of a trained model that the first step starts from; empty: start values of the seed.
  std::string dtype = "auto";         ///< auto | bf16 | f32 | f64; auto = bf16 where the CPU multiplies it natively, else f32
  std::int64_t checkpoint_every = 0;  ///< Steps between checkpoints; 0: only when told to (signal) and at the end.
  std::int64_t validate_every = 0;    ///< Steps between losses of the validation text; 0: only at the end.
  double deadline_seconds = 120;
  bool trace = false;  ///< Write trace.json of the last step.
  /// What backward computes again: but_attention, all of a layer but its attention | but_hidden, nor the hidden values of its
  /// feed-forward part, which take 2 ffn elements of a token and layer. The numbers are the same.
  std::string recompute = "but_attention";

  /// On a device, what layers keep for backward waits in host memory, all but two layers; it moves beside the layers' work. The numbers
  /// are the same.
  bool offload_activations = false;
  bool offload_optimizer = false;  ///< On a device, the optimizer's states are in host memory, and the host updates them.

  bool keeps_hidden() const noexcept { return recompute == "but_hidden"; }
};

struct Config {
  ModelConfig model;
  DataConfig data;
  ParallelConfig parallel;
  OptimizerConfig optimizer;
  RunConfig run;
};

/// Throws InvalidArgument naming key, value and what is accepted, for anything that cannot be trained.
void check(const Config& config);
/// The same for a part of it.
void check(const ModelConfig& model);
void check(const OptimizerConfig& optimizer);

/// Storage type of activations and working weights on a device of this machine.
DType storage_dtype(const RunConfig& run, Device device = {});

/// Every key and its value as text, ("model.layers", "6"), in a fixed order: what checkpoints record and ranks compare.
std::vector<std::pair<std::string, std::string>> key_values(const Config& config);

}  // namespace periplus::train
