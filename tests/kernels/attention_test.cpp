#include "kernels/attention.h"

#include <thread>

#include <gtest/gtest.h>
#include <omp.h>

#include "tests/kernels/attention_cases.h"
#include "tests/kernels/tolerance.h"

// The vectorised f32 and bf16 kernels against the f64 reference, at every level this CPU has.
namespace periplus::kernels {
namespace {

using test::Case;
using test::Host;
using test::kMinusInfinity;
using test::largest_difference;

const Stream kStream;

std::vector<CpuLevel> levels() {
  std::vector<CpuLevel> all = {CpuLevel::scalar, CpuLevel::avx2, CpuLevel::avx512};
  all.resize(static_cast<std::size_t>(best_cpu_level()) + 1);
  return all;
}

/// Restores level and team size after a test that changes them.
class Attention : public testing::Test {
 protected:
  ~Attention() override {
    set_cpu_level(level_);
    omp_set_num_threads(threads_);
  }

 private:
  CpuLevel level_ = cpu_level();
  int threads_ = omp_get_max_threads();
};

/// Operands, a state that some earlier block left (used by Update::accumulate), and results of storage type S, state type A.
template <class S, class A>
struct Pass {
  explicit Pass(const Case& c)
      : q(c.query_rows, c.heads, c.width_qk, c.gap),
        k(c.key_rows, c.kv_heads, c.width_qk, c.gap),
        v(c.key_rows, c.kv_heads, c.width_v, c.gap),
        dout(c.query_rows, c.heads, c.width_v, c.gap),
        out(c.query_rows, c.heads, c.width_v, c.gap),
        lse(c.query_rows, c.heads, 1, c.gap),
        delta(c.query_rows, c.heads, 1, c.gap),
        dq(c.query_rows, c.heads, c.width_qk, c.gap),
        dk(c.key_rows, c.kv_heads, c.width_qk, c.gap),
        dv(c.key_rows, c.kv_heads, c.width_v, c.gap) {}

  void randomize(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    for (Host<S>* operand : {&q, &k, &v, &dout}) operand->randomize(random);
    for (Host<A>* state : {&out, &lse, &delta, &dq, &dk, &dv}) state->randomize(random);
    for (std::int64_t row = 0; row < lse.rows(); row += 3) {  // every third row is still empty
      lse(row, 0) = static_cast<A>(kMinusInfinity);
      for (std::int64_t i = 0; i < out.width(); ++i) out(row, 0, i) = 0;
    }
  }
  void forward(const Case& c) { attend({q, k, v, c.bands, c.scale, c.softcap}, {out, lse}, c.update, kStream); }
  void backward(const Case& c) {
    attend_backward({q, k, v, c.bands, c.scale, c.softcap}, dout, lse, delta, {dq, dk, dv, c.update, c.update}, kStream);
  }
  Pass<double, double> widened(const Case& c) const {
    Pass<double, double> wide(c);
    wide.q = q.widened();
    wide.k = k.widened();
    wide.v = v.widened();
    wide.dout = dout.widened();
    wide.out = out.widened();
    wide.lse = lse.widened();
    wide.delta = delta.widened();
    wide.dq = dq.widened();
    wide.dk = dk.widened();
    wide.dv = dv.widened();
    return wide;
  }

