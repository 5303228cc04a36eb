// Rows of one attention over ranks: ring-flash-attention, USP, MagiAttention, DISTFLASHATTN's count, TokenRing, BurstAttention.
#include <algorithm>

#include <fmt/format.h>

#include "launch/descriptions.h"
#include "launch/exam/attention_case.h"
#include "launch/exam/exam.h"
#include "parallel/simulate/simulate.h"

namespace periplus::launch::exam {
namespace {

constexpr std::int64_t kK = 1024;

/// Percent of what one device reaches: README of ring-flash-attention, 32/8 heads, 8K tokens a device. One device runs those 8K, an
/// eighth of a rank's work.
double percent_of_one(const simulate::Machine& machine, LayoutKind layout, bool with_backward) {
  const AttentionCase ring{.ranks = 8, .tokens = 64 * kK, .heads = 32, .kv_heads = 8, .layout = layout};
  AttentionCase one = ring;
  one.ranks = 1, one.tokens = 8 * kK;
  simulate::Machine plain = machine;  // nothing to merge
  plain.kernels.first_merge_passes = plain.kernels.backward_merge_passes = 0;
  double ours = 0, alone = 0;
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    if (pass == Pass::backward && !with_backward) break;
    ours += seconds_of(ring, machine, pass), alone += seconds_of(one, plain, pass);
  }
  return 100 * 8 * alone / ours;
}

Result ring_h800(bool with_backward) {
  const simulate::Machine machine = load_simulated_machine("h800x8");
  const std::vector<double> published = with_backward ? std::vector{53.9, 82.9, 90.2} : std::vector{52.1, 74.4, 85.2};
  Result result{.setup = fmt::format("ring-flash-attention, 8 x H800, 64K causal, {}", with_backward ? "forward and backward" : "forward"),
                .unit = "%",
                .tolerance = {Tolerance::absolute, with_backward ? 3.0 : 4.0},
                .figures = {{"ring", published[0], percent_of_one(machine, LayoutKind::contiguous, with_backward)},
                            {"stripe", published[1], percent_of_one(machine, LayoutKind::striped, with_backward)},
                            {"zigzag", published[2], percent_of_one(machine, LayoutKind::zigzag, with_backward)}}};
  result.constants = {"machines/h800x8", "kernels/fa2-h800-eager-merge"};
  result.note = "merges as its PyTorch operations, counted from its source; their rate fitted to its stripes on A100";
  return result;
}

Result zigzag_a100() {
  const simulate::Machine machine = load_simulated_machine("a100-40gb-x8");
  Result result{.setup = "ring-flash-attention, 8 x A100, 64K causal, zigzag",
                .unit = "%",
                .tolerance = {Tolerance::absolute, 4},
                .figures = {{"forward", 81.7, percent_of_one(machine, LayoutKind::zigzag, false)},
                            {"forward and backward", 89.8, percent_of_one(machine, LayoutKind::zigzag, true)}}};
  result.constants = {"machines/a100-40gb-x8", "kernels/fa2-a100-eager-merge"};
  const auto stripes = [](const simulate::Machine& on, bool with_backward) {
    return percent_of_one(on, LayoutKind::striped, with_backward);
  };
  result.note = fmt::format(
      "of 40 GB: its README does not say. Its stripes, 69.6 % forward and 82.6 % with backward, to which merges are fitted, come to {:.1f} "
      "and "
      "{:.1f} %",
      stripes(machine, false), stripes(machine, true));
  return result;
}

AttentionCase usp(std::int64_t tokens, int heads, int kv_heads, int head_ranks) {
  AttentionCase c{.ranks = 8, .tokens = tokens, .heads = heads, .kv_heads = kv_heads};
  c.how.strategy = head_ranks == 8 ? "ulysses" : head_ranks == 1 ? "ring" : "usp";
  if (c.how.strategy == "usp") c.how.head_ranks = head_ranks;
  return c;
}

Result usp_l20() {
  const simulate::Machine machine = load_simulated_machine("l20x8");
  Result result{.setup = "USP, 8 x L20 over PCIe, 32K x 128, 4 queries a KV head, zigzag, forward",
                .unit = "it/s",
                .tolerance = {Tolerance::relative, 0.25}};
  const std::vector<std::pair<int, double>> published = {{8, 14.3}, {4, 32.8}, {2, 62.8}, {1, 58.4}};
  for (const auto& [degree, rate] : published)
    result.figures.push_back({fmt::format("U{}", degree), rate, 1 / seconds_of(usp(32 * kK, 32, 8, degree), machine, Pass::forward)});
  const auto s = [&](std::size_t i) { return result.figures[i].simulated; };
  if (!(s(0) < s(1) && s(1) < s(3) && s(3) < s(2))) result.wrong = "the order is not U8 < U4 < U1 < U2";
  result.constants = {"machines/l20x8", "kernels/fa2-l20-eager-merge"};
  result.note =
      "32 heads assumed; neither PCIe rates under an all-to-all nor L20 kernels are published, and 0.3 GB/s a device for U8 is no rate of "
      "a link";
  return result;
}

Result usp_a100() {
  const simulate::Machine machine = load_simulated_machine("a100x8", "fa2-a100-eager-merge");
  Result result{.setup = "USP, 8 x A100, 128K x 8 heads of 128, zigzag, forward", .unit = "it/s", .tolerance = {Tolerance::relative, 0.10}};
  const std::vector<std::pair<int, double>> published = {{8, 21.0}, {4, 21.9}, {2, 21.4}, {1, 18.2}};
  constexpr double kBatch = 2;
  for (const auto& [degree, rate] : published)
    result.figures.push_back(
        {fmt::format("U{}", degree), rate, 1 / (kBatch * seconds_of(usp(128 * kK, 8, 8, degree), machine, Pass::forward))});
  const double last = result.figures.back().simulated;
  for (std::size_t i = 0; i < 3; ++i)
    if (result.figures[i].simulated < last) result.wrong = "U1 is not the slowest";
  result.constants = {"machines/a100x8", "kernels/fa2-a100-eager-merge"};
  result.note = "batch 2, the default of its script: a batch of 1 would be 92 TFLOP/s, half of what its kernel reaches";
  return result;
}

Result magi_dense() {
  const simulate::Machine machine = load_simulated_machine("h100x64"), eager = load_simulated_machine("h100x64", "fa3-h100-eager-merge");
  Result result{.setup = "MagiAttention's chart, H100, 8K a device, 64:8 heads, causal forward, CP 8 to 64",
                .unit = "TFLOP/s",
                .tolerance = {Tolerance::relative, 0.10}};
  const double ulysses[] = {602, 557, 580, 586}, ring[] = {421, 454, 451, 446};
  for (int i = 0; i < 4; ++i) {
    AttentionCase c{.ranks = 8 << i, .tokens = (8 << i) * 8 * kK, .heads = 64, .kv_heads = 8};
    const auto rate = [&](const simulate::Machine& on) {
      return flops_of(c, Pass::forward) / c.ranks / seconds_of(c, on, Pass::forward) * 1e-12;
    };
    result.figures.push_back({fmt::format("ring CP {}", c.ranks), ring[i], rate(eager)});
    c.how.strategy = "ulysses";
    result.figures.push_back({fmt::format("Ulysses CP {}", c.ranks), ulysses[i], rate(machine)});
  }
  result.constants = {"machines/h100x64", "kernels/fa3-h100", "kernels/fa3-h100-eager-merge"};
  result.note = "what the ring's merges cost is not published: separate PyTorch operations, 8.5 passes over f32 rows";
  return result;
}

Result magi_documents() {
  Result result{.setup = "MagiAttention's chart, documents", .unit = "TFLOP/s", .tolerance = {Tolerance::relative, 0.25}};
  result.not_simulated = "its mix of lengths is shown as a plot only; not among the 30";
  return result;
}

/// Blocks that count one each, as the paper counts: those of all ranks over those that follow each other.
double counted_speedup(const char* strategy, LayoutKind layout) {
  AttentionCase c{.ranks = 8, .tokens = 8 * kK, .heads = 8, .kv_heads = 8, .layout = layout};
  c.how.strategy = strategy;
  const auto one = [](const plan::Program& program, const plan::Step& step) {
    double pairs = 0;
    if (step.op == plan::Op::attend)
      for (const Band& band : program.bands_of(step)) pairs += static_cast<double>(area(band));
    return pairs > 0 ? 1.0 : 0.0;
  };
  return 36 / simulate::simulate(plan_of(c, Pass::forward), {one, {}}).makespan;
}

Result balanced_count() {
  return {.setup = "DISTFLASHATTN, balanced and unbalanced schedule, 8 devices, blocks counted",
          .unit = "x",
          .tolerance = {Tolerance::relative, 0.05},
          .figures = {{"balanced", 7.5, counted_speedup("balanced_helper", LayoutKind::contiguous)},
                      {"unbalanced", 4.5, counted_speedup("ring", LayoutKind::contiguous)}},
          .note = "of 36 blocks; theory 7.2 and 4.5"};
}

/// Time of messages alone, by step of the ring.
double message_milliseconds(const AttentionCase& c, const simulate::Machine& machine, int steps) {
  const auto nothing = [](const plan::Program&, const plan::Step&) { return 0.0; };
  return 1e3 * simulate::simulate(plan_of(c, Pass::forward), {nothing, machine.links}).makespan / steps;
}

Result token_ring() {
  const simulate::Machine machine = load_simulated_machine("a10x4");
  AttentionCase c{.ranks = 4, .tokens = 24000, .heads = 32, .kv_heads = 32, .layout = LayoutKind::contiguous, .causal = false};
  Result result{.setup = "TokenRing, 4 x A10, 32 heads of 128, 24,000 tokens, messages of a step",
                .unit = "ms",
                .tolerance = {Tolerance::relative, 0.12}};
  result.figures.push_back({"ring", 7.6, message_milliseconds(c, machine, 3)});
  c.how.strategy = "token_ring", c.narrow_sums = true;
  const double step = message_milliseconds(c, machine, 4);  // results of the last queries travel in a fourth
  result.figures.push_back({"TokenRing, first steps", 3.5, step});
  result.figures.push_back({"TokenRing, step 2", 4.6, step});
  result.fitted = true;
  result.constants = {"machines/a10x4: links.device_bytes_per_second FITTED to the ring's 7.6 ms"};
  result.note = "partial results travel as f16; one rate for all links: the third step, both ways over one bridge, is not told apart";
  return result;
}

Result burst_volume() {
  AttentionCase c{
      .ranks = 8, .tokens = 8 * kK, .heads = 8, .kv_heads = 8, .layout = LayoutKind::contiguous, .causal = false, .dtype = DType::f32};
  const auto bytes = [&](const char* strategy) {
    c.how.strategy = strategy;
    double sum = 0;
    for (const plan::Program& program : plan_of(c, Pass::backward).programs) sum += static_cast<double>(program.bytes_sent());
    return sum;
  };
  return {
      .setup = "BurstAttention, backward volume against a ring of keys and values, MHA, elements",
      .unit = "%",
      .tolerance = {Tolerance::absolute, 1},
      .figures = {{"change", -25, 100 * (bytes("token_ring") / bytes("ring") - 1)}},
      .note = "queries, their gradients and those of the result travel in token_ring's backward as in Burst's; lse and delta are the rest"};
}

}  // namespace

std::vector<Row> attention_rows() {
  return {{"S7", [] { return ring_h800(false); }},
          {"S8", [] { return ring_h800(true); }},
          {"S9", zigzag_a100},
          {"S10", usp_l20},
          {"S11", usp_a100},
          {"S12", magi_dense},
          {"S13", magi_documents},
          {"S16", balanced_count},
          {"S29", token_ring},
          {"S32", burst_volume}};
}

}  // namespace periplus::launch::exam
