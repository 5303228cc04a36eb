#include "launch/train_options.h"

#include <fmt/format.h>

#include "launch/attention_options.h"
#include "launch/linear_options.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

void add_model(OptionTable& table, train::ModelConfig& model) {
  table.add({.key = "model.layers", .flag = "layers", .target = &model.layers, .value = "N", .help = "Layers.", .least = 1});
  table.add({.key = "model.hidden",
             .flag = "hidden",
             .target = &model.hidden,
             .value = "N",
             .help = "Width of the residual stream.",
             .least = 1});
  table.add({.key = "model.heads", .flag = "heads", .target = &model.heads, .value = "N", .help = "Query heads.", .least = 1});
  table.add({.key = "model.kv_heads",
             .flag = "kv-heads",
             .target = &model.kv_heads,
             .value = "N",
             .help = "Key/value heads; divides heads.",
             .least = 1});
  table.add(
      {.key = "model.head_size", .flag = "head-size", .target = &model.head_size, .value = "N", .help = "Width of one head.", .least = 1});
  table.add({.key = "model.ffn", .flag = "ffn", .target = &model.ffn, .value = "N", .help = "Inner width of SwiGLU.", .least = 1});
  table.add({.key = "model.vocabulary",
             .flag = "vocabulary",
             .target = &model.vocabulary,
             .value = "N",
             .help = "Token ids there are; bytes need 256.",
             .least = 2});
  table.add({.key = "model.pattern",
             .flag = "pattern",
             .target = &model.pattern,
             .value = "TEXT",
             .help = "Kind of each layer, repeated: S softmax attention, W the same in a window, L linear attention, D gated delta rule."});
  table.add({.key = "model.window",
             .flag = "model-window",
             .target = &model.window,
             .value = "N",
             .help = "W layers: tokens back that a token sees.",
             .least = 0});
  table.add({.key = "model.gate",
             .flag = "gate",
             .target = &model.gate,
             .value = "NAME",
             .help = "L layers: how a state decays: basic (not), retention, lightning, gla or mamba2."});
  table.add({.key = "model.conv_width",
             .flag = "conv-width",
             .target = &model.conv_width,
             .value = "N",
             .help = "D layers, and L layers with mamba2: tokens that the short convolution reads; 0: 4.",
             .least = 0});
  table.add({.key = "model.tie_embeddings",
             .flag = "tie-embeddings",
             .target = &model.tie_embeddings,
             .help = "Output layer = transposed embedding; --tie-embeddings=false splits them."});
  table.add({.key = "model.norm_epsilon",
             .flag = "norm-epsilon",
             .target = &model.norm_epsilon,
             .value = "X",
             .help = "Of every RMS norm, inside the root.",
             .least = 0});
  table.add({.key = "model.qk_norm",
             .flag = "qk-norm",
             .target = &model.qk_norm,
             .help = "S and W layers: an RMS norm of each head's q and k (Qwen3)."});
  table.add(
      {.key = "model.qkv_bias", .flag = "qkv-bias", .target = &model.qkv_bias, .help = "S and W layers: q, k and v have biases (Qwen2)."});
  table.add({.key = "model.rope_theta",
             .flag = "rope-theta",
             .target = &model.rope_theta,
             .value = "X",
             .help = "Base of the rotary angles.",
             .least = 1});
  table.add({.key = "model.rope_scaling",
             .flag = "rope-scaling",
             .target = &model.rope_scaling,
             .value = "NAME",
             .help = "How rotary angles are lowered for contexts longer than those trained on before:",
             .choices = {"none", "linear", "llama3", "yarn"}});
  table.add({.key = "model.rope_factor",
             .flag = "rope-factor",
             .target = &model.rope_factor,
             .value = "X",
             .help = "By what they are divided.",
             .least = 0});
  table.add({.key = "model.rope_original_context",
             .flag = "rope-original-context",
             .target = &model.rope_original_context,
             .value = "N",
             .help = "llama3, yarn: tokens of the contexts trained on before.",
             .least = 0});
  table.add({.key = "model.rope_turns",
             .flag = "rope-turns",
             .target = &model.rope_turns,
             .value = "LOW,HIGH",
             .help = "llama3, yarn: turns in those up to which a pair is lowered in full, and from which not; default 1,4 or 1,32."});
}

