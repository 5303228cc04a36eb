#include "kernels/cuda/attention.h"

#include <future>
#include <thread>

#include <gtest/gtest.h>
#include <omp.h>

#include "tests/kernels/attention_isolation.h"
#include "tests/kernels/cuda/device_pass.h"

// The CUDA kernels of every rung against the f64 reference on the CPU.
namespace periplus::kernels {
namespace {

using test::Case;
using test::causal_case;
using test::CudaAttention;
using test::describe;
using test::DevicePass;
using test::Expectation;
using test::Host;
using test::kDeviceBackward;
using test::kDeviceForward;
using test::kMinusInfinity;
using test::largest_difference;
using test::magnitude;
using test::Pass;
using test::Tolerance;
using test::Workbench;

template <class S>
Tolerance tolerance_of(cuda::Rung rung) {
  if (std::is_same_v<S, double>) return {1e-12, 1e-12};
  if (rung == cuda::Rung::plain || std::is_same_v<S, float>) return {test::kRunningSumTolerance, test::kRunningSumTolerance};
  return {test::kTileTolerance, test::kTileTolerance, true};
}

template <class S, class A>
void expect_matches_at_every_rung(const Expectation<S, A>& expected) {
  for (const cuda::Rung rung : cuda::kRungs) {
    SCOPED_TRACE(testing::Message() << to_string(rung) << " " << to_string(dtype_of<S>) << " " << describe(expected.c));
    cuda::set_highest_rung(rung);
    test::expect_matches(expected, tolerance_of<S>(rung), kDeviceForward, kDeviceBackward);
  }
}

/// The references of all cases, on all cores; then visit(expectation) one by one.
template <class S, class A, class Visit>
void for_each_expectation(const std::vector<Case>& cases, std::uint64_t seed, const Visit& visit) {
  const std::size_t at_once = std::max(1u, std::thread::hardware_concurrency());
  for (std::size_t first = 0; first < cases.size(); first += at_once) {
    std::vector<std::future<Expectation<S, A>>> made;
    for (std::size_t i = first; i < std::min(cases.size(), first + at_once); ++i) {
      made.push_back(std::async(std::launch::async, [&, i] {
        omp_set_num_threads(1);
        return Expectation<S, A>(cases[i], seed + i);
      }));
    }
    for (auto& expectation : made) visit(expectation.get());
    if (testing::Test::HasFailure()) return;
  }
}

Case random_case(std::mt19937_64& random) {
  using test::pick_of;
  Case c = test::random_case(random);
  c.query_rows = pick_of(random, {1, 16, 63, 64, 100, 128, 129, 200, 300});
  c.key_rows = pick_of(random, {c.query_rows, c.query_rows, 1, 64, 65, 130, 290});
  c.bands = test::random_bands(random, c.query_rows, c.key_rows);
  c.width_qk = pick_of(random, {8, 24, 64, 80, 96, 112, 128, 192, 256});
  c.width_v = pick_of(random, {c.width_qk, c.width_qk, 16, 64, 128, 200});
  if (std::max(c.width_qk, c.width_v) > 128) c.heads = c.kv_heads;
  c.scale = 1 / std::sqrt(static_cast<double>(c.width_qk));
  c.gap = pick_of(random, {0, 8, 24});
  return c;
}

template <class S, class A = float>
void sweep(int count, std::uint64_t seed, Case (*make)(std::mt19937_64&)) {
  std::mt19937_64 random(seed);
  std::vector<Case> cases;
  for (int i = 0; i < count; ++i) cases.push_back(make(random));
  for_each_expectation<S, A>(cases, seed, [](const Expectation<S, A>& expected) { expect_matches_at_every_rung(expected); });
}

TEST_F(CudaAttention, Bfloat16MatchesReferenceOverRandomShapes) { sweep<bfloat16>(64, 101, random_case); }
TEST_F(CudaAttention, Float16MatchesReferenceOverRandomShapes) { sweep<float16>(64, 102, random_case); }
TEST_F(CudaAttention, SinglePrecisionMatchesReferenceOverRandomShapes) { sweep<float>(24, 103, random_case); }
TEST_F(CudaAttention, DoublePrecisionMatchesReferenceOverRandomShapes) { sweep<double, double>(12, 104, test::random_case); }
/// Widths and gaps that only the plain rung takes.
TEST_F(CudaAttention, OddShapesMatchReference) { sweep<bfloat16>(24, 105, test::random_case); }

TEST_F(CudaAttention, FastRungsTakeTheShapesOfTheSweep) {
  std::mt19937_64 random(101);
  for (int i = 0; i < 64; ++i) {
    const Case c = random_case(random);
    SCOPED_TRACE(describe(c));
    Pass<bfloat16, float> pass(c);
    const DevicePass<bfloat16, float> device(pass, c);
    EXPECT_TRUE(cuda::portable::supports(device.forward_call()));
    EXPECT_TRUE(cuda::portable::supports(device.backward_call()));
  }
}

/// Every padded width with many tiles in both passes, a causal mask, a window over documents, documents that begin and end inside
/// tiles, and all pairs.
TEST_F(CudaAttention, MatchesReferenceOverSeveralTiles) {
  std::vector<Case> cases;
  for (const std::int64_t width : {64, 96, 128, 192, 256}) {
    Case c = causal_case(700, 2, width > 128 ? 2 : 1, width);
    cases.push_back(c);
    c.bands = {{0, 300, 0, 310, -200, 10}, {300, 700, 310, 700, -kUnbounded, 10}, {350, 700, 0, 64}};
    c.softcap = 3;
    c.update = Update::accumulate;
    cases.push_back(c);
    c.softcap = 0;
    c.bands.clear();
    for (const auto& [begin, end] : {std::pair{0, 5}, {5, 305}, {305, 306}, {306, 383}, {383, 511}, {511, 700}}) {
      c.bands.push_back({begin, end, begin, end, -kUnbounded, 0});
    }
    cases.push_back(c);
    c = causal_case(384, 1, 1, width);
    c.key_rows = 512;
    c.bands = {{0, 384, 0, 512}};
    cases.push_back(c);
  }
  for_each_expectation<bfloat16, float>(cases, 106, [](const auto& expected) { expect_matches_at_every_rung(expected); });
}

/// Pairs, per head, of a plain computation that rounds each matrix it makes to bf16: what a tiled kernel should not fall behind.
Pass<bfloat16, float> rounded_attention(const Pass<bfloat16, float>& start, const Case& c) {
  Pass<bfloat16, float> got = start;
  const auto rounded = [](double x) { return static_cast<double>(bfloat16(static_cast<float>(x))); };
  const auto dot = [](const Host<bfloat16>& a, std::int64_t i, const Host<bfloat16>& b, std::int64_t j, std::int64_t head) {
    double sum = 0;
    for (std::int64_t x = 0; x < a.width(); ++x) sum += a.get(i, head, x) * b.get(j, head, x);
    return sum;
  };
  for (Host<float>* sum : {&got.out, &got.dq, &got.dk, &got.dv}) sum->fill(0);
#pragma omp parallel for
  for (std::int64_t head = 0; head < c.heads; ++head) {
    for (std::int64_t i = 0; i < c.query_rows; ++i) {
      std::vector<double> weight(static_cast<std::size_t>(i + 1));
      double top = kMinusInfinity, total = 0, delta = 0;
      for (std::int64_t j = 0; j <= i; ++j) top = std::max(top, weight[j] = rounded(c.scale * dot(start.q, i, start.k, j, head)));
      for (double& w : weight) total += w = std::exp(w - top);
      for (std::int64_t j = 0; j <= i; ++j) {
        weight[j] = rounded(weight[j] / total);
        for (std::int64_t x = 0; x < c.width_v; ++x) got.out(i, head, x) += static_cast<float>(weight[j] * start.v.get(j, head, x));
      }
      for (std::int64_t x = 0; x < c.width_v; ++x) delta += start.dout.get(i, head, x) * got.out.get(i, head, x);
      for (std::int64_t j = 0; j <= i; ++j) {
        const double slope = rounded(weight[j] * (rounded(dot(start.dout, i, start.v, j, head)) - delta));
        for (std::int64_t x = 0; x < c.width_qk; ++x) {
          got.dq(i, head, x) += static_cast<float>(c.scale * slope * start.k.get(j, head, x));
          got.dk(j, head, x) += static_cast<float>(c.scale * slope * start.q.get(i, head, x));
        }
        for (std::int64_t x = 0; x < c.width_v; ++x) got.dv(j, head, x) += static_cast<float>(weight[j] * start.dout.get(i, head, x));
      }
    }
  }
  return got;
}

/// ||got - wanted|| / ||wanted||
double relative_error(const Host<float>& got, const Host<double>& wanted) {
  double error = 0, size = 0;
  for (std::int64_t row = 0; row < got.rows(); ++row) {
    for (std::int64_t head = 0; head < got.heads(); ++head) {
      for (std::int64_t i = 0; i < got.width(); ++i) {
        const double x = wanted.get(row, head, i), gap = got.get(row, head, i) - x;
        error += gap * gap;
        size += x * x;
      }
    }
  }
  return std::sqrt(error / size);
}

TEST_F(CudaAttention, ErrorIsThatOfBfloat16) {
  const Case c = causal_case(1024, 2, 2, 128);
  Pass<bfloat16, float> start(c);
  start.randomize(107);
  Pass<double, double> wanted = start.widened(c);
  wanted.forward(c);
  for (std::int64_t i = 0; i < c.query_rows; ++i) {
    for (std::int64_t head = 0; head < c.heads; ++head) {
      start.lse(i, head) = static_cast<float>(wanted.lse.get(i, head));
      double delta = 0;
      for (std::int64_t x = 0; x < c.width_v; ++x) delta += start.dout.get(i, head, x) * wanted.out.get(i, head, x);
      start.delta(i, head) = static_cast<float>(delta);
    }
  }
  wanted.delta = start.delta.widened();
  wanted.backward(c);
  const Pass<bfloat16, float> plain = rounded_attention(start, c);
  for (const cuda::Rung rung : cuda::kRungs) {
    cuda::set_highest_rung(rung);
    Pass<bfloat16, float> got = start;
    kDeviceForward(got, c);
    got.lse = start.lse;
    kDeviceBackward(got, c);
    const auto expect = [&](const Host<float>& x, const Host<float>& rounded, const Host<double>& exact, const char* name) {
      const double error = relative_error(x, exact), limit = std::min(7e-3, 2 * relative_error(rounded, exact));
      EXPECT_LE(error, limit) << to_string(rung) << " " << name;
      std::printf("%s %s: error %.2e, plain bf16 %.2e\n", std::string(to_string(rung)).c_str(), name, error,
                  relative_error(rounded, exact));
    };
    expect(got.out, plain.out, wanted.out, "out");
    expect(got.dq, plain.dq, wanted.dq, "dq");
    expect(got.dk, plain.dk, wanted.dk, "dk");
    expect(got.dv, plain.dv, wanted.dv, "dv");
  }
}

TEST_F(CudaAttention, RepeatsBitForBit) {
  constexpr int kLaunches = 100;
  for (const cuda::Rung rung : {cuda::Rung::portable, cuda::Rung::hopper}) {
    for (const std::int64_t width : {64, 128}) {
      SCOPED_TRACE(testing::Message() << to_string(rung) << " width " << width);
      cuda::set_highest_rung(rung);
      Case c = causal_case(1200, 8, 2, width);
      c.bands = {{0, 400, 0, 400, -kUnbounded, 0}, {400, 1200, 400, 1200, -kUnbounded, 0}};
      Pass<bfloat16, float> first(c);
      first.randomize(108);
      DevicePass<bfloat16, float> device(first, c);
      device.forward();
      device.backward();
      device.take_results();
      Pass<bfloat16, float> again = first;
      for (int i = 1; i < kLaunches; ++i) {
        device.forward();
        device.backward();
        for (auto [view, to] : {std::pair{&device.out, &again.out},
                                {&device.lse, &again.lse},
                                {&device.dq, &again.dq},
                                {&device.dk, &again.dk},
                                {&device.dv, &again.dv}}) {
          Workbench::get().take(*view, *to);
        }
        ASSERT_EQ(first.out.raw(), again.out.raw()) << "launch " << i;
        ASSERT_EQ(first.lse.raw(), again.lse.raw()) << "launch " << i;
        ASSERT_EQ(first.dq.raw(), again.dq.raw()) << "launch " << i;
        ASSERT_EQ(first.dk.raw(), again.dk.raw()) << "launch " << i;
        ASSERT_EQ(first.dv.raw(), again.dv.raw()) << "launch " << i;
      }
    }
  }
}

TEST_F(CudaAttention, NaNAndInfinityReachOnlyTheRowsThatMeetThem) {
  const auto run = [](auto& pass, const Case& c) {
    kDeviceForward(pass, c);
    kDeviceBackward(pass, c);
  };
  for (const cuda::Rung rung : {cuda::Rung::plain, cuda::Rung::portable}) {  // not hopper: kernels/cuda/attention.h
    SCOPED_TRACE(to_string(rung));
    cuda::set_highest_rung(rung);
    test::for_each_poison([&](const Case& c, const test::Poison& poison) {
      test::expect_poison_isolated<float>(c, poison, run);
      test::expect_poison_isolated<bfloat16>(c, poison, run);
      test::expect_poison_isolated<float16>(c, poison, run);
    });
    if (HasFatalFailure()) return;
  }
}

/// Also where a row tile ends inside the rows that a kernel stores at a time: behind row 20, and behind row 90.
TEST_F(CudaAttention, RowsOutsideTheBandsKeepTheirStateBitForBit) {
  for (const cuda::Rung rung : cuda::kRungs) {
    cuda::set_highest_rung(rung);
    for (const std::int64_t width : {64, 128}) {
      for (const std::int64_t end : {20, 90}) {
        SCOPED_TRACE(testing::Message() << to_string(rung) << " width " << width << ", rows to " << end);
        Case c = causal_case(300, 2, 1, width);
        c.bands = {{10, end, 0, 64}, {200, 300, 100, 300, -kUnbounded, 0}};
        c.update = Update::accumulate;
        Pass<bfloat16, float> pass(c);
        pass.randomize(109);
        const Host<float> out = pass.out, lse = pass.lse;
        kDeviceForward(pass, c);
        for (std::int64_t i = 0; i < c.query_rows; ++i) {
          const bool stays = i < 10 || (i >= end && i < 200);
          EXPECT_EQ(pass.lse.get(i, 1) == lse.get(i, 1), stays) << "row " << i;
          for (const std::int64_t column : {std::int64_t{5}, width - 1}) {
            EXPECT_EQ(pass.out.get(i, 1, column) == out.get(i, 1, column), stays) << "row " << i << ", column " << column;
          }
        }
      }
    }
  }
}

TEST_F(CudaAttention, ScalesThatAreNotPositiveAndEmptySidesAreLegal) {
  std::vector<Case> cases;
  for (const double scale : {-0.25, 0.0}) {
    cases.push_back(causal_case(150, 2, 1, 64));
    cases.back().scale = scale;
  }
  for (const auto& [rows, keys] : {std::pair<std::int64_t, std::int64_t>{0, 5}, {5, 0}, {0, 0}}) {
    cases.push_back({.query_rows = rows, .key_rows = keys});
  }
  for_each_expectation<bfloat16, float>(cases, 110, [](const auto& expected) { expect_matches_at_every_rung(expected); });
}

TEST_F(CudaAttention, RowsWithoutAGlobalSumContributeNothing) {
  for (const cuda::Rung rung : cuda::kRungs) {
    cuda::set_highest_rung(rung);
    const Case c = causal_case(260, 2, 1, 128);
    Pass<bfloat16, float> pass(c);
    pass.randomize(111);
    pass.lse.fill(kMinusInfinity);
    kDeviceBackward(pass, c);
    EXPECT_EQ(magnitude(pass.dk.widened()) + magnitude(pass.dv.widened()) + magnitude(pass.dq.widened()), 0) << to_string(rung);
  }
}

/// merge, finish and delta by both devices on the same operands, which `storage` and `result` types name.
template <class A, class S, class O>
void expect_states_match(std::int64_t width, std::int64_t gap, double tolerance) {
  SCOPED_TRACE(testing::Message() << to_string(dtype_of<S>) << " " << to_string(dtype_of<O>) << " width " << width << " gap " << gap);
  constexpr std::int64_t kRows = 137, kHeads = 3;
  std::mt19937_64 random(112);
  Workbench& bench = Workbench::get();
  bench.clear();
  Host<A> out(kRows, kHeads, width, gap), lse(kRows, kHeads, 1, gap), part(kRows, kHeads, width), part_lse(kRows, kHeads, 1),
      sink(1, kHeads, 1), dlse(kRows, kHeads, 1), delta_of(kRows, kHeads, 1, gap), dsink(1, kHeads, 1), lse_of(kRows, kHeads, 1);
  Host<S> dout(kRows, kHeads, width, gap);
  Host<O> stored(kRows, kHeads, width, gap);
  for (Host<A>* x : {&out, &lse, &part, &part_lse, &sink, &dlse}) x->randomize(random);
  dout.randomize(random);
  const A empty = static_cast<A>(kMinusInfinity);
  lse(3, 0) = part_lse(3, 0) = part_lse(4, 1) = lse(5, 2) = empty;
  out(5, 2, 0) = std::numeric_limits<A>::quiet_NaN();  // an empty state is not read
  sink(0, 2) = empty;
  const auto near = [&](auto& host, ConstTensorView device, const char* name) {
    auto got = host;
    bench.take(device, got);
    EXPECT_LE(largest_difference(got, host), tolerance) << name;
    EXPECT_TRUE(got.gaps_untouched()) << name;
  };
  const Stream cpu;
  const TensorView d_out = bench.put(out), d_lse = bench.put(lse), d_part = bench.put(part), d_part_lse = bench.put(part_lse),
                   d_sink = bench.put(sink), d_dlse = bench.put(dlse), d_delta = bench.put(delta_of), d_dsink = bench.put(dsink),
                   d_lse_of = bench.put(lse_of), d_dout = bench.put(dout), d_stored = bench.put(stored);
  merge(part, part_lse, {out, lse}, cpu);
  merge(d_part, d_part_lse, {d_out, d_lse}, bench.stream());
  near(out, d_out, "merged out");
  near(lse, d_lse, "merged lse");
  for (const bool with_sink : {true, false}) {
    finish(out, lse, with_sink ? sink.view() : TensorView{}, stored, lse_of, cpu);
    finish(d_out, d_lse, with_sink ? d_sink : TensorView{}, d_stored, d_lse_of, bench.stream());
    // One unit in the last place, where the two round apart.
    const double unit = magnitude(stored.widened()) * (sizeof(O) == 2 ? test::kBfloat16Rounding * 2 : 0);
    auto got = stored;
    bench.take(d_stored, got);
    EXPECT_LE(largest_difference(got, stored), unit + tolerance) << "finished out";
    near(lse_of, d_lse_of, "finished lse");
    bench.take(d_stored, stored);
    delta(dout, stored, lse_of, with_sink ? dlse.view() : TensorView{}, with_sink ? sink.view() : TensorView{}, delta_of,
          with_sink ? dsink.view() : TensorView{}, cpu);
    delta(d_dout, d_stored, d_lse_of, with_sink ? d_dlse : TensorView{}, with_sink ? d_sink : TensorView{}, d_delta,
          with_sink ? d_dsink : TensorView{}, bench.stream());
    auto deltas = delta_of;
    bench.take(d_delta, deltas);
    EXPECT_LE(largest_difference(deltas, delta_of), tolerance * 10 * (1 + magnitude(delta_of.widened()))) << "delta";
    auto sums = dsink;
    bench.take(d_dsink, sums);
    EXPECT_LE(largest_difference(sums, dsink), tolerance * 10 * (1 + magnitude(dsink.widened()))) << "dsink";
  }
}

TEST_F(CudaAttention, MergeFinishAndDeltaMatchTheCpu) {
  for (const auto& [width, gap] : {std::pair<std::int64_t, std::int64_t>{128, 0}, {64, 8}, {20, 0}, {256, 16}, {7, 3}}) {
    expect_states_match<double, double, double>(width, gap, 1e-13);
    expect_states_match<float, float, float>(width, gap, 2e-6);
    expect_states_match<float, bfloat16, bfloat16>(width, gap, 2e-6);
    expect_states_match<float, float16, float16>(width, gap, 2e-6);
    expect_states_match<float, bfloat16, float>(width, gap, 2e-6);
    expect_states_match<float, float16, bfloat16>(width, gap, 2e-6);
  }
}

}  // namespace
}  // namespace periplus::kernels
