// Rows of whole iterations: DISTFLASHATTN, NeMo, DeepSpeed-Ulysses, ALST, Striped Attention; and those without a model here.
#include <algorithm>

#include <fmt/format.h>

#include "launch/descriptions.h"
#include "launch/exam/exam.h"
#include "parallel/simulate/estimate.h"
#include "parallel/simulate/iteration.h"

namespace periplus::launch::exam {
namespace {

using simulate::Iteration;
using simulate::Memory;
using simulate::Recompute;
using simulate::Training;

constexpr std::int64_t kK = 1024;

Training attention_over(int context, std::int64_t tokens, const char* strategy, LayoutKind layout) {
  Training training;
  training.tokens = tokens, training.context = context, training.layout = layout, training.zero = 3;
  training.attention.strategy = strategy;
  return training;
}

double seconds(const char* model, const simulate::Machine& machine, const Training& training) {
  return simulate::simulate_iteration(load_shape(model), machine, training).seconds;
}

/// The three systems of its comparison.
double dist_flash(std::int64_t tokens, const std::string& system) {
  const simulate::Machine machine = load_simulated_machine("a100x16");
  Training training = attention_over(16, tokens, system == "DISTFLASHATTN" ? "balanced_helper" : "ulysses", LayoutKind::contiguous);
  training.narrow_sums = true;
  if (system == "DISTFLASHATTN") return seconds("llama2-7b", machine, training);
  training.recompute = Recompute::all;
  if (system == "Megatron") training.context = 1, training.tensor = 16, training.attention.strategy = "ring", training.zero = 1;
  return seconds("llama2-7b", machine, training);
}

Result dist_flash_iterations() {
  Result result{.setup = "DISTFLASHATTN, 7B, 2 x 8 A100, iteration", .unit = "s", .tolerance = {Tolerance::relative, 0.15}};
  const std::vector<std::pair<std::string, std::vector<double>>> published = {
      {"DISTFLASHATTN", {30.2, 106.4}}, {"Megatron", {43.4, 147.1}}, {"Ulysses", {37.5, 134.1}}};
  for (std::size_t i = 0; i < 2; ++i) {
    const std::int64_t tokens = (256 << i) * kK;
    for (const auto& [system, times] : published)
      result.figures.push_back({fmt::format("{} {}K", system, tokens / kK), times[i], dist_flash(tokens, system)});
    const auto s = [&](std::size_t k) { return result.figures[3 * i + k].simulated; };
    if (!(s(0) < s(2) && s(2) < s(1))) result.wrong = "the order is not DISTFLASHATTN, Ulysses, Megatron";
  }
  result.constants = {"machines/a100x16", "kernels/fa2-a100", "models/llama2-7b"};
  result.note =
      "a card of 100 Gb/s for each device assumed; partial results travel as f16, as in its source; Ulysses and Megatron run attention "
      "again in backward";
  return result;
}

Result dist_flash_overlap() {
  const simulate::Machine machine = load_simulated_machine("a100x16");
  Training training = attention_over(16, 128 * kK, "balanced_helper", LayoutKind::contiguous);
  training.narrow_sums = true;
  const simulate::Shape shape = load_shape("llama2-7b");
  const auto overhead = [&] {
    const Iteration iteration = simulate::simulate_iteration(shape, machine, training);
    simulate::Machine fast = machine;
    fast.links.inside = fast.links.between = {};
    fast.links.inside.bytes_per_second = fast.links.between.bytes_per_second = fast.node_bytes_per_second = 1e18;
    return 100 * (iteration.seconds / simulate::simulate_iteration(shape, fast, training).seconds - 1);
  };
  const double with = overhead();
  training.overlap = false;
  const double without = overhead();
  return {.setup = "DISTFLASHATTN, 7B, 2 x 8 A100, 128K: communication over an iteration without any",
          .unit = "%",
          .tolerance = {Tolerance::absolute, 12},
          .figures = {{"without overlap", 105, without}, {"with overlap", 44, with}},
          .constants = {"machines/a100x16", "kernels/fa2-a100", "models/llama2-7b"},
          .note = "a card of 100 Gb/s for each device assumed; partial results travel as f16, as in its source"};
}

/// Flop/s of a device in context-parallel training of LLaMA 2 7B.
double nemo_rate(int context, std::int64_t tokens) {
  const simulate::Machine machine = load_simulated_machine("h100x64", "cudnn-h100-fp8");
  Training training = attention_over(context, tokens, "ring", LayoutKind::zigzag);
  training.zero = 1;
  const Iteration iteration = simulate::simulate_iteration(load_shape("llama2-7b"), machine, training);
  return iteration.flops / iteration.seconds / context * 1e-12;
}

Result nemo_scaling() {
  const double short_rate = nemo_rate(4, 128 * kK), long_rate = nemo_rate(32, 1024 * kK);
  Result result{.setup = "NeMo, LLaMA 2 7B in FP8, H100: TFLOP/s a device at 1M (CP 32) over 128K (CP 4)",
                .unit = "",
                .tolerance = {Tolerance::relative, 0.05}};
  result.figures = {{"ratio", 0.966, long_rate / short_rate}};
  result.constants = {"machines/h100x64", "kernels/cudnn-h100-fp8: kernels.matmul_flops_per_second FITTED to 4K, no row of the exam",
                      "models/llama2-7b"};
  result.note = fmt::format("{:.0f} -> {:.0f} (published 555 -> 536)", short_rate, long_rate);
  return result;
}

Result nemo_without() {
  Result result{.setup = "NeMo, 1M with and without context parallelism", .unit = "x", .tolerance = {Tolerance::relative, 1}};
  result.not_simulated = "its recomputation without CP is not described; not among the 30";
  return result;
}

/// Flop of a device as Megatron-DeepSpeed counts them, whatever it skips: all pairs, and a second forward (megatron/utils.py).
double megatron_rate(const simulate::Shape& shape, const Training& training, double seconds) {
  const double h = shape.hidden, layers = shape.layers, n = static_cast<double>(training.tokens);
  const double token = 96 * layers * h * h * (1 + n / (6 * h) + static_cast<double>(shape.vocabulary) / (16 * layers * h));
  return token * n * training.replicas / training.devices() / seconds * 1e-12;
}

/// As the scripts of Megatron-DeepSpeed have 32K: 4 devices a sequence, 8K tokens each; the other devices are replicas.
double ulysses_rate(std::int64_t length) {
  const simulate::Shape shape = load_shape("megatron-30b");
  const int context = static_cast<int>(length / (8 * kK));
  Training training = attention_over(context, length, "ulysses", LayoutKind::contiguous);
  training.replicas = 64 / context, training.recompute = Recompute::all;
  const simulate::Machine machine = load_simulated_machine("ulysses-a100x64", "triton-a100");
  return megatron_rate(shape, training, simulate::simulate_iteration(shape, machine, training).seconds);
}

/// In fp16, with an f32 copy of the gradient beside master weight and moments (Megatron-LM, docs of its distributed optimizer: 20 bytes a
/// weight).
Training megatron_sp(std::int64_t length) {
  Training training = attention_over(1, length, "ring", LayoutKind::contiguous);
  training.optimizer_bytes = 16;
  training.tensor = 64, training.recompute = Recompute::none, training.zero = 1;
  return training;
}

Result ulysses_30b() {
  Result result{.setup = "DeepSpeed-Ulysses, 30B, 64 A100", .unit = "TFLOP/s", .tolerance = {Tolerance::relative, 0.12}};
  const double published[] = {165, 157, 152, 147, 140, 134};
  for (int i = 0; i < 6; ++i) result.figures.push_back({fmt::format("{}K", 8 << i), published[i], ulysses_rate((8 << i) * kK)});
  result.constants = {"machines/ulysses-a100x64", "kernels/triton-a100", "models/megatron-30b"};
  result.note =
      "model, recomputation, kernel, ZeRO-3 and 8K tokens a device as in its script for 32K; flop counted as there, with all pairs of a "
      "causal mask and the second forward";
  return result;
}

Result megatron_30b() {
  const simulate::Shape shape = load_shape("megatron-30b");
  const simulate::Machine machine = load_simulated_machine("ulysses-a100x64", "triton-a100");
  Result result{.setup = "Megatron-SP, 30B, 64 A100", .unit = "TFLOP/s", .tolerance = {Tolerance::relative, 0.20}};
  const double published[] = {45, 67.5, 85.5, 104.5};
  for (int i = 0; i < 4; ++i) {
    const Training training = megatron_sp((8 << i) * kK);
    const double seconds = simulate::simulate_iteration(shape, machine, training).seconds;
    result.figures.push_back({fmt::format("{}K", 8 << i), published[i], megatron_rate(shape, training, seconds)});
  }
  if (memory_of(shape, megatron_sp(64 * kK)).total() > machine.memory_bytes) result.wrong = "64K runs out of memory";
  if (memory_of(shape, megatron_sp(128 * kK)).total() <= machine.memory_bytes) result.wrong = "128K does not run out of memory";
  result.constants = {"machines/ulysses-a100x64", "kernels/triton-a100", "models/megatron-30b"};
  result.note = "one tensor-parallel group of 64, one sequence, nothing computed again, as Megatron-SP is meant to do without it: assumed";
  return result;
}

Training alst(int context, std::int64_t tokens) {
  Training training = attention_over(context, tokens, "ulysses", LayoutKind::contiguous);
  training.recompute = Recompute::all;
  training.optimizer_on_host = training.checkpoints_on_host = training.tiled_ffn = training.tiled_loss = true;
  return training;
}

Result alst_times() {
  const simulate::Machine machine = load_simulated_machine("h100x64", "fa2-h100");
  Result result{.setup = "ALST, Llama 8B, iteration of 3.7M tokens on 8 H100 and of 15M on 32",
                .unit = "s",
                .tolerance = {Tolerance::relative, 0.10}};
  result.figures = {{"3.7M", 6455, seconds("llama3-8b", machine, alst(8, 3'700'000))},
                    {"15M", 26709, seconds("llama3-8b", machine, alst(32, 15'000'000))}};
  result.constants = {"machines/h100x64", "kernels/fa2-h100", "models/llama3-8b"};
  result.note = "FlashAttention-2, whole layers again in backward; copies to the host are hidden";
  return result;
}

/// The most tokens that fit, of all ranks. Attention's workspace is that of a short sequence, as it grows with the tokens.
double longest(const simulate::Machine& machine, Training training) {
  const simulate::Shape shape = load_shape("llama3-8b");
  training.tokens = 8 * kK * training.context;
  const Iteration brief = simulate::simulate_iteration(shape, machine, training);
  return 1e-3 * static_cast<double>(simulate::longest_that_fits(shape, machine, training, brief.workspace / (8.0 * kK)));
}

Result alst_ladder() {
  const simulate::Machine machine = load_simulated_machine("h100x8");
  Result result{
      .setup = "ALST, Llama 8B, 8 H100, longest sequence, feature by feature", .unit = "K", .tolerance = {Tolerance::relative, 0.20}};
  Training training = alst(1, 1);
  training.replicas = 8;
  training.checkpoints_on_host = training.tiled_ffn = training.tiled_loss = false;
  const auto add = [&](const char* name, double published) { result.figures.push_back({name, published, longest(machine, training)}); };
  add("baseline", 32);
  training.tiled_loss = true;
  add("tiled loss", 160);
  training.context = 8, training.replicas = 1;
  add("Ulysses", 1100);
  training.tiled_ffn = true;
  add("tiled MLP", 1200);
  training.tiled_ffn = false, training.checkpoints_on_host = true;
  add("offload, no tiled MLP", 2400);
  training.tiled_ffn = true;
  add("all", 3700);
  result.constants = {"machines/h100x8", "models/llama3-8b"};
  result.note = "optimizer on the host from the first step on; memory of the host is not counted";
  return result;
}

/// Tokens/s of a device that trains on sequences of a length, about as many tokens in all as the longest of its Table 1.
double short_sequences_rate(const char* model, std::int64_t length, bool causal) {
  constexpr std::int64_t kTokens = 92 * kK;
  Training training = attention_over(1, kTokens / length * length, "ring", LayoutKind::contiguous);
  training.documents.assign(static_cast<std::size_t>(kTokens / length), length);
  training.causal = causal, training.replicas = 2, training.recompute = Recompute::all;
  const simulate::Machine machine = load_simulated_machine("a100x8");
  return simulate::simulate_iteration(load_shape(model), machine, training).tokens_per_second(training) / training.devices();
}

Result flat_and_falling() {
  Result result{.setup = "LLaMA of 0.4B with FlashAttention-2 and TransNormer with Lightning Attention-2, 2 A100, 1K and 92K",
                .unit = "tokens/s",
                .tolerance = {Tolerance::relative, 0.12}};
  result.figures = {{"FlashAttention-2 1K", 35931, short_sequences_rate("llama-400m", kK, true)},
                    {"FlashAttention-2 92K", 4078, short_sequences_rate("llama-400m", 92 * kK, true)}};
  double least = 1e300, most = 0;
  for (const std::int64_t thousands : {1, 2, 4, 8, 16, 32, 64, 80, 92}) {
    const double rate = short_sequences_rate("tnl-385m", thousands * kK, true);
    least = std::min(least, rate), most = std::max(most, rate);
  }
  const Figure flat{"Lightning Attention-2, least over most", 0.965, least / most};
  if (!inside(flat, {Tolerance::relative, 0.02}))
    result.wrong =
        fmt::format("Lightning Attention-2 from 1K to 92K, least over most: {:.3f}, published 0.965, tolerance 2 %", flat.simulated);
  result.constants = {"machines/a100x8", "kernels/fa2-a100", "models/llama-400m", "models/tnl-385m"};
  result.note = fmt::format(
      "96K tokens a device, ZeRO-3, whole layers again in backward: assumed. Without the causal mask's halves 92K takes {:.0f}; at 1K its "
      "framework runs matrices, and all between them, at half of our rates",
      short_sequences_rate("llama-400m", 92 * kK, false));
  return result;
}

/// How many times as fast stripes are as a ring of contiguous parts; two devices share the matrices, as in its Table 2.
double striped_speedup(const simulate::Machine& machine, int context, std::int64_t tokens) {
  const auto iteration = [&](LayoutKind layout) {
    Training training = attention_over(context, tokens, "ring", layout);
    training.tensor = 2, training.recompute = Recompute::all;
    return seconds("llama-3b-jax", machine, training);
  };
  return iteration(LayoutKind::contiguous) / iteration(LayoutKind::striped);
}

Result striped() {
  Result result{
      .setup = "Striped Attention over ring, 3B: 256K on 8 A100, 768K on 16 TPU v4", .unit = "x", .tolerance = {Tolerance::relative, 0.08}};
  result.figures = {{"8 A100", 1.45, striped_speedup(load_simulated_machine("a100x8", "jax-a100"), 4, 256 * kK)},
                    {"16 TPU v4", 1.65, striped_speedup(load_simulated_machine("tpu-v4x16"), 8, 768 * kK)}};
  result.constants = {"machines/a100x8", "kernels/jax-a100", "machines/tpu-v4x16", "models/llama-3b-jax"};
  result.note =
      "two devices share matrices, tiles of 2048 x 4096 (TPU: 2048) are computed whole, attention in float32 as its source; whole layers "
      "again in backward. Its own bounds from flop alone are 1.71 and 1.84; in all runs of its Tables 3 to 5 a striped tile costs about "
      "1.1 "
      "times a ring's, also where both compute the same tiles (0.94 at blocks of 4K), which nothing in its source explains";
  return result;
}

/// Memory of the first stage of 8, whose micro-batches are all in flight, in MB as PyTorch prints them; `ranks` share a sequence (its Ring
/// Self-Attention) or the matrices (Megatron of 2021, which does not split norms).
Memory rsa_stage(int ranks, bool by_sequence) {
  constexpr int kSequences = 64, kStages = 8;
  constexpr std::int64_t kLength = 512;
  Training training;
  training.documents.assign(static_cast<std::size_t>(ranks * kSequences / kStages), kLength);
  training.tokens = kLength * ranks * kSequences / kStages;
  (by_sequence ? training.context : training.tensor) = ranks;
  training.split_norms = false, training.recompute = Recompute::none, training.zero = 0, training.in_flight = kStages;
  return memory_of(load_shape("bert-large-stage"), training);
}

Result rsa_memory() {
  constexpr double kMegabyte = 1024 * 1024;
  const simulate::Machine machine = load_simulated_machine("p100x64");
  Result result{.setup = "Ring Self-Attention, 64 sequences of 512 a device, 8 stages, P100: memory of 1, 2, 4 and 8 devices",
                .unit = "MB",
                .tolerance = {Tolerance::relative, 0.05}};
  const double published[] = {8477.53, 8478.76, 8481.26, 8490.75};
  for (int i = 0; i < 4; ++i)
    result.figures.push_back({fmt::format("{} devices", 1 << i), published[i], rsa_stage(1 << i, true).total() / kMegabyte});
  for (const int ranks : {1, 2, 4})
    if (rsa_stage(ranks, false).total() > machine.memory_bytes)
      result.wrong = fmt::format("tensor parallelism of {} runs out of memory", ranks);
  if (rsa_stage(8, false).total() <= machine.memory_bytes) result.wrong = "tensor parallelism of 8 does not run out of memory";
  result.constants = {"machines/p100x64", "models/bert-large-stage"};
  result.note = fmt::format(
      "BERT Large, f16: Table 4 does not name the model, but 8 stages need layers, and 8 devices heads, that 8 divides; 8 micro-batches. "
      "Tensor parallelism of 2, 4 and 8: {:.0f}, {:.0f}, {:.0f} (published 9520, 12233, out of memory)",
      rsa_stage(2, false).total() / kMegabyte, rsa_stage(4, false).total() / kMegabyte, rsa_stage(8, false).total() / kMegabyte);
  return result;
}

}  // namespace

std::vector<Row> training_rows() {
  return {{"S14", dist_flash_iterations},
          {"S15", dist_flash_overlap},
          {"S17", nemo_scaling},
          {"S18", nemo_without},
          {"S19", ulysses_30b},
          {"S20", megatron_30b},
          {"S21", alst_times},
          {"S22", alst_ladder},
          {"S28", flat_and_falling},
          {"S30", striped},
          {"S31", rsa_memory}};
}

}  // namespace periplus::launch::exam
