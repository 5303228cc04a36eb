#include "launch/bench/accuracy.h"

#include <algorithm>
#include <cmath>
#include <random>

#include <fmt/format.h>

#include "launch/bench/errors.h"
#include "launch/bench/exact_attention.h"

namespace periplus::launch::bench {
namespace {

/// Ours and the plain implementation's against fp64.
struct Comparison {
  ErrorSum ours, plain;
};

struct Accuracy {
  Comparison out, lse, dq, dk, dv;
  ErrorSum single_lse, single_delta;  ///< Of the f32 pass that gives all rows' lse and delta.
  double largest_logit = 0;
};

/// The ends and random ones between.
std::vector<std::int64_t> sampled(std::int64_t count) {
  constexpr std::size_t kSamples = 48;
  std::vector<std::int64_t> all = {0, 1, count / 2, count - 2, count - 1};
  std::mt19937_64 random(1);
  while (all.size() < kSamples) all.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(count)));
  return all;
}

template <class Exact, class Plain>
void compare(Comparison& comparison, const Tensor& ours, std::int64_t row, const std::vector<Exact>& exact,
             const std::vector<Plain>& plain) {
  const auto got = ours.view().span<float>().subspan(static_cast<std::size_t>(row) * exact.size());
  comparison.ours.add(got, std::span(exact));
  comparison.plain.add(std::span(plain), std::span(exact));
}

void compare_rows(Accuracy& accuracy, const HeadOperands& head, const AttentionData& ours, const AttentionData& single) {
  const std::vector<std::int64_t> rows = sampled(head.rows);
#pragma omp parallel for schedule(dynamic)
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const RowValues<double> exact = row_values<double>(head, rows[i]);
    const RowValues<float> plain = row_values<float>(head, rows[i]);
#pragma omp critical
    {
      compare(accuracy.out, ours.out, rows[i], exact.out, plain.out);
      compare(accuracy.lse, ours.lse, rows[i], std::vector{exact.lse}, std::vector{plain.lse});
      compare(accuracy.dq, ours.dq, rows[i], exact.dq, plain.dq);
      const auto at = static_cast<std::size_t>(rows[i]);
      accuracy.single_lse.add(single.lse.view().span<float>()[at], exact.lse);
      accuracy.single_delta.add(single.delta.view().span<float>()[at], exact.delta);
      accuracy.largest_logit = std::max(accuracy.largest_logit, exact.largest_logit);
    }
  }
}

void compare_keys(Accuracy& accuracy, const HeadOperands& head, const AttentionData& ours, const AttentionData& single) {
  const std::vector<std::int64_t> keys = sampled(head.rows);
  const auto lse = single.lse.view().span<float>(), delta = single.delta.view().span<float>();
#pragma omp parallel for schedule(dynamic)
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const KeyValues<double> exact = key_values<double>(head, keys[i], lse, delta);
    const KeyValues<float> plain = key_values<float>(head, keys[i], lse, delta);
#pragma omp critical
    {
      compare(accuracy.dk, ours.dk, keys[i], exact.dk, plain.dk);
      compare(accuracy.dv, ours.dv, keys[i], exact.dv, plain.dv);
    }
  }
}

Line to_line(const char* tensor, const AccuracyCase& problem, const Accuracy& accuracy, const Comparison& comparison) {
  constexpr double kMostTimesPlain = 2;
  Line line;
  line.id = "accuracy";
  line.name = fmt::format("{}, S {}, d {}, logits to {:.0f}", tensor, problem.rows, problem.width, accuracy.largest_logit);
  line.unit = "relative";
  line.value = comparison.ours.relative();
  line.yardstick = comparison.plain.relative();
  line.ratio = std::max(line.value / line.yardstick, comparison.ours.largest() / comparison.plain.largest());
  line.goal = Goal{kMostTimesPlain, std::nullopt, true};
  line.more = {{"max_error", comparison.ours.largest()}, {"plain_max_error", comparison.plain.largest()}};
  return line;
}

}  // namespace

std::vector<Line> measure_accuracy(const AccuracyCase& problem, const Progress& progress) {
  AttentionCase attention = causal_case(DType::bf16, problem.rows, 1, problem.width);
  attention.spread = problem.spread;
  const AttentionData ours(attention);
  progress("our kernels");
  ours.forward();
  ours.compute_delta();
  ours.backward();
  // In fp64 the lse and delta of all rows would take minutes. f32 arithmetic is a thousand times as accurate as what is
  // judged here, which the sampled rows prove.
  progress("the same in f32");
  const AttentionData single(ours, DType::f32);
  single.forward();
  single.compute_delta();
  const HeadOperands head(ours);
  Accuracy accuracy;
  progress("fp64 and plain bf16 of sampled rows");
  compare_rows(accuracy, head, ours, single);
  progress("fp64 and plain bf16 of sampled keys");
  compare_keys(accuracy, head, ours, single);
  std::vector<Line> lines;
  for (const auto& [name, comparison] :
       {std::pair{"out", &accuracy.out}, {"lse", &accuracy.lse}, {"dq", &accuracy.dq}, {"dk", &accuracy.dk}, {"dv", &accuracy.dv}}) {
    lines.push_back(to_line(name, problem, accuracy, *comparison));
  }
  constexpr double kSingleTolerance = 2e-5;
  const double single_error = std::max(accuracy.single_lse.relative(), accuracy.single_delta.relative());
  if (!(single_error <= kSingleTolerance)) {
    for (Line& line : lines) line.wrong = fmt::format("lse or delta of the f32 kernels differ from fp64 by {:.2g} relative", single_error);
  }
  return lines;
}

}  // namespace periplus::launch::bench
