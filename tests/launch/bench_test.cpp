#include <algorithm>
#include <cmath>
#include <numeric>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <omp.h>

#include "kernels/attention.h"
#include "kernels/cpu_level.h"
#include "launch/bench/documents.h"
#include "launch/bench/errors.h"
#include "launch/bench/exact_attention.h"
#include "launch/bench/kernel_figures.h"
#include "launch/bench/onednn_products.h"
#include "launch/bench/paced_run.h"
#include "launch/bench/report.h"
#include "launch/bench/statistics.h"
#include "parallel/attention.h"
#include "parallel/simulate/simulate.h"

namespace periplus::launch::bench {
namespace {

Sample sample(double before, double after, bool interrupted = false) { return {{1, before, after, interrupted}}; }

TEST(BenchStatistics, MedianOfOddEvenAndNoValues) {
  EXPECT_EQ(median({3, 1, 2}), 2);
  EXPECT_EQ(median({4, 1, 2, 3}), 2.5);
  EXPECT_EQ(median({}), 0);
}

TEST(BenchStatistics, SamplesBesideALowPeakAreDropped) {
  const std::vector<Sample> samples = {sample(100, 99), sample(92, 100), sample(100, 92), sample(94, 94), sample(100, 100, true)};
  EXPECT_EQ(calm_samples(samples, {100}), (std::vector<std::size_t>{0, 3}));
}

TEST(BenchStatistics, EverySideHasItsOwnBestPeakAndMustBeCalm) {
  const std::vector<Sample> samples = {{{1, 100, 100}, {1, 10, 10}}, {{1, 100, 100}, {1, 9, 10}}, {{1, 99, 99}, {1, 9.9, 9.9}}};
  EXPECT_EQ(calm_samples(samples, {100, 10}), (std::vector<std::size_t>{0, 2}));
}

TEST(BenchStatistics, SamplesAllBelowTheBestPeakOfTheProcessAreNotCalm) {
  EXPECT_TRUE(calm_samples({sample(50, 50), sample(50, 50)}, {100}).empty());
}

TEST(BenchStatistics, FewerThanThreeCalmSamplesKeepAllAndSaySo) {
  std::vector<Sample> samples = {sample(100, 100), sample(100, 100), sample(50, 50)};
  EXPECT_TRUE(select(samples, {100}).noisy);
  EXPECT_EQ(select(samples, {100}).kept.size(), 3u);
  samples.push_back(sample(99, 99));
  const Selection selection = select(samples, {100});
  EXPECT_FALSE(selection.noisy);
  EXPECT_EQ(selection.kept.size(), 3u);
  EXPECT_EQ(selection.taken, 4u);
}

TEST(BenchExposure, IsTheTimeOfExchangesThatNoComputeCovers) {
  std::vector<Tracer> traces{Tracer(0), Tracer(1)};
  const auto record = [&](std::size_t rank, std::string track, double begin, double end) {
    traces[rank].record({.name = "step", .track = std::move(track), .begin_us = begin, .duration_us = end - begin});
  };
  record(0, "lane 0", 0, 10), record(0, "lane 1", 5, 12), record(0, "lane 0", 20, 21);
  record(0, "compute", 2, 6), record(0, "compute", 8, 9), record(0, "compute", 12, 30);
  record(1, "compute", 0, 30);
  const Exposure exposure = exposure_of(traces);
  EXPECT_DOUBLE_EQ(exposure.under_way_us, 13);
  EXPECT_DOUBLE_EQ(exposure.exposed_us, 7);
  EXPECT_DOUBLE_EQ(exposure.share(), 7.0 / 13);
  EXPECT_EQ(exposure_of({}).share(), 0);
}

/// In the simulator a rank waits for nothing but messages.
TEST(BenchExposure, OfASimulatedRunIsItsWaits) {
  const std::vector<std::int64_t> borders{0, 64};
  for (const std::string strategy : {"ring", "ulysses", "gather_kv"}) {
    const AttentionProblem problem{
        .layout = SequenceLayout::make(LayoutKind::contiguous, 4, borders), .mask = Mask({}, borders), .q_heads = 4};
    const plan::Plan plan = make_plan(problem, {.strategy = strategy}, Pass::backward);
    for (const double link : {1e3, 1e9}) {
      const simulate::Timeline timeline =
          simulate::simulate(plan, {[](const plan::Program&, const plan::Step&) { return 0.5; }, {{.bytes_per_second = link}}});
      double waits = 0;
      for (const simulate::RankTime& rank : timeline.ranks) waits += rank.exposed;
      const Exposure exposure = exposure_of(timeline.traces);
      EXPECT_NEAR(exposure.exposed_us * 1e-6, waits, 1e-9 * (1 + waits)) << strategy;
      EXPECT_LE(exposure.share(), 1);
      EXPECT_GT(exposure.share(), link < 1e6 ? 0.5 : 0.0) << strategy;
    }
  }
}

TEST(BenchSampling, TakesAsManySamplesAsAskedForAndWarmsUpFirst) {
  int runs = 0;
  Sampling sampling{.samples = 3, .patience_seconds = 0};
  const int threads = omp_get_max_threads();
  const Selection selection = take_samples({{[&] { ++runs; }, Unit::fma, 1}}, sampling);
  EXPECT_GE(selection.taken, 3u);
  EXPECT_EQ(runs, static_cast<int>(selection.taken) + 1);
  EXPECT_GE(selection.kept.size(), selection.noisy ? 0u : 3u);
  EXPECT_GT(selection.kept.front().front().peak(), 0);
  EXPECT_EQ(omp_get_max_threads(), threads);
}

TEST(BenchDocuments, LengthsFollowTheQuantiles) {
  std::mt19937_64 random(3);
  std::vector<std::int64_t> lengths(200000);
  std::ranges::generate(lengths, [&] { return wikipedia_length(random, 32768); });
  std::ranges::sort(lengths);
  for (const auto& [share, tokens] : {std::pair{0.5, 347.0}, {0.75, 862.0}, {0.9, 2112.0}, {0.95, 3721.0}, {0.99, 10921.0}}) {
    const double found = static_cast<double>(lengths[static_cast<std::size_t>(share * static_cast<double>(lengths.size()))]);
    EXPECT_NEAR(found / tokens, 1, 0.05) << "quantile " << share;
  }
  EXPECT_GE(lengths.front(), 16);
  EXPECT_EQ(lengths.back(), 32768);
}

TEST(BenchDocuments, RowIsFullAndItsBandsAreTheDocuments) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const std::vector<std::int64_t> lengths = wikipedia_row(seed, 32768);
    EXPECT_EQ(std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0}), 32768);
    EXPECT_GE(*std::ranges::min_element(lengths), 1);
    EXPECT_EQ(lengths, wikipedia_row(seed, 32768));
    const std::vector<Band> bands = document_bands(lengths);
    std::int64_t begin = 0;
    for (std::size_t i = 0; i < bands.size(); ++i) {
      EXPECT_EQ(area(bands[i]), lengths[i] * (lengths[i] + 1) / 2);
      EXPECT_EQ(bands[i].q0, begin);
      begin = bands[i].q1;
    }
  }
  EXPECT_NE(wikipedia_row(1, 32768), wikipedia_row(2, 32768));
}

