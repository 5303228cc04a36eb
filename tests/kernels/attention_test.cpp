#include "kernels/attention.h"

#include <thread>

#include <gtest/gtest.h>
#include <omp.h>

#include "tests/kernels/attention_sweep.h"

// The vectorised kernels of f32, bf16 and f16 storage against the f64 reference, at every level this CPU has.
namespace periplus::kernels {
namespace {

using test::Attention;
using test::Case;
using test::causal_case;
using test::Host;
using test::kMinusInfinity;
using test::kStream;
using test::largest_difference;
using test::levels;
using test::magnitude;
using test::Pass;
using test::random_case;
using test::Tolerance;

template <class S>
Tolerance tolerance_of(CpuLevel level) {
  if (test::has_tiles(level) && !std::is_same_v<S, float>) return {test::kTileTolerance, test::kTileTolerance, true};
  return {test::kStateTolerance, test::kGradientTolerance};
}

/// Every level against one run of the reference.
template <class S>
void expect_matches_reference(const Case& c, std::uint64_t seed) {
  const test::Expectation<S> expected(c, seed);
  for (const CpuLevel level : levels()) {
    SCOPED_TRACE(to_string(level));
    set_cpu_level(level);
    const auto forward = [](Pass<S, float>& pass, const Case& of) { pass.forward(of); };
    const auto backward = [](Pass<S, float>& pass, const Case& of) { pass.backward(of); };
    test::expect_matches(expected, tolerance_of<S>(level), forward, backward);
  }
}

TEST_F(Attention, MatchesReferenceAtEveryLevelOverRandomShapes) {
  std::mt19937_64 random(21);
  for (int trial = 0; trial < 510; ++trial) {
    const Case c = random_case(random);
    SCOPED_TRACE(testing::Message() << "trial " << trial << ": " << test::describe(c));
    if (trial % 3 == 0) {
      expect_matches_reference<float>(c, random());
    } else if (trial % 3 == 1) {
      expect_matches_reference<bfloat16>(c, random());
    } else {
      expect_matches_reference<float16>(c, random());
    }
    if (HasFailure()) return;
  }
}

/// More rows and keys than one tile of any kernel holds, in both passes.
TEST_F(Attention, MatchesReferenceOverSeveralTiles) {
  Case c{.query_rows = 1100, .key_rows = 1300, .heads = 2, .kv_heads = 1, .width_qk = 40, .width_v = 24};
  c.scale = 1 / std::sqrt(40.0);
  c.bands = {{0, 600, 0, 700, -kUnbounded, 70}, {600, 1100, 0, 700, -650, -400}, {600, 1100, 700, 1300, -90, kUnbounded}};
  expect_matches_reference<float>(c, 22);
  expect_matches_reference<bfloat16>(c, 23);
}

Pass<float, float> full_pass(const Case& c) {
  Pass<float, float> run(c);
  run.randomize(31);
  run.forward(c);
  run.backward(c);
  return run;
}

TEST_F(Attention, ScalesThatAreNotPositiveKeepMaskedPairsHidden) {
  for (const CpuLevel level : levels()) {
    set_cpu_level(level);
    for (const double scale : {-0.25, 0.0}) {
      SCOPED_TRACE(testing::Message() << to_string(level) << " scale " << scale);
      Case c = causal_case(70, 2, 1, 16);
      c.scale = scale;
      expect_matches_reference<bfloat16>(c, 71);
      expect_matches_reference<float>(c, 72);
    }
  }
}

TEST_F(Attention, SameBitsForAnyNumberOfThreadsAndOnEveryRepeat) {
  std::mt19937_64 random(5);
  Case packed = causal_case(600, 4, 2, 48);
  packed.bands = test::random_bands(random, 600, 600);
  for (const Case& c : {causal_case(600, 4, 2, 48), causal_case(700, 1, 1, 64), packed}) {
    omp_set_num_threads(1);
    const Pass<float, float> one = full_pass(c);
    for (const int threads : {2, 3, 2, 3}) {
      SCOPED_TRACE(threads);
      omp_set_num_threads(threads);
      const Pass<float, float> many = full_pass(c);
      EXPECT_EQ(one.out.raw(), many.out.raw());
      EXPECT_EQ(one.lse.raw(), many.lse.raw());
      EXPECT_EQ(one.dq.raw(), many.dq.raw());
      EXPECT_EQ(one.dk.raw(), many.dk.raw());
      EXPECT_EQ(one.dv.raw(), many.dv.raw());
    }
  }
}

TEST_F(Attention, CallsTheProgressHookOftenAndOnlyFromTheCallingThread) {
  const Case c = causal_case(700, 2, 1, 64);
  Pass<float, float> run(c);
  run.randomize(41);
  const std::thread::id caller = std::this_thread::get_id();
  int calls = 0, strangers = 0;
  const Stream stream([&] {
    ++calls;
    strangers += std::this_thread::get_id() != caller;
  });
  for (const int threads : {1, 3}) {
    omp_set_num_threads(threads);
    calls = 0;
    attend({run.q, run.k, run.v, c.bands, c.scale, 0}, {run.out, run.lse}, Update::overwrite, stream);
    if (threads == 1) {
      EXPECT_GT(calls, 2 * 700 / 64 * 700 / 128 / 2);
    }
    calls = 0;
    attend_backward({run.q, run.k, run.v, c.bands, c.scale, 0}, run.dout, run.lse, run.delta, {run.dq, run.dk, run.dv}, stream);
    if (threads == 1) {
      EXPECT_GT(calls, 2 * 700 / 64 * 700 / 64 / 2);
    }
  }
  EXPECT_EQ(strangers, 0);
}

TEST_F(Attention, HookThatThrowsReachesTheCallerAfterTheTeamIsDone) {
  omp_set_num_threads(2);
  const Case c = causal_case(500, 2, 2, 32);
  Pass<float, float> run(c);
  run.randomize(42);
  int calls = 0;
  const Stream stream([&] {
    ++calls;
    throw CommError("peer is gone");
  });
  EXPECT_THROW(attend_backward({run.q, run.k, run.v, c.bands, c.scale, 0}, run.dout, run.lse, run.delta, {run.dq, run.dk, run.dv}, stream),
               CommError);
  EXPECT_EQ(calls, 1);
}

TEST_F(Attention, ExtremeLogitsStayFiniteAndPickTheLargestKey) {
  for (const CpuLevel level : levels()) {
    set_cpu_level(level);
    Case c = causal_case(70, 1, 1, 16);
    c.bands = {{0, 70, 0, 70}};
    c.scale = 1;
    Pass<float, float> run(c);
    run.randomize(43);
    for (std::int64_t i = 0; i < 70; ++i) {
      for (std::int64_t x = 0; x < 16; ++x) run.q(i, 0, x) = run.k(i, 0, x) = 0;
      run.q(i, 0, 0) = i % 2 == 0 ? 100.0f : -100.0f;
      run.k(i, 0, 0) = i == 40 ? 100.0f : i == 41 ? -100.0f : 0.0f;
    }
    run.forward(c);
    for (std::int64_t i = 0; i < 70; ++i) {
      EXPECT_NEAR(run.lse.get(i, 0), 1e4, 2e-3);
      EXPECT_NEAR(run.out.get(i, 0, 3), run.v.get(i % 2 == 0 ? 40 : 41, 0, 3), 1e-6);
    }
    for (Host<float>* operand : {&run.lse, &run.delta}) operand->fill(operand == &run.lse ? 1e4 : 0);
    run.backward(c);
    for (Host<float>* gradient : {&run.dq, &run.dk, &run.dv}) {
      gradient->for_each([](float& value) { ASSERT_TRUE(std::isfinite(value)); });
    }
  }
}

TEST_F(Attention, HiddenRowsAreEmptyAndHaveNoGradient) {
  for (const CpuLevel level : levels()) {
    set_cpu_level(level);
    Case c = causal_case(150, 2, 1, 24);
    c.bands = {{20, 90, 30, 140, -kUnbounded, 0}};  // rows 20..29 of the band see no key either
    Pass<float, float> run(c);
    run.randomize(44);
    run.forward(c);
    run.backward(c);
    for (std::int64_t i = 0; i < 150; ++i) {
      const bool hidden = i < 30 || i >= 90;
      EXPECT_EQ(run.lse.get(i, 1) == kMinusInfinity, hidden) << i;
      EXPECT_EQ(run.out.get(i, 1, 0) == 0, hidden) << i;
      EXPECT_EQ(run.dq.get(i, 1, 0) == 0, hidden) << i;
      EXPECT_EQ(run.dv.get(i, 0, 0) == 0, hidden) << i;
      EXPECT_EQ(run.dk.get(i, 0, 0) == 0, hidden) << i;
    }
    // Rows whose global lse is -inf contribute nothing.
    run.lse.fill(kMinusInfinity);
    run.backward(c);
    EXPECT_EQ(magnitude(run.dk.widened()) + magnitude(run.dv.widened()) + magnitude(run.dq.widened()), 0);
  }
}

TEST_F(Attention, RowsOutsideTheBandsKeepTheirStateBitForBit) {
  Case c = causal_case(100, 1, 1, 16);
  c.bands = {{10, 20, 0, 64}};
  c.update = Update::accumulate;
  Pass<float, float> run(c);
  run.randomize(45);
  const Host<float> out = run.out, lse = run.lse;
  run.forward(c);
  for (std::int64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(run.lse.get(i, 0) == lse.get(i, 0), i < 10 || i >= 20) << i;
    EXPECT_EQ(run.out.get(i, 0, 5) == out.get(i, 0, 5), i < 10 || i >= 20) << i;
  }
}

TEST_F(Attention, EmptySidesAreLegal) {
  for (const auto& [rows, keys] : {std::pair<std::int64_t, std::int64_t>{0, 5}, {5, 0}, {0, 0}}) {
    Case c{.query_rows = rows, .key_rows = keys};
    Pass<float, float> run(c);
    run.randomize(47);
    run.forward(c);
    run.backward(c);
    for (std::int64_t i = 0; i < rows; ++i) EXPECT_EQ(run.lse.get(i, 0), kMinusInfinity);
    EXPECT_EQ(magnitude(run.dq.widened()) + magnitude(run.dk.widened()), 0);
  }
}

TEST_F(Attention, MergeFinishAndDeltaOfSinglePrecisionMatchDouble) {
  std::mt19937_64 random(48);
  Host<float> out(37, 3, 20, 4), lse(37, 3, 1, 4), part(37, 3, 20), part_lse(37, 3, 1), sink(1, 3, 1), dlse(37, 3, 1), delta_got(37, 3, 1),
      dsink(1, 3, 1), lse_got(37, 3, 1);
  Host<bfloat16> dout(37, 3, 20), stored(37, 3, 20);
  for (Host<float>* x : {&out, &lse, &part, &part_lse, &sink, &dlse}) x->randomize(random);
  dout.randomize(random);
  lse(3, 0) = part_lse(3, 0) = part_lse(4, 1) = lse(5, 2) = static_cast<float>(kMinusInfinity);
  for (std::int64_t i = 0; i < 20; ++i) out(3, 0, i) = part(3, 0, i) = 0;
  Host<double> out64 = out.widened(), lse64 = lse.widened(), part64 = part.widened(), part_lse64 = part_lse.widened();
  Host<double> sink64 = sink.widened(), dlse64 = dlse.widened(), dout64 = dout.widened();
  Host<double> stored64(37, 3, 20), lse_wanted(37, 3, 1), delta_wanted(37, 3, 1), dsink_wanted(1, 3, 1);
  merge(part, part_lse, {out, lse}, kStream);
  merge(part64, part_lse64, {out64, lse64}, kStream);
  EXPECT_LE(largest_difference(out, out64), test::kStateTolerance);
  EXPECT_LE(largest_difference(lse, lse64), test::kStateTolerance);
  finish(out, lse, sink, stored, lse_got, kStream);
  finish(out64, lse64, sink64, stored64, lse_wanted, kStream);
  EXPECT_LE(largest_difference(stored, stored64), test::kBfloat16Rounding * magnitude(stored64) + test::kStateTolerance);
  EXPECT_LE(largest_difference(lse_got, lse_wanted), test::kStateTolerance);
  Host<float16> half(37, 3, 20);
  finish(out, lse, sink, half, lse_got, kStream);
  EXPECT_LE(largest_difference(half, stored64), test::kFloat16Rounding * magnitude(stored64) + test::kStateTolerance);
  stored64 = stored.widened();
  delta(dout, stored, lse_got, dlse, sink, delta_got, dsink, kStream);
  delta(dout64, stored64, lse_wanted, dlse64, sink64, delta_wanted, dsink_wanted, kStream);
  EXPECT_LE(largest_difference(delta_got, delta_wanted), test::kGradientTolerance * (1 + magnitude(delta_wanted)));
  EXPECT_LE(largest_difference(dsink, dsink_wanted), test::kGradientTolerance * (1 + magnitude(dsink_wanted)));
}

TEST_F(Attention, LevelThatTheCpuLacksIsRefused) {
  if (best_cpu_level() == CpuLevel::amx) GTEST_SKIP() << "this CPU has every level";
  EXPECT_THROW(set_cpu_level(CpuLevel::amx), InvalidArgument);
}

}  // namespace
}  // namespace periplus::kernels
