// What `periplus bench kernels` measures. Rates count the pairs that the mask allows: 4 d flop forward, 10 d backward.
#include "launch/bench/kernel_figures.h"

#include <algorithm>
#include <chrono>
#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <omp.h>

#include "launch/bench/accuracy.h"
#include "launch/bench/attention_data.h"
#include "launch/bench/documents.h"
#include "launch/bench/figure_tools.h"
#include "launch/bench/onednn_products.h"

namespace periplus::launch::bench {
namespace {

using kernels::CpuLevel;

enum class Pass { forward, backward };

const char* name_of(Pass pass) { return pass == Pass::forward ? "forward" : "backward"; }
double flop_of(Pass pass, const AttentionCase& problem) { return pass == Pass::forward ? forward_flop(problem) : backward_flop(problem); }
std::function<void()> work_of(Pass pass, const AttentionData& data) {
  if (pass == Pass::forward) return [&data] { data.forward(); };
  return [&data] { data.backward(); };
}

/// A small problem of the same kind against f64, before anything is timed.
std::string check_causal(DType dtype, std::int64_t width, Pass pass) {
  const AttentionData small(causal_case(dtype, 520, 2, width));
  return find_wrong_result(
      small, [](const AttentionData& data) { data.forward(); }, pass == Pass::backward);
}

/// Ready for either pass.
std::unique_ptr<AttentionData> prepared(const AttentionCase& problem, bool backward) {
  auto data = std::make_unique<AttentionData>(problem);
  if (backward) {
    data->forward();
    data->compute_delta();
  }
  return data;
}

struct RateCase {
  std::string id;
  Pass pass;
  DType dtype;
  std::int64_t rows, heads, width;
  Goal goal;
};

Figure rate_figure(const RateCase& c) {
  const std::string name = fmt::format("causal {} {} d {} S {} H {}", name_of(c.pass), to_string(c.dtype), c.width, c.rows, c.heads);
  return {c.id, name, [c](Sampling& sampling) {
            Line line;
            const Unit unit = unit_of(c.dtype);
            line.unit = "GFLOP/s";
            line.note = fmt::format("of the {} peak", to_string(unit));
            line.wrong = check_causal(c.dtype, c.width, c.pass);
            if (!line.wrong.empty()) return std::vector{line};
            const OneCore pinned;
            const auto data = prepared(causal_case(c.dtype, c.rows, c.heads, c.width), c.pass == Pass::backward);
            const double gflop = flop_of(c.pass, data->problem) * 1e-9;
            const Selection selection = take_samples({{work_of(c.pass, *data), unit, 1}}, sampling);
            line.value = median_of(selection, [&](const Sample& sample) { return gflop / sample[0].seconds; });
            line.yardstick = median_of(selection, [](const Sample& sample) { return sample[0].peak(); });
            fill(line, selection, [&](const Sample& sample) { return gflop / sample[0].seconds / sample[0].peak(); });
            judge(line, c.dtype, c.goal);
            return std::vector{line};
          }};
}

OneDnnProducts fastest_products(std::int64_t heads, std::int64_t rows, std::int64_t width, std::string& note) {
  using Clock = std::chrono::steady_clock;
  std::unique_ptr<OneDnnProducts> fastest;
  Clock::duration least = Clock::duration::max();
  for (const std::int64_t block : {512, 1024}) {
    for (const bool panels : {false, true}) {
      auto products = std::make_unique<OneDnnProducts>(ProductShape{heads, rows, width, block, panels});
      Clock::duration best = Clock::duration::max();
      for (int i = 0; i < 4; ++i) {
        const Clock::time_point start = Clock::now();
        products->run();
        best = std::min(best, Clock::now() - start);
      }
      if (best >= least) continue;
      least = best;
      fastest = std::move(products);
      note = fmt::format("fastest of 4 splittings: {} {}", panels ? "panels of rows" : "square blocks of", block);
    }
  }
  return std::move(*fastest);
}

Figure onednn_figure() {
  constexpr std::int64_t kRows = 4096, kHeads = 4, kWidth = 128;
  return {"C2", fmt::format("oneDNN's 2 products / our forward, d {} S {} H {}", kWidth, kRows, kHeads), [](Sampling& sampling) {
            Line line;
            const Unit unit = unit_of(DType::bf16);
            if (unit == Unit::fma) {
              line.skipped =
                  fmt::format("oneDNN multiplies bf16 natively where it can; level {} does not", to_string(kernels::cpu_level()));
              return std::vector{line};
            }
            line.wrong = check_causal(DType::bf16, kWidth, Pass::forward);
            if (!line.wrong.empty()) return std::vector{line};
            const OneCore pinned;
            sampling.progress("choosing oneDNN's splitting");
            const OneDnnProducts products = fastest_products(kHeads, kRows, kWidth, line.note);
            const auto data = prepared(causal_case(DType::bf16, kRows, kHeads, kWidth), false);
            const std::vector<Side> sides = {{[&] { data->forward(); }, unit, 1}, {[&] { products.run(); }, unit, 1}};
            const Selection selection = take_samples(sides, sampling);
            line.value = milliseconds(selection, 0);
            line.yardstick = milliseconds(selection, 1);
            fill_times(line, selection, 1, 0);
            judge(line, DType::bf16, {1.4, 1.8});
            return std::vector{line};
          }};
}

Figure backward_over_forward_figure(std::int64_t rows, std::int64_t heads) {
  constexpr std::int64_t kWidth = 128;
  return {"C3", fmt::format("backward / forward time, bf16 d {} S {} H {}", kWidth, rows, heads), [=](Sampling& sampling) {
            Line line;
            line.wrong = check_causal(DType::bf16, kWidth, Pass::backward);
            if (!line.wrong.empty()) return std::vector{line};
            const OneCore pinned;
            const auto data = prepared(causal_case(DType::bf16, rows, heads, kWidth), true);
            const Unit unit = unit_of(DType::bf16);
            const std::vector<Side> sides = {{[&] { data->backward(); }, unit, 1}, {[&] { data->forward(); }, unit, 1}};
            const Selection selection = take_samples(sides, sampling);
            line.value = milliseconds(selection, 0);
            line.yardstick = milliseconds(selection, 1);
            fill_times(line, selection, 0, 1);
            judge(line, DType::bf16, {3.4, 2.9, true});
            return std::vector{line};
          }};
}

AttentionCase full_case(std::int64_t query_rows, std::int64_t key_rows, std::int64_t width) {
  return {DType::bf16, query_rows, key_rows, 1, width, {{0, query_rows, 0, key_rows}}};
}

Figure sequence_figure() {
  constexpr std::int64_t kBlocks = 8, kRows = 4096, kWidth = 128;
  return {"C6", "8 key blocks of 4096 in sequence / one call", [](Sampling& sampling) {
            Line line;
            const AttentionData small(full_case(136, 8 * 72, kWidth));
            line.wrong = find_wrong_result(
                small, [](const AttentionData& data) { data.forward_in_sequence(kBlocks); }, false);
            if (!line.wrong.empty()) return std::vector{line};
            const OneCore pinned;
            const auto data = prepared(full_case(kRows, kBlocks * kRows, kWidth), false);
            const Unit unit = unit_of(DType::bf16);
            const std::vector<Side> sides = {{[&] { data->forward_in_sequence(kBlocks); }, unit, 1}, {[&] { data->forward(); }, unit, 1}};
            const Selection selection = take_samples(sides, sampling);
            line.value = milliseconds(selection, 0);
            line.yardstick = milliseconds(selection, 1);
            fill_times(line, selection, 0, 1);
            judge(line, DType::bf16, {1.06, 1.03, true});
            return std::vector{line};
          }};
}

AttentionCase document_case(std::uint64_t seed, std::int64_t tokens) {
  AttentionCase problem = causal_case(DType::bf16, tokens, 1, 128);
  problem.bands = document_bands(wikipedia_row(seed, tokens));
  return problem;
}

/// Rate of each problem but the first, over the rate of the first.
std::vector<double> document_ratios(const Sample& sample, const std::vector<AttentionCase>& problems) {
  std::vector<double> ratios;
  const double dense = forward_flop(problems[0]) / sample[0].seconds;
  for (std::size_t side = 1; side < sample.size(); ++side) ratios.push_back(forward_flop(problems[side]) / sample[side].seconds / dense);
  return ratios;
}

Figure documents_figure() {
  constexpr std::int64_t kTokens = 32768;
  constexpr std::uint64_t kRows = 3;  // packed with seeds 1, 2, 3
  return {"C17", "Wikipedia documents packed to 32K / dense causal", [](Sampling& sampling) {
            Line line;
            line.unit = "GFLOP/s";
            AttentionCase small = causal_case(DType::bf16, 520, 2, 128);
            small.bands = document_bands({3, 250, 1, 100, 166});
            line.wrong = find_wrong_result(
                AttentionData(small), [](const AttentionData& data) { data.forward(); }, false);
            if (!line.wrong.empty()) return std::vector{line};
            const OneCore pinned;
            const Unit unit = unit_of(DType::bf16);
            auto data = prepared(causal_case(DType::bf16, kTokens, 1, 128), false);
            std::vector<AttentionCase> problems = {data->problem};
            for (std::uint64_t seed = 1; seed <= kRows; ++seed) problems.push_back(document_case(seed, kTokens));
            std::vector<Side> sides;
            for (const AttentionCase& problem : problems) {
              sides.push_back({[&] {
                                 data->problem.bands = problem.bands;
                                 data->forward();
                               },
                               unit, 1});
            }
            const auto dense_rate = [&](const Sample& sample) { return forward_flop(problems[0]) * 1e-9 / sample[0].seconds; };
            const Selection selection = take_samples(sides, sampling);
            line.value =
                median_of(selection, [&](const Sample& sample) { return dense_rate(sample) * median(document_ratios(sample, problems)); });
            line.yardstick = median_of(selection, [&](const Sample& sample) { return dense_rate(sample); });
            fill(line, selection, [&](const Sample& sample) { return median(document_ratios(sample, problems)); });
            for (std::size_t row = 0; row < kRows; ++row) {
              line.more.emplace_back(fmt::format("row_{}", row + 1),
                                     median_of(selection, [&](const Sample& sample) { return document_ratios(sample, problems)[row]; }));
            }
            std::vector<std::size_t> counts;
            for (std::size_t side = 1; side < sides.size(); ++side) counts.push_back(problems[side].bands.size());
            line.note = fmt::format("{} documents", fmt::join(counts, ", "));
            judge(line, DType::bf16, {0.85, 0.92});
            return std::vector{line};
          }};
}

Figure threads_figure(Pass pass) {
  constexpr std::int64_t kRows = 8192, kHeads = 2, kWidth = 128;
  return {"C18", fmt::format("2 threads / 1, causal {} bf16 d {} S {} H {}", name_of(pass), kWidth, kRows, kHeads),
          [pass](Sampling& sampling) {
            Line line;
            line.unit = "GFLOP/s";
            if (omp_get_num_procs() < 2) {
              line.skipped = "this process may use only one core";
              return std::vector{line};
            }
            line.wrong = check_causal(DType::bf16, kWidth, pass);
            if (!line.wrong.empty()) return std::vector{line};
            const auto data = prepared(causal_case(DType::bf16, kRows, kHeads, kWidth), pass == Pass::backward);
            const double gflop = flop_of(pass, data->problem) * 1e-9;
            const Unit unit = unit_of(DType::bf16);
            const std::vector<Side> sides = {{work_of(pass, *data), unit, 2}, {work_of(pass, *data), unit, 1}};
            const Selection selection = take_samples(sides, sampling);
            line.value = median_of(selection, [&](const Sample& sample) { return gflop / sample[0].seconds; });
            line.yardstick = median_of(selection, [&](const Sample& sample) { return gflop / sample[1].seconds; });
            fill(line, selection, [](const Sample& sample) { return sample[1].seconds / sample[0].seconds; });
            line.more = {{"peaks_ratio", median_of(selection, [](const Sample& sample) { return sample[0].peak() / sample[1].peak(); })}};
            judge(line, DType::bf16, {1.9, std::nullopt});
            return std::vector{line};
          }};
}

Figure accuracy_figure(const AccuracyCase& problem) {
  return {"accuracy", fmt::format("S {} d {}", problem.rows, problem.width),
          [problem](Sampling& sampling) { return measure_accuracy(problem, sampling.progress); }};
}

}  // namespace

std::vector<Figure> kernel_figures() {
  constexpr double kWide = 6;  // the largest of millions of logits is five times their deviation
  const Goal backward{0.32, 0.42};
  // One head: a sample of a few milliseconds fits between the disturbances of a shared machine.
  return {
      rate_figure({"C1", Pass::forward, DType::bf16, 4096, 1, 128, {0.42, 0.50}}),
      rate_figure({"C1", Pass::forward, DType::bf16, 16384, 1, 128, {0.48, 0.55}}),
      onednn_figure(),
      rate_figure({"C3", Pass::backward, DType::bf16, 4096, 1, 128, backward}),
      rate_figure({"C3", Pass::backward, DType::bf16, 16384, 1, 128, backward}),
      backward_over_forward_figure(4096, 1),
      backward_over_forward_figure(16384, 1),
      rate_figure({"C4", Pass::forward, DType::bf16, 4096, 1, 64, {0.30, 0.40}}),
      rate_figure({"C4", Pass::forward, DType::bf16, 16384, 1, 64, {0.33, 0.42}}),
      sequence_figure(),
      rate_figure({"C16", Pass::forward, DType::f32, 4096, 2, 128, {0.80, 0.90}}),
      rate_figure({"C16", Pass::backward, DType::f32, 4096, 2, 128, {0.70, 0.82}}),
      documents_figure(),
      threads_figure(Pass::forward),
      threads_figure(Pass::backward),
      accuracy_figure({4096, 128, 1}),
      accuracy_figure({4096, 128, kWide}),
      accuracy_figure({4096, 64, kWide}),
      accuracy_figure({65536, 128, kWide}),
  };
}

}  // namespace periplus::launch::bench