void add_linear_strategy(OptionTable& table, LinearAttentionOptions& linear) {
  table.add({.key = "parallel.linear_strategy",
             .flag = "linear-strategy",
             .target = &linear.strategy,
             .value = "NAME",
             .help = "How states of L and D layers get from rank to rank:",
             .choices = linear_strategy_names()});
  table.add({.key = "parallel.keep_transitions",
             .flag = "keep-transitions",
             .target = &linear.keep_transitions,
             .help = "D layers by lasp2: keep gathered transitions for backward, which else gathers them again."});
}

void add_planner(OptionTable& table, train::ParallelConfig& parallel) {
  table.add({.key = "parallel.planner",
             .flag = "planner",
             .target = &parallel.planner,
             .value = "NAME",
             .help = "Who works on which documents of a step: none, all ranks on every row; groups of one size for the run (static) or "
                     "for each step (adaptive), or of any sizes (flexible):",
             .choices = {"none", "static", "adaptive", "flexible"}});
  table.add(
      {.key = "parallel.machine",
       .flag = "machine",
       .target = &parallel.machine,
       .value = "NAME|FILE",
       .help = "What the planner plans for and strategy auto chooses by, as in examples/machines; left out: this machine, measured."});
  table.add(
      {.key = "parallel.zero_stage",
       .flag = "zero-stage",
       .target = &parallel.zero_stage,
       .value = "N",
       .help = "What ranks share out: 1 optimizer states, 2 gradients too, summed layer by layer, 3 weights too, gathered layer by layer.",
       .least = 1,
       .most = 3});
}

void add_optimizer(OptionTable& table, train::OptimizerConfig& optimizer) {
  table.add({.key = "optimizer.learning_rate",
             .flag = "learning-rate",
             .target = &optimizer.learning_rate,
             .value = "X",
             .help = "Peak learning rate.",
             .least = 0});
  table.add({.key = "optimizer.warmup_steps",
             .flag = "warmup-steps",
             .target = &optimizer.warmup_steps,
             .value = "N",
             .help = "Steps of linear warm-up before the cosine.",
             .least = 0});
  table.add({.key = "optimizer.weight_decay",
             .flag = "weight-decay",
             .target = &optimizer.weight_decay,
             .value = "X",
             .help = "AdamW weight decay.",
             .least = 0});
  table.add({.key = "optimizer.clip_norm",
             .flag = "clip-norm",
             .target = &optimizer.clip_norm,
             .value = "X",
             .help = "Largest global gradient norm; 0: no clipping.",
             .least = 0});
  table.add({.key = "optimizer.betas",
             .flag = "betas",
             .target = &optimizer.betas,
             .value = "B1,B2",
             .help = "AdamW moment decays.",
             .least = 0,
             .most = 1});
}

