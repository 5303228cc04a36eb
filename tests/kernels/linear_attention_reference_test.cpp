#include <gtest/gtest.h>

#include "kernels/linear_attention.h"
#include "tests/kernels/linear_cases.h"

// The f64 recurrence: against the pairwise form, finite differences, and itself cut in other places.
namespace periplus::kernels {
namespace {

using test::Decay;
using test::for_each_rule;
using test::Host;
using test::largest_difference;
using test::LinearCase;
using test::LinearPass;

const Stream kStream;

/// Runs of every kind: continued, complete, of one token, left open; two units, and a row in no run.
LinearCase small_case() {
  LinearCase c{.rows = 12, .units = 2, .heads = 2, .width_qk = 3, .width_v = 4, .scale = 0.7};
  c.runs = {{0, 3, 0, true, false}, {3, 1, 0, false, false}, {4, 2, 0, false, true}, {7, 5, 1, true, true}};
  return c;
}

LinearPass<double> random_pass(const LinearCase& c, std::uint64_t seed) {
  LinearPass<double> pass(c);
  pass.randomize(seed);
  return pass;
}

double dot(const Host<double>& x, const Host<double>& y) {
  double sum = 0;
  for (std::int64_t row = 0; row < x.rows(); ++row) {
    for (std::int64_t head = 0; head < x.heads(); ++head) {
      for (std::int64_t i = 0; i < x.width(); ++i) sum += x.get(row, head, i) * y.get(row, head, i);
    }
  }
  return sum;
}

/// Sets one state of each unit to the fold of its own element onto `carried` where the document goes through the whole unit, and
/// else onto nothing.
Host<double> through_units(const LinearPass<double>& pass, Host<double>& elements, const Host<double>& carried, bool reverse) {
  const LinearCase& c = pass.c;
  Host<double> states(c.units, c.heads, c.state_width());
  std::vector<UnitFold> folds;
  for (const UnitRun& run : c.runs) {
    if (!(reverse ? run.enters : run.leaves)) continue;
    folds.push_back({run.unit, run.unit, run.unit + 1});
    for (std::int64_t head = 0; run.enters && run.leaves && head < c.heads; ++head) {
      for (std::int64_t i = 0; i < c.state_width(); ++i) states(run.unit, head, i) = carried.get(run.unit, head, i);
    }
  }
  unit_scan(elements, folds, c.transition(), reverse, states, Update::accumulate, kStream);
  return states;
}

Host<double> outgoing(LinearPass<double>& pass) { return through_units(pass, pass.elements, pass.incoming, false); }
Host<double> dincoming(LinearPass<double>& pass) { return through_units(pass, pass.delements, pass.doutgoing, true); }

double loss(LinearPass<double>& pass) {
  pass.forward(kStream);
  return dot(pass.out, pass.dout) + dot(outgoing(pass), pass.doutgoing);
}

TEST(LinearReference, GradientsMatchFiniteDifferences) {
  for_each_rule(small_case(), [](const LinearCase& c) {
    LinearPass<double> pass = random_pass(c, 1);
    pass.backward(kStream);
    const auto check = [&](const char* name, Host<double>& operand, const Host<double>& gradient) {
      Host<double> numeric(operand.rows(), operand.heads(), operand.width());
      for (std::int64_t row = 0; row < operand.rows(); ++row) {
        for (std::int64_t head = 0; head < operand.heads(); ++head) {
          for (std::int64_t i = 0; i < operand.width(); ++i) {
            double& x = operand(row, head, i);
            const double origin = x, step = 1e-5;
            x = origin + step;
            const double above = loss(pass);
            x = origin - step;
            numeric(row, head, i) = (above - loss(pass)) / (2 * step);
            x = origin;
          }
        }
      }
      EXPECT_LE(largest_difference(numeric, gradient), 1e-8) << name;
    };
    check("q", pass.q, pass.dq);
    check("k", pass.k, pass.dk);
    check("v", pass.v, pass.dv);
    check("incoming", pass.incoming, dincoming(pass));
    if (c.decay != Decay::none) check("log_decay", pass.log_decay, pass.dlog_decay);
    if (c.delta_rule) check("beta", pass.beta, pass.dbeta);
  });
}

/// Decay of channel d over the tokens (from, to] of a head.
double decay_over(const LinearPass<double>& pass, std::int64_t from, std::int64_t to, std::int64_t head, std::int64_t d) {
  double sum = 0;
  for (std::int64_t row = from + 1; row <= to && pass.c.decay != Decay::none; ++row) {
    sum += pass.log_decay.get(row, head, pass.c.decay == Decay::scalar ? 0 : d);
  }
  return std::exp(sum);
}

/// <x, k_from decayed until row>
double pair_weight(const LinearPass<double>& pass, const Host<double>& x, std::int64_t row, std::int64_t from, std::int64_t head) {
  double sum = 0;
  for (std::int64_t d = 0; d < pass.c.width_qk; ++d) {
    sum += x.get(row, head, d) * pass.k.get(from, head, d) * decay_over(pass, from, row, head, d);
  }
  return sum;
}

/// x times the incoming state decayed until row.
double carried(const LinearPass<double>& pass, const UnitRun& run, const Host<double>& x, std::int64_t row, std::int64_t head,
               std::int64_t e) {
  double sum = 0;
  for (std::int64_t d = 0; run.enters && d < pass.c.width_qk; ++d) {
    sum += x.get(row, head, d) * decay_over(pass, run.row0 - 1, row, head, d) * pass.incoming.get(run.unit, head, d * pass.c.width_v + e);
  }
  return sum;
}

// No state at all: out is a sum over pairs of tokens, and the news of the delta rule solve a triangular system.
TEST(LinearReference, OutputIsTheSumOverPairsOfTokens) {
  for_each_rule(small_case(), [](const LinearCase& c) {
    LinearPass<double> pass = random_pass(c, 2);
    pass.forward(kStream);
    Host<double> wanted(c.rows, c.heads, c.width_v), news = pass.v;
    for (const UnitRun& run : c.runs) {
      for (std::int64_t head = 0; head < c.heads; ++head) {
        for (std::int64_t e = 0; e < c.width_v; ++e) {
          for (std::int64_t row = run.row0; row < run.row0 + run.rows; ++row) {
            if (c.delta_rule) {
              double seen = carried(pass, run, pass.k, row, head, e);
              for (std::int64_t j = run.row0; j < row; ++j) seen += pair_weight(pass, pass.k, row, j, head) * news(j, head, e);
              news(row, head, e) = pass.beta(row, head) * (pass.v(row, head, e) - seen);
            }
            double sum = carried(pass, run, pass.q, row, head, e);
            for (std::int64_t j = run.row0; j <= row; ++j) sum += pair_weight(pass, pass.q, row, j, head) * news(j, head, e);
            wanted(row, head, e) = c.scale * sum;
          }
        }
      }
    }
    EXPECT_LE(largest_difference(pass.out, wanted), 1e-13);
  });
}

/// One document of `rows` tokens as a single run, and as units that begin at `cuts`.
struct Cut {
  LinearCase whole, units;
};
Cut cut_document(LinearCase c, const std::vector<std::int64_t>& cuts) {
  Cut cut{c, c};
  cut.whole.units = 1;
  cut.whole.runs = {{0, c.rows, 0, true, true}};
  cut.units.units = static_cast<std::int64_t>(cuts.size());
  cut.units.runs.clear();
  for (std::size_t i = 0; i < cuts.size(); ++i) {
    const std::int64_t end = i + 1 < cuts.size() ? cuts[i + 1] : c.rows;
    cut.units.runs.push_back({cuts[i], end - cuts[i], static_cast<std::int64_t>(i), true, true});
  }
  return cut;
}

/// The operands that tokens have, in a pass over the same rows cut otherwise.
LinearPass<double> recut(const LinearPass<double>& from, const LinearCase& c) {
  LinearPass<double> pass(c);
  pass.q = from.q;
  pass.k = from.k;
  pass.v = from.v;
  pass.dout = from.dout;
  pass.log_decay = from.log_decay;
  pass.beta = from.beta;
  return pass;
}

void copy_state(Host<double>& from, std::int64_t row, Host<double>& to, std::int64_t to_row) {
  for (std::int64_t head = 0; head < from.heads(); ++head) {
    for (std::int64_t i = 0; i < from.width(); ++i) to(to_row, head, i) = from(row, head, i);
  }
}

// Forward and backward, with states of both ends and all transitions: what ranks rely on.
TEST(LinearReference, FoldedElementsGiveTheStatesOfOneRun) {
  LinearCase c{.rows = 75, .heads = 2, .width_qk = 5, .width_v = 3, .scale = 0.5};
  for_each_rule(c, [](const LinearCase& rule) {
    const Cut cut = cut_document(rule, {0, 1, 9, 42, 60});
    LinearPass<double> whole = random_pass(cut.whole, 3);
    LinearPass<double> units = recut(whole, cut.units);
    whole.forward(kStream);
    whole.backward(kStream);

    // Only the first unit's incoming state and the last one's gradient are known; the others are folds onto those.
    std::vector<UnitFold> before, behind;
    const std::int64_t count = cut.units.units;
    for (std::int64_t unit = 0; unit < count; ++unit) {
      copy_state(whole.incoming, 0, units.incoming, unit);
      copy_state(whole.doutgoing, 0, units.doutgoing, unit);
      before.push_back({unit, 0, unit});
      behind.push_back({unit, unit + 1, count});
    }
    unit_states(units.block(), units.elements, kStream);
    unit_scan(units.elements, before, rule.transition(), false, units.incoming, Update::accumulate, kStream);
    unit_apply(units.block(), units.incoming, units.out, kStream);
    EXPECT_LE(largest_difference(units.out, whole.out), 1e-13);

    unit_states_backward(units.block(), units.dout, units.delements, kStream);
    unit_scan(units.delements, behind, rule.transition(), true, units.doutgoing, Update::accumulate, kStream);
    unit_apply_backward(units.block(), units.incoming, units.dout, units.doutgoing, units.gradients(), kStream);
    EXPECT_LE(largest_difference(units.dq, whole.dq), 1e-12);
    EXPECT_LE(largest_difference(units.dk, whole.dk), 1e-12);
    EXPECT_LE(largest_difference(units.dv, whole.dv), 1e-12);
    EXPECT_LE(largest_difference(units.dlog_decay, whole.dlog_decay), 1e-12);
    EXPECT_LE(largest_difference(units.dbeta, whole.dbeta), 1e-12);

    // The elements themselves compose to the whole's.
    Host<double> all(1, rule.heads, rule.state_width()), dall = all;
    const std::vector<UnitFold> fold = {{0, 0, count}};
    unit_scan(units.elements, fold, rule.transition(), false, all, Update::overwrite, kStream);
    unit_scan(units.delements, fold, rule.transition(), true, dall, Update::overwrite, kStream);
    const std::int64_t numbers = rule.transition_numbers();
    for (std::int64_t i = 0; i < rule.state_width(); ++i) {
      EXPECT_NEAR(all(0, 1, i), whole.elements(0, 1, numbers + i), 1e-12);
      EXPECT_NEAR(dall(0, 1, i), whole.delements(0, 1, numbers + i), 1e-12);
    }
  });
}

TEST(LinearReference, RunsDoNotSeeEachOther) {
  for_each_rule(small_case(), [](const LinearCase& c) {
    LinearPass<double> together = random_pass(c, 4), apart = together;
    together.forward(kStream);
    together.backward(kStream);
    for (const UnitRun& run : c.runs) {
      apart.c.runs = {run};
      unit_apply(apart.block(), apart.incoming, apart.out, kStream);
      unit_apply_backward(apart.block(), apart.incoming, apart.dout, apart.doutgoing, apart.gradients(), kStream);
      const std::int64_t width = apart.elements.width(), unit = run.unit;
      unit_states(apart.block(), apart.elements, kStream);
      unit_states_backward(apart.block(), apart.dout, apart.delements, kStream);
      for (std::int64_t i = 0; i < width; ++i) {
        if (run.leaves) {
          EXPECT_EQ(apart.elements(unit, 0, i), together.elements(unit, 0, i));
        }
        if (run.enters) {
          EXPECT_EQ(apart.delements(unit, 0, i), together.delements(unit, 0, i));
        }
      }
    }
    EXPECT_EQ(apart.out.raw(), together.out.raw());
    EXPECT_EQ(apart.dq.raw(), together.dq.raw());
    EXPECT_EQ(apart.dk.raw(), together.dk.raw());
    EXPECT_EQ(apart.dv.raw(), together.dv.raw());
    EXPECT_EQ(apart.dlog_decay.raw(), together.dlog_decay.raw());
    EXPECT_EQ(apart.dbeta.raw(), together.dbeta.raw());
    for (const UnitRun& run : c.runs) {
      for (std::int64_t i = 0; !run.enters && i < c.decay_width(); ++i) EXPECT_EQ(together.dlog_decay(run.row0, 0, i), 0);
    }
  });
}

TEST(LinearReference, UnitsWithoutARunHaveTheNeutralElement) {
  LinearCase c = small_case();
  c.runs.clear();
  for_each_rule(c, [](const LinearCase& rule) {
    LinearPass<double> pass = random_pass(rule, 5);
    pass.elements.fill(7);
    pass.delements.fill(7);
    pass.forward(kStream);
    pass.backward(kStream);
    Host<double> states(1, rule.heads, rule.state_width());
    states.fill(2);
    const Host<double> before = states;
    for (Host<double>* elements : {&pass.elements, &pass.delements}) {
      unit_scan(*elements, std::vector<UnitFold>{{0, 0, 2}}, rule.transition(), elements == &pass.delements, states, Update::accumulate,
                kStream);
      EXPECT_EQ(states.raw(), before.raw());
    }
    EXPECT_EQ(dot(pass.out, pass.out) + dot(pass.dq, pass.dq), 0);
  });
}

// algorithms.md 5.3: the part of dlog_decay that later ranks add is the row sum of outgoing state times its gradient.
TEST(LinearReference, DecayGradientsFollowFromThoseOfQueriesAndKeys) {
  LinearCase c{.rows = 9, .heads = 1, .width_qk = 4, .width_v = 3, .decay = Decay::diagonal, .scale = 0.5};
  c.runs = {{0, 9, 0, true, true}};
  LinearPass<double> pass = random_pass(c, 6);
  pass.forward(kStream);
  pass.backward(kStream);
  const Host<double> out_state = outgoing(pass);
  for (std::int64_t d = 0; d < c.width_qk; ++d) {
    double sum = 0;
    for (std::int64_t e = 0; e < c.width_v; ++e) {
      sum += out_state.get(0, 0, d * c.width_v + e) * pass.doutgoing(0, 0, d * c.width_v + e);
    }
    for (std::int64_t row = c.rows - 1; row >= 0; --row) {
      sum += pass.q(row, 0, d) * pass.dq(row, 0, d) - pass.k(row, 0, d) * pass.dk(row, 0, d);
      EXPECT_NEAR(pass.dlog_decay(row, 0, d), sum, 1e-12) << row;
    }
  }
}

TEST(LinearReference, VanishingDecayCutsAndStaysFinite) {
  for (const double log_decay : {-1e4, test::kMinusInfinity}) {
    for_each_rule(small_case(), [&](const LinearCase& c) {
      if (c.decay == Decay::none) return;
      LinearPass<double> pass = random_pass(c, 7);
      pass.log_decay.fill(log_decay);
      pass.forward(kStream);
      pass.backward(kStream);
      pass.for_each_result([](const char* name, const Host<double>& result) {
        EXPECT_LT(largest_difference(result, Host<double>(result.rows(), result.heads(), result.width())), 1e3) << name;
      });
      // Each token sees itself alone: out = scale <q,k> v, or beta of it.
      double score = 0;
      for (std::int64_t d = 0; d < c.width_qk; ++d) score += pass.q(8, 1, d) * pass.k(8, 1, d);
      EXPECT_NEAR(pass.out(8, 1, 2), c.scale * score * (c.delta_rule ? pass.beta(8, 1) : 1) * pass.v(8, 1, 2), 1e-14);
    });
  }
}

TEST(LinearReference, BetaZeroOnlyDecays) {
  for (const Decay decay : {Decay::none, Decay::scalar, Decay::diagonal}) {
    LinearCase c{.rows = 6, .heads = 2, .width_qk = 3, .width_v = 2, .decay = decay, .delta_rule = true};
    c.runs = {{0, 6, 0, true, true}};
    LinearPass<double> pass = random_pass(c, 8);
    pass.beta.fill(0);
    pass.forward(kStream);
    const Host<double> state = outgoing(pass);
    for (std::int64_t i = 0; i < c.state_width(); ++i) {
      EXPECT_NEAR(state.get(0, 1, i), decay_over(pass, -1, 5, 1, i / c.width_v) * pass.incoming(0, 1, i), 1e-15);
    }
  }
}

TEST(LinearReference, DeltaRuleReadsBackWhatItWroteLastUnderEachKey) {
  LinearCase c{.rows = 8, .heads = 1, .width_qk = 4, .width_v = 3, .delta_rule = true};
  c.runs = {{0, 8, 0, true, true}};
  LinearPass<double> pass = random_pass(c, 9);
  pass.beta.fill(1);
  pass.k.fill(0);
  for (std::int64_t row = 0; row < 8; ++row) {  // two orthogonal frames of length 1: each key comes twice
    const double angle = 0.3;
    const std::int64_t key = row % 4, pair = key / 2 * 2;
    pass.k(row, 0, pair) = key % 2 == 0 ? std::cos(angle) : -std::sin(angle);
    pass.k(row, 0, pair + 1) = key % 2 == 0 ? std::sin(angle) : std::cos(angle);
  }
  pass.q = pass.k;
  pass.forward(kStream);
  EXPECT_LE(largest_difference(pass.out, pass.v), 1e-14);
  // All four keys were overwritten: nothing of the incoming state is left.
  for (std::int64_t i = 0; i < c.transition_numbers(); ++i) EXPECT_NEAR(pass.elements(0, 0, i), 0, 1e-15);
}

TEST(LinearReference, SharedKeysEqualRepeatedKeys) {
  LinearCase c = small_case();
  c.shared_keys = true;
  c.gap = 3;
  for_each_rule(c, [](const LinearCase& rule) {
    LinearPass<double> shared = random_pass(rule, 10);
    LinearCase repeated_case = rule;
    repeated_case.shared_keys = false;
    LinearPass<double> repeated = recut(shared, repeated_case);
    repeated.incoming = shared.incoming;
    repeated.doutgoing = shared.doutgoing;
    repeated.q = Host<double>(rule.rows, rule.heads, rule.width_qk);
    repeated.k = repeated.q;
    for (std::int64_t row = 0; row < rule.rows; ++row) {
      for (std::int64_t head = 0; head < rule.heads; ++head) {
        for (std::int64_t d = 0; d < rule.width_qk; ++d) {
          repeated.q(row, head, d) = shared.q(row, 0, d);
          repeated.k(row, head, d) = shared.k(row, 0, d);
        }
      }
    }
    for (LinearPass<double>* pass : {&shared, &repeated}) {
      pass->forward(kStream);
      pass->backward(kStream);
    }
    EXPECT_EQ(largest_difference(shared.out, repeated.out), 0);
    EXPECT_EQ(largest_difference(shared.elements, repeated.elements), 0);
    EXPECT_EQ(largest_difference(shared.delements, repeated.delements), 0);
    EXPECT_EQ(largest_difference(shared.dq, repeated.dq), 0);
    EXPECT_EQ(largest_difference(shared.dk, repeated.dk), 0);
    EXPECT_TRUE(shared.dq.gaps_untouched() && shared.out.gaps_untouched() && shared.elements.gaps_untouched());
  });
}

}  // namespace
}  // namespace periplus::kernels
