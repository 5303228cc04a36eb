#pragma once

#include <cmath>
#include <sstream>
#include <string>

#include "tests/kernels/attention_pass.h"
#include "tests/kernels/tolerance.h"

/// A case, what the f64 reference makes of it, and the comparison: for kernels of any device.
namespace periplus::kernels::test {

inline double magnitude(const Host<double>& x) { return largest_difference(x, Host<double>(x.rows(), x.heads(), x.width())); }

/// Where a result came from decides how far it may be from f64.
struct Tolerance {
  double state, gradients;
  bool relative = false;  ///< Also for out: to 1 + the largest element.
};

/// Operands and an earlier state as a kernel gets them, and the results of the reference.
template <class S, class A = float>
struct Expectation {
  Expectation(const Case& of, std::uint64_t seed) : c(of), start(of) {
    start.randomize(seed);
    wanted = start.widened(c);
    wanted.forward(c);
    wanted_lse = wanted.lse;
    // Both get the same lse, rounded: backward is judged alone.
    lse = start.lse;
    for (std::int64_t row = 0; row < lse.rows(); ++row) {
      for (std::int64_t head = 0; head < lse.heads(); ++head) lse(row, head) = static_cast<A>(wanted.lse.get(row, head));
    }
    wanted.lse = lse.widened();
    wanted.backward(c);
  }

  Case c;
  Pass<S, A> start;
  Host<A> lse;  ///< For backward.
  Pass<double, double> wanted{Case{}};
  Host<double> wanted_lse;
};

template <class A>
void expect_near(const Host<A>& got, const Host<double>& wanted, double tolerance, const char* name) {
  EXPECT_LE(largest_difference(got, wanted), tolerance) << name;
}

/// forward(pass, case) and backward(pass, case) run the kernels under test.
template <class S, class A, class Forward, class Backward>
void expect_matches(const Expectation<S, A>& expected, const Tolerance& tolerance, const Forward& forward, const Backward& backward) {
  const Pass<double, double>& wanted = expected.wanted;
  Pass<S, A> got = expected.start;
  if (expected.c.update == Update::overwrite) {
    for (Host<A>* result : {&got.out, &got.lse, &got.dq, &got.dk, &got.dv}) result->fill(std::nan(""));
  }
  forward(got, expected.c);
  expect_near(got.out, wanted.out, tolerance.state * (tolerance.relative ? 1 + magnitude(wanted.out) : 1), "out");
  expect_near(got.lse, expected.wanted_lse, tolerance.state, "lse");
  EXPECT_TRUE(got.lse.gaps_untouched());
  got.lse = expected.lse;
  backward(got, expected.c);
  expect_near(got.dq, wanted.dq, tolerance.gradients * (1 + magnitude(wanted.dq)), "dq");
  expect_near(got.dk, wanted.dk, tolerance.gradients * (1 + magnitude(wanted.dk)), "dk");
  expect_near(got.dv, wanted.dv, tolerance.gradients * (1 + magnitude(wanted.dv)), "dv");
  for (Host<A>* result : {&got.out, &got.dq, &got.dk, &got.dv}) EXPECT_TRUE(result->gaps_untouched());
}

inline Case random_case(std::mt19937_64& random) {
  Case c;
  c.query_rows = pick_of(random, {1, 7, 16, 33, 64, 100, 129, 200});
  c.key_rows = pick(random, 0, 3) == 0 ? c.query_rows : pick_of(random, {1, 15, 48, 64, 65, 130, 300});
  c.kv_heads = pick(random, 1, 2);
  c.heads = c.kv_heads * pick_of(random, {1, 1, 2, 3, 4});
  const bool wide = pick(random, 0, 2) == 0;
  const auto width = [&] { return wide ? 8 * pick(random, 1, 32) : pick_of(random, {1, 3, 8, 16, 24, 40, 64}); };
  c.width_qk = width();
  c.width_v = pick(random, 0, 1) == 0 ? c.width_qk : width();
  if (wide) c.heads = c.kv_heads;
  c.bands = random_bands(random, c.query_rows, c.key_rows);
  c.scale = 1 / std::sqrt(static_cast<double>(c.width_qk));
  c.softcap = pick(random, 0, 4) == 0 ? 2.0 : 0;
  c.gap = pick_of(random, {0, 0, 5, 16});
  c.update = pick(random, 0, 1) == 0 ? Update::overwrite : Update::accumulate;
  return c;
}

inline std::string describe(const Case& c) {
  std::ostringstream text;
  text << c.query_rows << "x" << c.key_rows << " heads " << c.heads << "/" << c.kv_heads << " widths " << c.width_qk << "," << c.width_v
       << " bands " << c.bands.size() << " softcap " << c.softcap << " gap " << c.gap << " accumulate " << (c.update == Update::accumulate);
  return text.str();
}

}  // namespace periplus::kernels::test
