// Kernel figures of `periplus bench linear`.
#include "launch/bench/linear_figures.h"

#include <memory>

#include <fmt/format.h>

#include "launch/bench/attention_data.h"
#include "launch/bench/figure_tools.h"
#include "launch/bench/linear_data.h"

namespace periplus::launch::bench {
namespace {

constexpr std::int64_t kWidth = 128;

/// Both passes on a sequence short enough for f64.
std::string check(LinearCase problem) {
  problem.rows = 300;
  problem.heads = 2;
  return find_wrong_result(LinearData(problem));
}

/// Floating-point operations of the matrix products of one forward pass over chunks of 64 tokens, masked halves included
/// (algorithms.md 5.5, 6.2): what larger chunks do beyond that does not count.
double forward_flop(const LinearCase& problem) {
  constexpr double kChunk = 64;
  const double d = static_cast<double>(problem.width), e = d;
  const double per_token = problem.delta_rule ? 6 * d * e + 2 * kChunk * (3 * d + 2 * e) : 4 * d * e + 2 * kChunk * (d + e);
  return per_token * static_cast<double>(problem.rows * problem.heads);
}

Figure rate_figure(const LinearCase& problem, const Goal& goal) {
  const std::string name =
      fmt::format("forward {} {}, d {} S {} H {}", to_text(problem), to_string(problem.dtype), problem.width, problem.rows, problem.heads);
  return {"C19", name, [=](Sampling& sampling) {
            Line line;
            const Unit unit = unit_of(problem.dtype);
            line.unit = "GFLOP/s";
            line.note = fmt::format("of the {} peak", to_string(unit));
            line.wrong = check(problem);
            if (!line.wrong.empty()) return std::vector{line};
            const OneCore pinned;
            const LinearData data(problem);
            const double gflop = forward_flop(problem) * 1e-9;
            const Selection selection = take_samples({{[&] { data.forward(); }, unit, 1}, {[&] { data.backward(); }, unit, 1}}, sampling);
            line.value = median_of(selection, [&](const Sample& sample) { return gflop / sample[0].seconds; });
            line.yardstick = median_of(selection, [](const Sample& sample) { return sample[0].peak(); });
            fill(line, selection, [&](const Sample& sample) { return gflop / sample[0].seconds / sample[0].peak(); });
            line.more = {{"backward_over_forward",
                          median_of(selection, [](const Sample& sample) { return sample[1].seconds / sample[0].seconds; })}};
            judge(line, problem.dtype, goal);
            return std::vector{line};
          }};
}

/// One head: the state of a core must do for any length.
Figure length_figure() {
  constexpr std::int64_t kLong = 131072, kShort = 4096;
  return {"C13", "tokens/s at 128K / at 4K, scalar decay, forward + backward", [](Sampling& sampling) {
            Line line;
            line.unit = "tokens/s";
            const LinearCase problem{.rows = kShort};
            line.wrong = check(problem);
            if (!line.wrong.empty()) return std::vector{line};
            const OneCore pinned;
            LinearCase longer = problem;
            longer.rows = kLong;
            const LinearData small(problem), large(longer);
            const Unit unit = unit_of(problem.dtype);
            const auto both = [](const LinearData& data) { data.forward(), data.backward(); };
            const Selection selection = take_samples({{[&] { both(large); }, unit, 1}, {[&] { both(small); }, unit, 1}}, sampling);
            const auto rate = [](std::int64_t rows, const Timing& timing) { return static_cast<double>(rows) / timing.seconds; };
            line.value = median_of(selection, [&](const Sample& sample) { return rate(kLong, sample[0]); });
            line.yardstick = median_of(selection, [&](const Sample& sample) { return rate(kShort, sample[1]); });
            fill(line, selection, [&](const Sample& sample) { return rate(kLong, sample[0]) / rate(kShort, sample[1]); });
            judge(line, problem.dtype, {0.98, std::nullopt});
            return std::vector{line};
          }};
}

Figure softmax_figure() {
  constexpr std::int64_t kRows = 32768;
  return {"C20", "softmax attention / linear time, 32K, bf16, forward + backward", [](Sampling& sampling) {
            Line line;
            const LinearCase problem{.rows = kRows};
            line.wrong = check(problem);
            if (!line.wrong.empty()) return std::vector{line};
            const OneCore pinned;
            const AttentionData softmax(causal_case(problem.dtype, kRows, 1, kWidth));
            softmax.forward();
            softmax.compute_delta();
            const LinearData linear(problem);
            const Unit unit = unit_of(problem.dtype);
            const Selection selection = take_samples(
                {{[&] { softmax.forward(), softmax.backward(); }, unit, 1}, {[&] { linear.forward(), linear.backward(); }, unit, 1}},
                sampling);
            line.value = milliseconds(selection, 0);
            line.yardstick = milliseconds(selection, 1);
            fill_times(line, selection, 0, 1);
            judge(line, problem.dtype, {12, std::nullopt});
            return std::vector{line};
          }};
}

}  // namespace

std::vector<Figure> linear_kernel_figures() {
  const Goal scalar{0.30, 0.45}, others{0.15, 0.25};
  constexpr std::int64_t kRows = 8192;
  std::vector<Figure> figures = {length_figure()};
  for (const DType dtype : {DType::bf16, DType::f32}) {
    figures.push_back(rate_figure({dtype, Decay::scalar, false, kRows}, scalar));
    figures.push_back(rate_figure({dtype, Decay::diagonal, false, kRows}, others));
    figures.push_back(rate_figure({dtype, Decay::none, true, kRows}, others));
    figures.push_back(rate_figure({dtype, Decay::scalar, true, kRows}, others));
  }
  figures.push_back(softmax_figure());
  return figures;
}

}  // namespace periplus::launch::bench
