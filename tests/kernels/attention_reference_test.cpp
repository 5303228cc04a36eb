#include <gtest/gtest.h>

#include "kernels/attention.h"
#include "tests/kernels/attention_cases.h"

// The f64 path against definitions written here, finite differences and the identities of algorithms.md section 1.
namespace periplus::kernels {
namespace {

using test::Case;
using test::Dense;
using test::Host;
using test::kMinusInfinity;
using test::largest_difference;

const Stream kStream;

Case random_case(std::mt19937_64& random) {
  Case c;
  c.query_rows = test::pick(random, 0, 40);
  c.key_rows = test::pick(random, 0, 40);
  c.kv_heads = test::pick(random, 1, 2);
  c.heads = c.kv_heads * test::pick(random, 1, 3);
  c.width_qk = test::pick(random, 1, 9);
  c.width_v = test::pick(random, 1, 9);
  c.bands = test::random_bands(random, c.query_rows, c.key_rows);
  c.scale = 1 / std::sqrt(static_cast<double>(c.width_qk));
  c.softcap = test::pick(random, 0, 2) == 0 ? 1.5 : 0;
  c.gap = test::pick(random, 0, 3);
  return c;
}

struct Inputs {
  explicit Inputs(const Case& c, std::uint64_t seed)
      : q(c.query_rows, c.heads, c.width_qk, c.gap),
        k(c.key_rows, c.kv_heads, c.width_qk, c.gap),
        v(c.key_rows, c.kv_heads, c.width_v, c.gap),
        dout(c.query_rows, c.heads, c.width_v, c.gap),
        dlse(c.query_rows, c.heads, 1, c.gap) {
    std::mt19937_64 random(seed);
    for (Host<double>* operand : {&q, &k, &v, &dout, &dlse}) operand->randomize(random);
  }
  Host<double> q, k, v, dout, dlse;
};

Dense empty_result(const Case& c) {
  return {Host<double>(c.query_rows, c.heads, c.width_v, c.gap), Host<double>(c.query_rows, c.heads, 1, c.gap),
          Host<double>(c.query_rows, c.heads, c.width_qk, c.gap), Host<double>(c.key_rows, c.kv_heads, c.width_qk, c.gap),
          Host<double>(c.key_rows, c.kv_heads, c.width_v, c.gap)};
}

AttentionBlock block_of(const Case& c, Inputs& in) { return {in.q, in.k, in.v, c.bands, c.scale, c.softcap}; }

Dense forward(const Case& c, Inputs& in) {
  Dense r = empty_result(c);
  attend(block_of(c, in), {r.out, r.lse}, Update::overwrite, kStream);
  return r;
}

void backward(const Case& c, Inputs& in, Dense& r) {
  Host<double> d(c.query_rows, c.heads, 1);
  delta(in.dout, r.out, r.lse, in.dlse, {}, d, {}, kStream);
  attend_backward(block_of(c, in), in.dout, r.lse, d, {r.dq, r.dk, r.dv}, kStream);
}

void expect_close(const Dense& a, const Dense& b, double tolerance) {
  EXPECT_LE(largest_difference(a.out, b.out), tolerance);
  EXPECT_LE(largest_difference(a.lse, b.lse), tolerance);
  EXPECT_LE(largest_difference(a.dq, b.dq), tolerance);
  EXPECT_LE(largest_difference(a.dk, b.dk), tolerance);
  EXPECT_LE(largest_difference(a.dv, b.dv), tolerance);
}

TEST(AttentionReference, MatchesDenseSoftmaxForwardAndBackward) {
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 300; ++trial) {
    SCOPED_TRACE(trial);
    const Case c = random_case(random);
    Inputs in(c, random());
    Dense got = forward(c, in);
    backward(c, in, got);
    const Host<double> dout = in.dout.widened(), dlse = in.dlse.widened();
    expect_close(got, test::dense_attention(c, in.q, in.k, in.v, &dout, &dlse), 2e-13);
    for (Host<double>* result : {&got.out, &got.lse, &got.dq, &got.dk, &got.dv}) EXPECT_TRUE(result->gaps_untouched());
    if (HasFailure()) return;
  }
}

double loss(const Case& c, Inputs& in) {
  const Dense r = forward(c, in);
  double sum = 0;
  for (std::int64_t i = 0; i < c.query_rows; ++i) {
    for (std::int64_t h = 0; h < c.heads; ++h) {
      for (std::int64_t x = 0; x < c.width_v; ++x) sum += r.out.get(i, h, x) * in.dout.get(i, h, x);
      if (r.lse.get(i, h) != kMinusInfinity) sum += r.lse.get(i, h) * in.dlse.get(i, h);
    }
  }
  return sum;
}

TEST(AttentionReference, GradientsMatchFiniteDifferencesWithGradientsOfOutAndLse) {
  std::mt19937_64 random(2);
  for (const double softcap : {0.0, 2.0}) {
    Case c{.query_rows = 7, .key_rows = 9, .heads = 4, .kv_heads = 2, .width_qk = 3, .width_v = 5};
    c.bands = {{0, 4, 0, 6, -kUnbounded, 1}, {4, 7, 2, 9, -2, kUnbounded}};
    c.scale = 0.7;
    c.softcap = softcap;
    Inputs in(c, random());
    Dense got = forward(c, in);
    backward(c, in, got);
    const auto check = [&](Host<double>& operand, const Host<double>& gradient) {
      Host<double> numeric(operand.rows(), operand.heads(), operand.width());
      for (std::int64_t row = 0; row < operand.rows(); ++row) {
        for (std::int64_t head = 0; head < operand.heads(); ++head) {
          for (std::int64_t i = 0; i < operand.width(); ++i) {
            double& x = operand(row, head, i);
            const double origin = x, step = 1e-5;
            x = origin + step;
            const double above = loss(c, in);
            x = origin - step;
            numeric(row, head, i) = (above - loss(c, in)) / (2 * step);
            x = origin;
          }
        }
      }
      EXPECT_LE(largest_difference(numeric, gradient), 1e-8);
    };
    check(in.q, got.dq);
    check(in.k, got.dk);
    check(in.v, got.dv);
  }
}

TEST(AttentionReference, BlocksOfAPartitionAddUpToTheWhole) {
  std::mt19937_64 random(3);
  for (int trial = 0; trial < 50; ++trial) {
    SCOPED_TRACE(trial);
    Case whole = random_case(random);
    Inputs in(whole, random());
    Dense expected = forward(whole, in);
    backward(whole, in, expected);
    Host<double> d(whole.query_rows, whole.heads, 1);
    delta(in.dout, expected.out, expected.lse, in.dlse, {}, d, {}, kStream);

    Dense folded = empty_result(whole), merged = empty_result(whole);
    merged.lse.fill(kMinusInfinity);
    const std::int64_t cuts[] = {0, test::pick(random, 0, whole.key_rows), whole.key_rows};
    for (int part = 0; part < 2; ++part) {
      Case c = whole;
      for (Band& band : c.bands) {
        band.k0 = std::max(band.k0, cuts[part]);
        band.k1 = std::min(band.k1, cuts[part + 1]);
      }
      const Update update = part == 0 ? Update::overwrite : Update::accumulate;
      attend(block_of(c, in), {folded.out, folded.lse}, update, kStream);
      Dense alone = forward(c, in);
      merge(alone.out, alone.lse, {merged.out, merged.lse}, kStream);
      attend_backward(block_of(c, in), in.dout, expected.lse, d, {folded.dq, folded.dk, folded.dv, update, update}, kStream);
    }
    expect_close(folded, expected, 2e-13);
    EXPECT_LE(largest_difference(merged.out, expected.out), 1e-13);
    EXPECT_LE(largest_difference(merged.lse, expected.lse), 1e-13);
    if (HasFailure()) return;
  }
}

// algorithms.md 1.4: the gradient of merge fed into each part with its *local* lse equals the global formula.
TEST(AttentionReference, GradientThroughMergeEqualsTheGlobalFormula) {
  std::mt19937_64 random(4);
  Case whole{.query_rows = 6, .key_rows = 10, .heads = 2, .kv_heads = 1, .width_qk = 4, .width_v = 3};
  whole.bands = {{0, 6, 0, 10}};
  Inputs in(whole, 4);
  Dense expected = forward(whole, in);
  backward(whole, in, expected);
  Dense sum = empty_result(whole);
  for (const Band& band : {Band{0, 6, 0, 4}, Band{0, 6, 4, 10}}) {
    Case c = whole;
    c.bands = {band};
    Inputs local = in;
    Dense part = forward(c, local);
    for (std::int64_t i = 0; i < c.query_rows; ++i) {
      for (std::int64_t h = 0; h < c.heads; ++h) {
        const double weight = std::exp(part.lse.get(i, h) - expected.lse.get(i, h));
        double tilt = in.dlse.get(i, h);
        for (std::int64_t x = 0; x < c.width_v; ++x) {
          tilt += in.dout.get(i, h, x) * (part.out.get(i, h, x) - expected.out.get(i, h, x));
          local.dout(i, h, x) *= weight;
        }
        local.dlse(i, h) = weight * tilt;
      }
    }
    backward(c, local, part);
    add(part.dq, sum.dq);
    add(part.dk, sum.dk);
    add(part.dv, sum.dv);
  }
  EXPECT_LE(largest_difference(sum.dq, expected.dq), 1e-13);
  EXPECT_LE(largest_difference(sum.dk, expected.dk), 1e-13);
  EXPECT_LE(largest_difference(sum.dv, expected.dv), 1e-13);
}

TEST(AttentionReference, SinkTakesPartInTheDenominatorAndHasItsGradient) {
  Case c{.query_rows = 5, .key_rows = 6, .heads = 2, .kv_heads = 1, .width_qk = 4, .width_v = 3};
  c.bands = {{0, 4, 0, 6, -kUnbounded, 0}};  // row 4 attends nothing but the sink
  Inputs in(c, 5);
  Host<double> sink(1, 2, 1), dsink(1, 2, 1), d(c.query_rows, c.heads, 1);
  sink(0, 0) = 0.3;
  sink(0, 1) = -1.2;
  const auto run = [&] {
    const Dense state = forward(c, in);
    Dense r = empty_result(c);
    Dense from = state;
    finish(from.out, from.lse, sink, r.out, r.lse, kStream);
    return r;
  };
  const auto objective = [&] {
    const Dense r = run();
    double sum = 0;
    for (std::int64_t i = 0; i < c.query_rows; ++i) {
      for (std::int64_t h = 0; h < c.heads; ++h) {
        sum += r.lse.get(i, h) * in.dlse.get(i, h);
        for (std::int64_t x = 0; x < c.width_v; ++x) sum += r.out.get(i, h, x) * in.dout.get(i, h, x);
      }
    }
    return sum;
  };
  Dense r = run();
  const Dense plain = test::dense_attention(c, in.q, in.k, in.v);
  for (std::int64_t i = 0; i < c.query_rows; ++i) {
    for (std::int64_t h = 0; h < c.heads; ++h) {
      const double total = std::log(std::exp(plain.lse.get(i, h)) + std::exp(sink.get(0, h)));
      EXPECT_NEAR(r.lse.get(i, h), total, 1e-13);
      EXPECT_NEAR(r.out.get(i, h), plain.out.get(i, h) * std::exp(plain.lse.get(i, h) - total), 1e-13);
    }
  }
  delta(in.dout, r.out, r.lse, in.dlse, sink, d, dsink, kStream);
  attend_backward(block_of(c, in), in.dout, r.lse, d, {r.dq, r.dk, r.dv}, kStream);
  const auto slope = [&](double& x) {
    const double origin = x, step = 1e-5;
    x = origin + step;
    const double above = objective();
    x = origin - step;
    const double below = objective();
    x = origin;
    return (above - below) / (2 * step);
  };
  for (std::int64_t h = 0; h < 2; ++h) EXPECT_NEAR(dsink.get(0, h), slope(sink(0, h)), 1e-8);
  for (std::int64_t i = 0; i < c.query_rows; ++i) EXPECT_NEAR(r.dq.get(i, 1, 2), slope(in.q(i, 1, 2)), 1e-8);
  for (std::int64_t j = 0; j < c.key_rows; ++j) EXPECT_NEAR(r.dk.get(j, 0, 1), slope(in.k(j, 0, 1)), 1e-8);
}

TEST(AttentionReference, ExtremeLogitsStayFinite) {
  Case c{.query_rows = 3, .key_rows = 3, .width_qk = 1, .width_v = 1};
  c.bands = {{0, 3, 0, 3}};
  Inputs in(c, 6);
  for (std::int64_t i = 0; i < 3; ++i) in.q(i, 0) = static_cast<double>(i - 1) * 100;
  in.k(0, 0) = 100;
  in.k(1, 0) = -100;
  in.k(2, 0) = 0;
  Dense got = forward(c, in);
  backward(c, in, got);
  EXPECT_DOUBLE_EQ(got.lse.get(0, 0), 1e4);
  EXPECT_DOUBLE_EQ(got.out.get(0, 0), in.v.get(1, 0));
  EXPECT_DOUBLE_EQ(got.lse.get(2, 0), 1e4);
  EXPECT_DOUBLE_EQ(got.out.get(2, 0), in.v.get(0, 0));
  const Host<double> dout = in.dout, dlse = in.dlse;
  expect_close(got, test::dense_attention(c, in.q, in.k, in.v, &dout, &dlse), 1e-11);
}

TEST(AttentionReference, RowsWithoutKeysAreEmptyAndHaveNoGradient) {
  Case c{.query_rows = 4, .key_rows = 4, .width_qk = 2, .width_v = 2};
  c.bands = {{0, 2, 0, 2}, {3, 3, 0, 4}, {2, 4, 2, 4, 5, 9}};
  Inputs in(c, 7);
  Dense got = empty_result(c);
  for (Host<double>* result : {&got.out, &got.lse, &got.dq, &got.dk, &got.dv}) result->fill(3);
  attend(block_of(c, in), {got.out, got.lse}, Update::overwrite, kStream);
  backward(c, in, got);
  for (std::int64_t row = 2; row < 4; ++row) {
    EXPECT_EQ(got.out.get(row, 0), 0);
    EXPECT_EQ(got.lse.get(row, 0), kMinusInfinity);
    EXPECT_EQ(got.dq.get(row, 0), 0);
    EXPECT_EQ(got.dk.get(row, 0), 0);
    EXPECT_EQ(got.dv.get(row, 0), 0);
  }
  // Two empty states merge to an empty state, not to NaN.
  Dense other = got;
  merge(other.out, other.lse, {got.out, got.lse}, kStream);
  EXPECT_EQ(got.lse.get(3, 0), kMinusInfinity);
  EXPECT_EQ(got.out.get(3, 0), 0);
  // A row that later blocks left empty in the whole pass stays without gradient.
  c.bands = {{0, 4, 0, 4}};
  Host<double> d(4, 1, 1), lse(4, 1, 1);
  lse.fill(kMinusInfinity);
  attend_backward(block_of(c, in), in.dout, lse, d, {got.dq, got.dk, got.dv}, kStream);
  EXPECT_EQ(largest_difference(got.dk, Host<double>(4, 1, 2)), 0);
}

TEST(AttentionReference, NaNInOneQueryStaysInItsRow) {
  Case c{.query_rows = 4, .key_rows = 4, .width_qk = 2, .width_v = 2};
  c.bands = {{0, 4, 0, 4}};
  Inputs in(c, 8);
  in.q(1, 0, 0) = std::nan("");
  const Dense got = forward(c, in);
  for (std::int64_t row = 0; row < 4; ++row) {
    EXPECT_EQ(std::isnan(got.out.get(row, 0)), row == 1);
    EXPECT_EQ(std::isnan(got.lse.get(row, 0)), row == 1);
  }
}

TEST(Attention, RefusesWrongArgumentsWithTheirNames) {
  Case c{.query_rows = 4, .key_rows = 4, .heads = 2, .kv_heads = 2, .width_qk = 4, .width_v = 4};
  c.bands = {{0, 4, 0, 4}};
  Inputs in(c, 9);
  Dense r = empty_result(c);
  const auto message = [&](const AttentionBlock& block, const AttentionState& state) -> std::string {
    try {
      attend(block, state, Update::overwrite, kStream);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "accepted";
  };
  const auto expect_refused = [](const std::string& text, const char* part) { EXPECT_NE(text.find(part), std::string::npos) << text; };
  EXPECT_EQ(message(block_of(c, in), {r.out, r.lse}), "accepted");
  Host<double> short_v(3, 2, 4), odd_heads(4, 3, 4);
  Host<float> single(4, 2, 4);
  expect_refused(message({in.q, in.k, short_v, c.bands, 1, 0}, {r.out, r.lse}), "v has shape");
  expect_refused(message({odd_heads, in.k, in.v, c.bands, 1, 0}, {r.out, r.lse}), "3 query heads");
  expect_refused(message({in.q, single, in.v, c.bands, 1, 0}, {r.out, r.lse}), "k is f32, expected f64");
  expect_refused(message(block_of(c, in), {single, r.lse}), "state.out is f32");
  expect_refused(message({in.q, in.k, in.v, c.bands, 1, -1}, {r.out, r.lse}), "softcap");
  c.bands = {{0, 5, 0, 4}};
  expect_refused(message(block_of(c, in), {r.out, r.lse}), "leaves the block");
}

}  // namespace
}  // namespace periplus::kernels