Line line_of(double ratio, const Goal& goal) {
  Line line;
  line.id = "C1";
  line.name = "a \"case\"";
  line.value = 1000, line.yardstick = 2000, line.ratio = ratio;
  line.ratio_min = 0.4, line.ratio_max = 0.6, line.kept = 5, line.taken = 9;
  line.goal = goal;
  return line;
}

TEST(BenchReport, JsonLineHasTheAgreedKeysInOrder) {
  const std::string text = to_json_line(line_of(0.512345678, {0.42, 0.5}));
  EXPECT_EQ(text.find('\n'), std::string::npos);
  EXPECT_EQ(text.rfind("{\"id\":\"C1\",\"case\":\"a \\\"case\\\"\",\"value\":1000.0,\"yardstick\":2000.0,\"ratio\":0.51235,\"goal\":0.42,"
                       "\"stretch\":0.5,\"pass\":true",
                       0),
            0u)
      << text;
  const auto json = nlohmann::json::parse(text);
  EXPECT_EQ(json["samples_kept"], 5);
  EXPECT_EQ(json["samples_taken"], 9);
  EXPECT_EQ(json["ratio_min"], 0.4);
}

TEST(BenchReport, GoalsHaveADirection) {
  EXPECT_EQ(passed(line_of(0.41, {0.42, 0.5})), false);
  EXPECT_EQ(passed(line_of(0.42, {0.42, 0.5})), true);
  EXPECT_EQ(passed(line_of(1.07, {1.06, 1.03, true})), false);
  EXPECT_EQ(passed(line_of(1.06, {1.06, 1.03, true})), true);
  EXPECT_NE(to_text(line_of(1.03, {1.06, 1.03, true})).find("stretch"), std::string::npos);
}

