// Strategy figures of `periplus bench linear`: 8 ranks, links and kernels paced.
#include <algorithm>
#include <vector>

#include <fmt/format.h>

#include "launch/bench/figure_tools.h"
#include "launch/bench/linear_figures.h"
#include "launch/bench/paced_run.h"
#include "parallel/linear_attention.h"
#include "parallel/plan/ops.h"

namespace periplus::launch::bench {
namespace {

constexpr int kRanks = 8, kHeads = 16, kWidth = 128;
constexpr std::int64_t kRowsPerRank = 4096;
constexpr double kRankFlops = 2e11;  ///< About what one core's kernels do.
/// Runs take so many times as long as what they stand for: eight ranks' real copies on a few cores, which links and kernels do not
/// have, then count little.
constexpr double kSlowMotion = 8;

LinearAttentionProblem problem(LayoutKind layout) {
  const std::vector<std::int64_t> borders{0, kRanks * kRowsPerRank};
  LinearAttentionProblem result{.layout = SequenceLayout::make(layout, kRanks, borders)};
  result.heads = kHeads;
  result.head_size = kWidth;
  result.dtype = DType::bf16;
  result.decay = Decay::scalar;
  return result;
}

const execute::Pace kPace = [](const plan::Program& program, const plan::Step& step) {
  return kSlowMotion * plan::flops(program, step) / kRankFlops;
};

comm::Links links(double gbytes, double latency) {
  return {{.bytes_per_second = gbytes * 1e9 / kSlowMotion, .latency_seconds = latency * kSlowMotion, .sharing = comm::Sharing::port}};
}

/// Seconds of forward and backward, and what of them is not the compute of the busiest rank.
struct Layer {
  double seconds = 0, exposed = 0;
};
void add(Layer& layer, const plan::Plan& plan, double slow_seconds) {
  layer.seconds += slow_seconds / kSlowMotion;
  layer.exposed += (slow_seconds - bounds_of(plan, links(1, 0), kPace).compute) / kSlowMotion;
}
Layer simulated_layer(const LinearAttentionProblem& what, const std::string& strategy, const comm::Links& over) {
  Layer layer;
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const plan::Plan plan = make_plan(what, {.strategy = strategy}, pass);
    add(layer, plan, simulated_seconds(plan, over, kPace));
  }
  return layer;
}
Layer run_layer(const LinearAttentionProblem& what, const std::string& strategy, const comm::Links& over) {
  Layer layer;
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const plan::Plan plan = make_plan(what, {.strategy = strategy}, pass);
    add(layer, plan, execute::rehearse(plan, over, kPace).seconds);
  }
  return layer;
}

Figure chain_figure(double gbytes, double latency_ms, const Goal& goal) {
  const std::string name = fmt::format("lasp / lasp2 time, {} GB/s, {} ms latency", gbytes, latency_ms);
  return {"C14", name, [=](Sampling& sampling) {
            Line line;
            line.unit = "ms";
            const LinearAttentionProblem what = problem(LayoutKind::contiguous);
            std::vector<double> chain, gather, ratios;
            for (int sample = 0; sample < sampling.samples; ++sample) {
              sampling.progress(fmt::format("sample {} of {}", sample + 1, sampling.samples));
              chain.push_back(1e3 * run_layer(what, "lasp", links(gbytes, latency_ms * 1e-3)).seconds);
              gather.push_back(1e3 * run_layer(what, "lasp2", links(gbytes, latency_ms * 1e-3)).seconds);
              ratios.push_back(chain.back() / gather.back());
            }
            line.value = median(gather), line.yardstick = median(chain), line.ratio = median(ratios);
            line.ratio_min = *std::ranges::min_element(ratios), line.ratio_max = *std::ranges::max_element(ratios);
            line.kept = line.taken = ratios.size();
            const comm::Links over = links(gbytes, latency_ms * 1e-3);
            line.more = {{"all_scan", 1e3 * run_layer(what, "all_scan", over).seconds},
                         {"simulated_ratio", simulated_layer(what, "lasp", over).seconds / simulated_layer(what, "lasp2", over).seconds}};
            line.goal = goal;
            return std::vector{line};
          }};
}

Figure exposed_figure(LayoutKind layout) {
  return {"exposed", fmt::format("lasp2, {}: time beyond compute / layer time, 1 GB/s", to_string(layout)), [=](Sampling& sampling) {
            Line line;
            line.unit = "ms";
            std::vector<double> waits, layers, ratios;
            for (int sample = 0; sample < sampling.samples; ++sample) {
              const Layer layer = run_layer(problem(layout), "lasp2", links(1, 20e-6));
              waits.push_back(1e3 * layer.exposed), layers.push_back(1e3 * layer.seconds);
              ratios.push_back(layer.exposed / layer.seconds);
            }
            line.value = median(waits), line.yardstick = median(layers), line.ratio = median(ratios);
            line.ratio_min = *std::ranges::min_element(ratios), line.ratio_max = *std::ranges::max_element(ratios);
            line.kept = line.taken = ratios.size();
            const Layer simulated = simulated_layer(problem(layout), "lasp2", links(1, 20e-6));
            line.more = {{"simulated_ratio", simulated.exposed / simulated.seconds}, {"simulated_ms", 1e3 * simulated.seconds}};
            line.goal = Goal{0.03, std::nullopt, true};
            return std::vector{line};
          }};
}

/// Independent of the sequence: (P - 1) H (d e + gate) x 4 bytes x units of a rank, each pass. Of the rank that sends most: the two
/// units of the last rank of a zigzag layout follow each other and are one.
Figure bytes_figure(LayoutKind layout, int units) {
  return {"bytes", fmt::format("lasp2, {}: bytes sent by a rank, forward / formula", to_string(layout)), [=](Sampling&) {
            Line line;
            line.unit = "bytes";
            const execute::Rehearsal run = execute::rehearse(make_plan(problem(layout), {}, Pass::forward), std::nullopt,
                                                             [](const plan::Program&, const plan::Step&) { return 0.0; });
            line.value = static_cast<double>(*std::ranges::max_element(run.bytes_sent));
            line.yardstick = static_cast<double>(kRanks - 1) * kHeads * (kWidth * kWidth + 1) * 4 * units;
            line.ratio = line.value / line.yardstick;
            if (line.ratio != 1) line.wrong = fmt::format("a rank sends {:.0f} bytes instead of {:.0f}", line.value, line.yardstick);
            return std::vector{line};
          }};
}

}  // namespace

std::vector<Figure> linear_strategy_figures() {
  return {bytes_figure(LayoutKind::contiguous, 1),  bytes_figure(LayoutKind::zigzag, 2),         exposed_figure(LayoutKind::contiguous),
          exposed_figure(LayoutKind::zigzag),       chain_figure(10, 0.02, {1.0, std::nullopt}), chain_figure(1, 0.02, {1.0, std::nullopt}),
          chain_figure(10, 5, {1.15, std::nullopt})};
}

}  // namespace periplus::launch::bench