void add_run(OptionTable& table, train::RunConfig& run) {
  table.add({.key = "run.steps", .flag = "steps", .target = &run.steps, .value = "N", .help = "Last step of the run.", .least = 1});
  table.add({.key = "run.directory",
             .flag = "directory",
             .target = &run.directory,
             .value = "FOLDER",
             .help = "Run folder: metrics, checkpoints, loss curve."});
  table.add({.key = "run.seed", .flag = "seed", .target = &run.seed, .value = "N", .help = "Start of all random numbers.", .least = 0});
  table.add({.key = "run.initial_weights",
             .flag = "initial-weights",
             .target = &run.initial_weights,
             .value = "FOLDER",
             .help = "Starts from a trained model: a checkpoint, or what transformers saved of a Llama, Mistral, Qwen2 or Qwen3 model."});
  table.add({.key = "run.dtype",
             .flag = "dtype",
             .target = &run.dtype,
             .value = "TYPE",
             .help = "Compute type; auto takes bf16 on GPUs and CPUs that multiply it natively, else f32:",
             .choices = {"auto", "bf16", "f32", "f64"}});
  table.add({.key = "run.checkpoint_every",
             .flag = "checkpoint-every",
             .target = &run.checkpoint_every,
             .value = "N",
             .help = "Steps between checkpoints; 0: at the end and on a stop signal.",
             .least = 0});
  table.add({.key = "run.validate_every",
             .flag = "validate-every",
             .target = &run.validate_every,
             .value = "N",
             .help = "Steps between losses of the validation text; 0: at the end.",
             .least = 0});
  table.add({.key = "run.recompute",
             .flag = "recompute",
             .target = &run.recompute,
             .value = "NAME",
             .help = "What backward computes again: all but attention, or less for 2 ffn elements of a token and layer:",
             .choices = {"but_attention", "but_hidden"}});
  table.add({.key = "run.offload_activations",
             .flag = "offload-activations",
             .target = &run.offload_activations,
             .help = "On a GPU: what layers keep for backward waits in host memory, but for two layers."});
  table.add({.key = "run.offload_optimizer",
             .flag = "offload-optimizer",
             .target = &run.offload_optimizer,
             .help = "On a GPU: master weights and moments are in host memory, where OMP_NUM_THREADS threads update them."});
  table.add(
      {.key = "run.trace", .flag = "trace", .target = &run.trace, .help = "Writes trace.json of the last step, for ui.perfetto.dev."});
}

}  // namespace

void add_train_options(OptionTable& table, train::Config& config, RankOptions& ranks, Devices devices) {
  table.add({.key = "data.paths", .flag = "data", .target = &config.data.paths, .value = "PATH ...", .help = "Files, folders or globs."});
  table.add({.key = "data.token_type",
             .flag = "token-type",
             .target = &config.data.token_type,
             .value = "TYPE",
             .help = "What they hold: bytes, or token ids of 2 or 4 bytes, the lowest first, as numpy's tofile writes them:",
             .choices = {"u8", "u16", "u32"}});
  table.add({.key = "data.document_end",
             .flag = "document-end",
             .target = &config.data.document_end,
             .value = "ID",
             .help = "Token that is the last one of a document; -1: a file is a document.",
             .least = -1});
  table.add(
      {.key = "data.context", .flag = "context", .target = &config.data.context, .value = "N", .help = "Tokens of one row.", .least = 2});
  table.add({.key = "data.packing",
             .flag = "packing",
             .target = &config.data.packing,
             .value = "NAME",
             .help = "How documents fill rows:",
             .choices = {"best_fit", "concat", "decompose"}});
  table.add({.key = "data.rows_per_step",
             .flag = "rows-per-step",
             .target = &config.data.rows_per_step,
             .value = "N",
             .help = "Rows of a training step; a planner deals their documents out.",
             .least = 1});
  table.add({.key = "data.validation_paths",
             .flag = "validation",
             .target = &config.data.validation_paths,
             .value = "PATH ...",
             .help = "Text that is not trained on, and whose loss is measured."});
  table.add({.key = "data.validation_rows",
             .flag = "validation-rows",
             .target = &config.data.validation_rows,
             .value = "N",
             .help = "Rows of it that the seed picks; 0: all.",
             .least = 0});
  add_run(table, config.run);
  add_strategy_options(table, config.parallel.attention, config.parallel.layout);
  add_linear_strategy(table, config.parallel.linear);
  add_planner(table, config.parallel);
  ranks.deadline_seconds = config.run.deadline_seconds;
  add_rank_options(table, ranks, devices);
  add_model(table, config.model);
  add_optimizer(table, config.optimizer);
}

void check_planner_options(const OptionTable& table, const train::Config& config) {
  if (config.parallel.planner == "none") return;
  for (const char* const flag : {"strategy", "pieces", "stages", "head-ranks", "placement", "ranks-per-node"}) {
    if (table.typed(flag)) {
      throw InvalidArgument(
          fmt::format("--{} has no effect with --planner {}, which chooses for each group how attention is distributed; leave one out",
                      flag, config.parallel.planner));
    }
  }
}

}  // namespace periplus::launch