TEST(BenchReport, SkippedFigureNeitherPassesNorFailsAndAWrongResultFails) {
  Line line = line_of(0.5, {0.42, 0.5});
  line.skipped = "no AMX";
  EXPECT_EQ(passed(line), std::nullopt);
  EXPECT_TRUE(nlohmann::json::parse(to_json_line(line))["ratio"].is_null());
  line.skipped.clear();
  line.wrong = "dq is wrong";
  EXPECT_EQ(passed(line), false);
  EXPECT_EQ(nlohmann::json::parse(to_json_line(line))["error"], "dq is wrong");
  line.wrong.clear();
  line.goal.reset();
  EXPECT_TRUE(nlohmann::json::parse(to_json_line(line))["pass"].is_null());
}

TEST(BenchReport, NoiseLeavesAGoalOpenAndCountsAsAMiss) {
  Line line = line_of(0.9, {0.42, 0.5});
  EXPECT_FALSE(misses(line));
  line.noisy = true;
  EXPECT_EQ(passed(line), std::nullopt);
  EXPECT_TRUE(misses(line));
  line.goal.reset();
  EXPECT_FALSE(misses(line));
}

TEST(BenchReport, NotANumberNeverPasses) {
  const double nan = std::nan("");
  EXPECT_EQ(passed(line_of(nan, {0.42, 0.5})), false);
  EXPECT_EQ(passed(line_of(nan, {2, std::nullopt, true})), false);
}

TEST(BenchErrors, NotANumberIsTheLargestError) {
  ErrorSum error;
  error.add(1, 2);
  error.add(std::nan(""), 2);
  error.add(2, 2);
  EXPECT_TRUE(std::isinf(error.largest()));
  EXPECT_TRUE(std::isnan(error.relative()));
}

TEST(BenchCheck, FindsAWrongResultAndAcceptsARightOne) {
  AttentionCase problem = causal_case(DType::f32, 70, 2, 16);
  const AttentionData data(problem);
  EXPECT_EQ(find_wrong_result(
                data, [](const AttentionData& on) { on.forward(); }, true),
            "");
  const auto spoilt = [](const AttentionData& on) {
    on.forward();
    on.out.view().span<float>()[5] += 0.1f;
  };
  EXPECT_NE(find_wrong_result(data, spoilt, false).find("out differs"), std::string::npos);
}

class ExactAttention : public testing::Test {
 protected:
  ExactAttention() {
    exact_.forward();
    exact_.compute_delta();
    exact_.backward();
    for (const auto& [from, to] : {std::pair{&exact_.lse, &lse_}, {&exact_.delta, &delta_}}) {
      for (const double value : from->view().span<double>()) to->push_back(static_cast<float>(value));
    }
  }
  template <class Real>
  double error(const std::vector<Real>& got, const Tensor& wanted, std::int64_t row) const {
    ErrorSum sum;
    sum.add(std::span(got), wanted.view().span<double>().subspan(static_cast<std::size_t>(row) * got.size(), got.size()));
    return sum.relative();
  }
  AttentionData data_{causal_case(DType::bf16, 90, 1, 20)};
  AttentionData exact_{data_, DType::f64};
  HeadOperands head_{data_};
  std::vector<float> lse_, delta_;
};

