// periplus bench planner: how fast batches of unequal lengths are planned, how far from the lower bound the plans are, and what
// they gain over one static degree, by the cost model and executed. All but the times are figures of the cost model, the same on every
// machine.
#include "parallel/planner/planner.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include <fmt/format.h>

#include "launch/bench/figure_lines.h"
#include "launch/bench/planner_executed.h"
#include "launch/bench/report.h"
#include "launch/bench/sampling.h"
#include "launch/bench/statistics.h"
#include "launch/bench/suites.h"
#include "launch/cpu_seconds.h"
#include "launch/descriptions.h"
#include "launch/ranks.h"
#include "parallel/train/random.h"

namespace periplus::launch::bench {
namespace {

using planner::BatchPlan;
using planner::CostModel;
using planner::Planner;
using Lengths = std::vector<std::int64_t>;

struct Options {
  int batches = 40;
  std::string only, data = "/usr/include";
};

constexpr std::int64_t kLimits[] = {192 * 1024, 384 * 1024};
constexpr int kSequences = 512, kDevices = 64;  // FlexSP's batches and cluster
const std::vector<std::string> kModels = {"gpt-7b", "gpt-13b", "gpt-30b"};

/// Documents no longer than the limit; the rest of the corpus is left out, as FlexSP does.
Lengths sample(const LengthDistribution& distribution, int count, std::int64_t limit, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Lengths lengths;
  while (static_cast<int>(lengths.size()) < count) {
    const auto length = static_cast<std::int64_t>(distribution.length_at(train::uniform(random)));
    if (length <= limit) lengths.push_back(length);
  }
  return lengths;
}

CostModel cost_of(const std::string& model, const std::string& machine, int devices, bool ulysses_only) {
  return {load_model(model), load_machine(machine), {.devices = devices, .ulysses_only = ulysses_only}};
}

Line line_of(std::string id, std::string name, std::string unit, double value, double yardstick, Goal goal) {
  Line line;
  line.id = std::move(id), line.name = std::move(name), line.unit = std::move(unit);
  line.value = value, line.yardstick = yardstick, line.ratio = value / yardstick;
  line.goal = goal;
  return line;
}

/// Milliseconds of a core for one batch, bound and check included; the basis of the last batch is kept.
Line planning_time(const Options& options, const std::string& machine, int sequences, int devices, Goal goal) {
  const OneCore one_core;
  const LengthDistribution distribution = load_lengths("wikipedia");
  Planner planner(cost_of("gpt-7b", machine, devices, false));
  std::vector<double> milliseconds;
  double first = 0;
  for (int b = 0; b < options.batches + 1; ++b) {
    show_progress(fmt::format("planning time: batch {} of {}", b + 1, options.batches + 1));
    const Lengths lengths = sample(distribution, sequences, kLimits[0], static_cast<std::uint64_t>(b));
    const double begin = cpu_seconds();
    planner.plan(lengths);
    const double took = (cpu_seconds() - begin) * 1e3;
    if (b == 0) first = took;
    if (b > 0) milliseconds.push_back(took);
  }
  Line line = line_of("C10", fmt::format("{} sequences, {} devices: median planning time", sequences, devices), "ms", median(milliseconds),
                      1, goal);
  line.more = {{"first_ms", first}, {"slowest_ms", std::ranges::max(milliseconds)}};
  return line;
}

/// Makespan over lower bound, median and worst.
std::vector<Line> quality(const Options& options, const std::string& name) {
  const LengthDistribution distribution = load_lengths(name);
  Planner planner(cost_of("gpt-7b", "a100x64", kDevices, false));
  std::vector<double> ratios, simple;
  for (int b = 0; b < options.batches; ++b) {
    show_progress(fmt::format("quality: {}, batch {} of {}", name, b + 1, options.batches));
    const BatchPlan plan = planner.plan(sample(distribution, kSequences, kLimits[0], static_cast<std::uint64_t>(b)));
    ratios.push_back(plan.seconds / plan.bound.seconds());
    simple.push_back(plan.seconds / std::max(plan.bound.area, plan.bound.longest));
  }
  const double worst = std::ranges::max(ratios);
  std::vector<Line> lines = {
      line_of("C11", fmt::format("{}: makespan / lower bound, median of {}", name, options.batches), "", median(ratios), 1,
              {.due = 1.06, .stretch = 1.03, .at_most = true}),
      line_of("C11", fmt::format("{}: makespan / lower bound, worst", name), "", worst, 1, {.due = 1.12, .stretch = {}, .at_most = true})};
  lines[0].more = {{"over_area_and_longest", median(simple)}};
  lines[1].more = {{"over_area_and_longest", std::ranges::max(simple)}};
  return lines;
}

/// Sums over batches of one cell of FlexSP's table.
struct Cell {
  double flexible = 0, every_kind = 0, bound = 0, fixed = 0, packed = 0, adaptive = 0, least_gain = 1e300;
};

Cell measure_cell(const Options& options, const std::string& model, std::int64_t limit) {
  const LengthDistribution distribution = load_lengths("wikipedia");
  Planner ulysses(cost_of(model, "a100x64", kDevices, true)), every(cost_of(model, "a100x64", kDevices, false));
  Cell cell;
  for (int b = 0; b < options.batches; ++b) {
    show_progress(fmt::format("gain: {} {}K, batch {} of {}", model, limit / 1024, b + 1, options.batches));
    const Lengths lengths = sample(distribution, kSequences, limit, static_cast<std::uint64_t>(b));
    const BatchPlan plan = ulysses.plan(lengths);
    const planner::Baselines others = planner::baselines(planner::Batch(ulysses.cost(), lengths), limit, {});
    const double with_every_kind = every.plan(lengths).seconds;
    cell.flexible += plan.seconds, cell.bound += plan.bound.seconds(), cell.every_kind += with_every_kind;
    cell.fixed += others.static_best, cell.packed += others.best_fit, cell.adaptive += others.adaptive;
    cell.least_gain = std::min(cell.least_gain, plan.seconds / with_every_kind);
  }
  return cell;
}

/// As FlexSP: groups that exchange heads, on both sides. packed: over rows of the static degree filled by best fit; possible:
/// what a plan as short as the lower bound would reach.
std::vector<Line> gains(const Options& options) {
  std::vector<Line> lines, choices;
  double product = 1, packed_product = 1;
  for (const std::int64_t limit : kLimits) {
    for (const std::string& model : kModels) {
      const Cell cell = measure_cell(options, model, limit);
      const double count = options.batches;
      Line line = line_of("C12", fmt::format("{} {}K: best static degree / flexible", model, limit / 1024), "s", cell.fixed / count,
                          cell.flexible / count, {.due = 1.6, .stretch = {}, .at_most = false});
      line.more = {{"possible", cell.fixed / cell.bound},
                   {"packed", cell.packed / cell.flexible},
                   {"static_over_adaptive", cell.fixed / cell.adaptive},
                   {"adaptive_over_flexible", cell.adaptive / cell.flexible}};
      lines.push_back(line);
      product *= line.ratio, packed_product *= cell.packed / cell.flexible;
      Line choice = line_of("choice", fmt::format("{} {}K: ulysses only / every strategy", model, limit / 1024), "s", cell.flexible / count,
                            cell.every_kind / count, {.due = 1, .stretch = {}, .at_most = false});
      choice.more = {{"least", cell.least_gain}};
      if (cell.least_gain < 1 - 1e-12)
        choice.wrong = fmt::format("a batch takes {:.4f} of its time with fewer strategies", cell.least_gain);
      choices.push_back(choice);
    }
  }
  const double cells = static_cast<double>(lines.size());
  lines.push_back(line_of("C12", "best static degree / flexible, geometric mean", "", std::pow(product, 1 / cells), 1,
                          {.due = 1.8, .stretch = {}, .at_most = false}));
  lines.back().more = {{"packed", std::pow(packed_product, 1 / cells)}};
  lines.insert(lines.end(), choices.begin(), choices.end());
  return lines;
}

using Part = FigureOf<const Options>;

}  // namespace

int bench_planner(Arguments arguments) {
  OptionTable table("bench planner", "plans of batches of unequal lengths: time, distance from the lower bound, gain over a static degree",
                    "periplus bench planner [options]");
  Options options;
  table.add({.flag = "batches", .target = &options.batches, .value = "N", .help = "Batches of each figure.", .least = 1});
  table.add(
      {.flag = "only", .target = &options.only, .value = "A,B,...", .help = "Measures only these: C10, C11, C12 (with choice), executed."});
  table.add({.flag = "data", .target = &options.data, .value = "PATH", .help = "executed: documents whose lengths count."});
  table.parse(arguments);
  if (answered(table)) return kOk;
  std::vector<Part> parts = {
      {"C10", "512 sequences",
       [](const Options& o) {
         return std::vector{planning_time(o, "a100x64", kSequences, kDevices, {.due = 20, .stretch = 5, .at_most = true})};
       }},
      {"C10", "4096 sequences",
       [](const Options& o) {
         return std::vector{planning_time(o, "a100x1024", 4096, 1024, {.due = 250, .stretch = {}, .at_most = true})};
       }},
  };
  for (const char* const name : {"wikipedia", "github-like", "uniform"})
    parts.push_back({"C11", name, [name](const Options& o) { return quality(o, name); }});
  parts.push_back({"C12", "gain over one degree", gains});
  parts.push_back({"executed", "over paced links", [](const Options& o) { return planner_executed(o.data); }});
  keep_chosen(parts, options.only);
  return print_figures(table.json(), parts, std::as_const(options)) ? kFailedCheck : kOk;
}

}  // namespace periplus::launch::bench
