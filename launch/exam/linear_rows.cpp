// Rows of LASP-2 (arXiv 2502.07563): Linear-Llama3-1B on up to 16 DGX A100.
#include <algorithm>

#include <fmt/format.h>

#include "launch/descriptions.h"
#include "launch/exam/exam.h"
#include "parallel/simulate/iteration.h"

namespace periplus::launch::exam {
namespace {

using simulate::Iteration;
using simulate::Recompute;
using simulate::Training;

constexpr std::int64_t kK = 1024;
const std::vector<std::string> kConstants = {
    "machines/a100x128", "kernels/fa2-a100", "models/linear-llama3-1b",
    "models/linear-llama3-1b: overhead.iteration_seconds, overhead.host_seconds_per_token FITTED to S23"};

/// Table 6: tokens/s by thousands of tokens and devices; 0: out of memory.
struct Published {
  std::int64_t tokens;
  double rate[4];  ///< 16, 32, 64, 128 devices.
};
constexpr Published kTable[] = {{2, {1254, 1209, 1285, 1205}},       {4, {2478, 2446, 2327, 2344}},
                                {8, {4835, 4784, 4693, 4678}},       {16, {9530, 9494, 9305, 9313}},
                                {32, {18105, 17755, 17835, 17807}},  {64, {35507, 34240, 34118, 33344}},
                                {128, {68406, 68545, 67344, 66811}}, {256, {135635, 132605, 130215, 131550}},
                                {512, {0, 250586, 245353, 233442}},  {1024, {0, 0, 442221, 416465}},
                                {2048, {0, 0, 0, 769030}},           {4096, {0, 0, 0, 0}}};

Training lasp(int context, std::int64_t tokens, const char* strategy) {
  Training training;
  training.tokens = tokens, training.context = context, training.layout = LayoutKind::contiguous;
  training.recompute = Recompute::none, training.zero = 0;
  training.linear.strategy = strategy;
  return training;
}

Iteration run(const Training& training, const char* model = "linear-llama3-1b") {
  return simulate::simulate_iteration(load_shape(model), load_simulated_machine("a100x128"), training);
}

Result scalability() {
  Result result{.setup = "LASP-2, Table 6, tokens/s", .unit = "tokens/s", .tolerance = {Tolerance::relative, 0.10}};
  const simulate::Machine machine = load_simulated_machine("a100x128");
  for (const Published& row : kTable) {
    for (int i = 0; i < 4; ++i) {
      const Training training = lasp(16 << i, row.tokens * kK, "lasp2");
      const bool fits = memory_of(load_shape("linear-llama3-1b"), training).total() <= machine.memory_bytes;
      if (fits != (row.rate[i] > 0))
        result.wrong = fmt::format("{}K on {} devices {}", row.tokens, 16 << i, fits ? "fits" : "does not fit");
      if (row.rate[i] > 0)
        result.figures.push_back({fmt::format("{}K on {}", row.tokens, 16 << i), row.rate[i], run(training).tokens_per_second(training)});
    }
  }
  result.fitted = true;
  result.constants = kConstants;
  return result;
}

Result memory() {
  Result result{.setup = "LASP-2, memory by tokens a device", .unit = "GB", .tolerance = {Tolerance::relative, 0.08}};
  for (const auto& [thousands, published] : {std::pair{1, 25.6}, {2, 28.7}, {4, 33.8}, {8, 40.2}, {16, 57.8}}) {
    const Training training = lasp(16, 16 * thousands * kK, "lasp2");
    result.figures.push_back(
        {fmt::format("{}K", thousands), published, memory_of(load_shape("linear-llama3-1b"), training).total() * 1e-9});
  }
  result.constants = {"models/linear-llama3-1b"};
  result.note = "16 bytes a weight, all activations kept, f32 logits";
  return result;
}

/// Of the devices alone. The host works beside them and may hide a difference that the paper saw.
double device_seconds(const Iteration& iteration) { return iteration.seconds - iteration.ranks[0].overhead; }

/// What the devices take longer than with LASP-2, over its iteration.
double gain(std::int64_t tokens, const Training& other, const char* model = "linear-llama3-1b") {
  const Iteration ours = run(lasp(64, tokens, "lasp2"));
  return 100 * (device_seconds(run(other, model)) - device_seconds(ours)) / ours.seconds;
}

Result over_lasp1() {
  Result result{.setup = "LASP-2 over LASP-1, 64 A100", .unit = "%", .tolerance = {Tolerance::absolute, 5}};
  for (const auto& [thousands, published] : {std::pair{512, 7.3}, {2048, 15.2}}) {
    Training chain = lasp(64, thousands * kK, "lasp");
    chain.chain_in_turn = true;
    result.figures.push_back({fmt::format("{}K", thousands), published, gain(thousands * kK, chain)});
  }
  result.constants = kConstants;
  result.note =
      "as its source (lasp_fuse_parallel.py): a barrier before each forward, and a rank receives, computes, then sends; at 512K its "
      "kernels' many launches and copies of states are not counted";
  return result;
}

Result over_ring() {
  Result result{.setup = "LASP-2 over Ring Attention, 64 A100", .unit = "%", .tolerance = {Tolerance::absolute, 8}};
  for (const auto& [thousands, published] : {std::pair{512, 17.8}, {2048, 36.6}}) {
    Training ring = lasp(64, thousands * kK, "lasp2");
    ring.attention.strategy = "ring", ring.layout = LayoutKind::zigzag;
    result.figures.push_back({fmt::format("{}K", thousands), published, gain(thousands * kK, ring, "linear-llama3-1b-ring")});
  }
  result.constants = kConstants;
  result.note =
      "quadratic attention in the place of linear, as the paper says of its baseline, would take many times as long, and at 2048K its keys "
      "and "
      "values alone 11 s of the cards in forward: its ring must have moved and computed less";
  return result;
}

Result splits() {
  Result result{.setup = "LASP-2, split gathers, 64 A100, 1024K: change of tokens/s", .unit = "%", .tolerance = {Tolerance::at_most, 1}};
  Training training = lasp(64, 1024 * kK, "lasp2");
  training.linear.pieces = 1;
  const Iteration whole = run(training);
  for (const int pieces : {4, 16}) {
    training.linear.pieces = pieces;
    result.figures.push_back(
        {fmt::format("{} pieces", pieces), 0.006, 100 * std::abs(device_seconds(run(training)) - device_seconds(whole)) / whole.seconds});
  }
  result.constants = kConstants;
  result.note = "what the devices take more or less, over the iteration; pieces are heads, so that 16 are the most";
  return result;
}

}  // namespace

std::vector<Row> linear_rows() { return {{"S23", scalability}, {"S24", memory}, {"S25", over_lasp1}, {"S26", over_ring}, {"S27", splits}}; }

Chart lasp2_chart() {
  Chart chart{.title = "LASP-2 on 128 A100, Linear-Llama3-1B: tokens/s by length", .x_label = "tokens, thousands", .y_label = "tokens/s"};
  chart.curves = {{.name = "published", .points = {}}, {.name = "simulated", .points = {}}};
  for (const Published& row : kTable) {
    if (row.rate[3] == 0) continue;
    const Training training = lasp(128, row.tokens * kK, "lasp2");
    chart.curves[0].points.emplace_back(static_cast<double>(row.tokens), row.rate[3]);
    chart.curves[1].points.emplace_back(static_cast<double>(row.tokens), run(training).tokens_per_second(training));
  }
  return chart;
}

}  // namespace periplus::launch::exam