  Host<S> q, k, v, dout;
  Host<A> out, lse, delta, dq, dk, dv;
};

double magnitude(const Host<double>& x) { return largest_difference(x, Host<double>(x.rows(), x.heads(), x.width())); }

template <class S>
void expect_matches_reference(const Case& c, std::uint64_t seed) {
  Pass<S, float> got(c);
  got.randomize(seed);
  Pass<double, double> wanted = got.widened(c);
  got.forward(c);
  wanted.forward(c);
  EXPECT_LE(largest_difference(got.out, wanted.out), test::kStateTolerance);
  EXPECT_LE(largest_difference(got.lse, wanted.lse), test::kStateTolerance);
  // Both get the same lse, rounded: backward is judged alone.
  wanted.lse = got.lse.widened();
  got.backward(c);
  wanted.backward(c);
  EXPECT_LE(largest_difference(got.dq, wanted.dq), test::kGradientTolerance * (1 + magnitude(wanted.dq)));
  EXPECT_LE(largest_difference(got.dk, wanted.dk), test::kGradientTolerance * (1 + magnitude(wanted.dk)));
  EXPECT_LE(largest_difference(got.dv, wanted.dv), test::kGradientTolerance * (1 + magnitude(wanted.dv)));
  for (Host<float>* result : {&got.out, &got.lse, &got.dq, &got.dk, &got.dv}) EXPECT_TRUE(result->gaps_untouched());
}

Case random_case(std::mt19937_64& random) {
  Case c;
  c.query_rows = test::pick_of(random, {1, 7, 16, 33, 64, 100, 129, 200, 257});
  c.key_rows = test::pick(random, 0, 3) == 0 ? c.query_rows : test::pick_of(random, {1, 15, 48, 64, 65, 130, 300});
  c.kv_heads = test::pick(random, 1, 2);
  c.heads = c.kv_heads * test::pick_of(random, {1, 1, 2, 4, 8});
  c.width_qk = test::pick_of(random, {1, 8, 16, 24, 64, 80, 128});
  c.width_v = test::pick(random, 0, 1) == 0 ? c.width_qk : test::pick_of(random, {3, 8, 16, 40, 64, 128});
  c.bands = test::random_bands(random, c.query_rows, c.key_rows);
  c.scale = 1 / std::sqrt(static_cast<double>(c.width_qk));
  c.softcap = test::pick(random, 0, 4) == 0 ? 2.0 : 0;
  c.gap = test::pick_of(random, {0, 0, 5, 16});
  c.update = test::pick(random, 0, 1) == 0 ? Update::overwrite : Update::accumulate;
  return c;
}

TEST_F(Attention, MatchesReferenceAtEveryLevelOverRandomShapes) {
  for (const CpuLevel level : levels()) {
    set_cpu_level(level);
    std::mt19937_64 random(21);
    for (int trial = 0; trial < 200; ++trial) {
      const Case c = random_case(random);
      SCOPED_TRACE(testing::Message() << "level " << static_cast<int>(level) << " trial " << trial << ": " << c.query_rows << "x"
                                      << c.key_rows << " heads " << c.heads << "/" << c.kv_heads << " widths " << c.width_qk << ","
                                      << c.width_v << " bands " << c.bands.size() << " softcap " << c.softcap << " accumulate "
                                      << (c.update == Update::accumulate));
      if (trial % 2 == 0) {
        expect_matches_reference<float>(c, random());
      } else {
        expect_matches_reference<bfloat16>(c, random());
      }
      if (HasFailure()) return;
    }
  }
}

Case causal_case(std::int64_t rows, std::int64_t heads, std::int64_t kv_heads, std::int64_t width) {
  Case c{.query_rows = rows, .key_rows = rows, .heads = heads, .kv_heads = kv_heads, .width_qk = width, .width_v = width};
  c.scale = 1 / std::sqrt(static_cast<double>(width));
  c.bands = {{0, rows, 0, rows, -kUnbounded, 0}};
  return c;
}

Pass<float, float> full_pass(const Case& c) {
  Pass<float, float> run(c);
  run.randomize(31);
  run.forward(c);
  run.backward(c);
  return run;
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

TEST_F(Attention, NaNInOneQueryStaysInItsRow) {
  for (const CpuLevel level : levels()) {
    set_cpu_level(level);
    const Case c = causal_case(80, 2, 2, 16);
    Pass<float, float> run(c);
    run.randomize(46);
    run.q(33, 1, 2) = std::nanf("");
    run.forward(c);
    for (std::int64_t h = 0; h < 2; ++h) {
      for (std::int64_t i = 0; i < 80; ++i) {
        EXPECT_EQ(std::isnan(run.out.get(i, h, 1)), i == 33 && h == 1);
        EXPECT_EQ(std::isnan(run.lse.get(i, h)), i == 33 && h == 1);
      }
    }
    run.backward(c);
    for (std::int64_t i = 0; i < 80; ++i) EXPECT_EQ(std::isnan(run.dq.get(i, 1, 1)), i == 33);
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
  stored64 = stored.widened();
  delta(dout, stored, lse_got, dlse, sink, delta_got, dsink, kStream);
  delta(dout64, stored64, lse_wanted, dlse64, sink64, delta_wanted, dsink_wanted, kStream);
  EXPECT_LE(largest_difference(delta_got, delta_wanted), test::kGradientTolerance * (1 + magnitude(delta_wanted)));
  EXPECT_LE(largest_difference(dsink, dsink_wanted), test::kGradientTolerance * (1 + magnitude(dsink_wanted)));
}

TEST_F(Attention, LevelThatTheCpuLacksIsRefused) {
  if (best_cpu_level() == CpuLevel::avx512) GTEST_SKIP() << "this CPU has every level";
  EXPECT_THROW(set_cpu_level(CpuLevel::avx512), InvalidArgument);
}

}  // namespace
}  // namespace periplus::kernels