TEST_F(ExactAttention, RowsInDoubleMatchTheReference) {
  for (const std::int64_t row : {1, 44, 89}) {
    const RowValues<double> values = row_values<double>(head_, row);
    EXPECT_LT(error(values.out, exact_.out, row), 1e-13);
    EXPECT_LT(error(values.dq, exact_.dq, row), 1e-12);
    EXPECT_NEAR(values.lse, exact_.lse.view().span<double>()[static_cast<std::size_t>(row)], 1e-13);
  }
}

TEST_F(ExactAttention, KeysInDoubleMatchTheReferenceUpToTheirF32Inputs) {
  for (const std::int64_t key : {0, 1, 44, 89}) {
    const KeyValues<double> values = key_values<double>(head_, key, lse_, delta_);
    EXPECT_LT(error(values.dk, exact_.dk, key), 2e-6);
    EXPECT_LT(error(values.dv, exact_.dv, key), 1e-6);
  }
}

TEST_F(ExactAttention, FloatRoundsWeightsToBfloat16) {
  const RowValues<float> row = row_values<float>(head_, 60);
  EXPECT_GT(error(row.out, exact_.out, 60), 1e-4);
  EXPECT_LT(error(row.out, exact_.out, 60), 4e-3);
  const KeyValues<float> key = key_values<float>(head_, 30, lse_, delta_);
  EXPECT_GT(error(key.dv, exact_.dv, 30), 1e-4);
  EXPECT_LT(error(key.dk, exact_.dk, 30), 6e-3);
}

TEST(OneDnnProducts, ComputeBothProductsOnCausalBlocks) {
  if (kernels::best_cpu_level() < kernels::CpuLevel::avx512) GTEST_SKIP() << "oneDNN has no bf16 products on this CPU";
  for (const bool panels : {false, true}) {
    const ProductShape shape{.heads = 2, .rows = 96, .width = 64, .block = 32, .whole_panels = panels};
    const OneDnnProducts products(shape);
    products.run();
    products.run();  // accumulating blocks start from nothing each time
    ErrorSum error;
    for (std::int64_t row = 0; row < shape.heads * shape.rows; ++row) {
      const std::int64_t first = row / shape.rows * shape.rows, keys = (row - first) / shape.block * shape.block + shape.block;
      std::vector<double> wanted(static_cast<std::size_t>(shape.width));
      for (std::int64_t key = first; key < first + keys; ++key) {
        double score = 0;
        for (std::int64_t x = 0; x < shape.width; ++x) {
          score += static_cast<double>(products.q()[static_cast<std::size_t>(row * shape.width + x)]) *
                   static_cast<double>(products.k()[static_cast<std::size_t>(key * shape.width + x)]);
        }
        for (std::size_t x = 0; x < wanted.size(); ++x) {
          wanted[x] += score * static_cast<double>(products.v()[static_cast<std::size_t>(key * shape.width) + x]);
        }
      }
      error.add(products.out().subspan(static_cast<std::size_t>(row * shape.width)), std::span(wanted));
    }
    EXPECT_LT(error.relative(), 5e-3) << (panels ? "panels" : "blocks");  // S is rounded to bf16
  }
}

TEST(KernelFigures, CoverTheTable) {
  std::vector<std::string> ids;
  for (const Figure& figure : kernel_figures()) ids.push_back(figure.id);
  for (const char* id : {"C1", "C2", "C3", "C4", "C6", "C16", "C17", "C18", "accuracy"}) {
    EXPECT_NE(std::ranges::find(ids, id), ids.end()) << id;
  }
}

}  // namespace
}  // namespace periplus::launch::bench
