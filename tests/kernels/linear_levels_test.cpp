#include <limits>

#include <gtest/gtest.h>
#include <omp.h>

#include "tests/kernels/linear_cases.h"
#include "tests/kernels/tolerance.h"
#include "tests/kernels/values.h"

// The chunked kernels of every level this CPU has, against f64 tensors.
namespace periplus::kernels {
namespace {

using test::Decay;
using test::LinearCase;
using test::LinearPass;

const Stream kStream;

class LinearLevels : public testing::Test {
 protected:
  ~LinearLevels() override {
    set_cpu_level(level_);
    omp_set_num_threads(threads_);
  }

  /// visit() with each level in use.
  template <class Visit>
  void for_each_level(const Visit& visit) {
    for (const CpuLevel level : kCpuLevels) {
      if (level > best_cpu_level()) continue;
      SCOPED_TRACE(to_string(level));
      set_cpu_level(level);
      visit();
    }
  }

 private:
  CpuLevel level_ = cpu_level();
  int threads_ = omp_get_max_threads();
};

/// Widths that fill whole vectors and tiles, or part of the last.
LinearCase wide_case(std::mt19937_64& random) {
  LinearCase c = test::random_linear_case(random);
  c.width_qk = test::pick_of(random, {8, 24, 64, 96, 128});
  c.width_v = test::pick_of(random, {8, 24, 64, 96, 128});
  c.units = test::pick(random, 1, 2);
  c.heads = test::pick(random, 1, 2);
  c.scale = 1 / std::sqrt(static_cast<double>(c.width_qk));
  test::cut_into_runs(random, test::pick_of(random, {40, 64, 150}), c);
  return c;
}

TEST_F(LinearLevels, MatchF64) {
  for_each_level([] {
    std::mt19937_64 random(11);
    for (int trial = 0; trial < 30 && !testing::Test::HasFailure(); ++trial) {
      const LinearCase c = wide_case(random);
      SCOPED_TRACE(trial);
      // Two in three in bf16, which has kernels of its own.
      if (trial % 6 == 0) {
        test::expect_matches_f64<float>(c, random(), kStream);
      } else if (trial % 6 == 1) {
        test::expect_matches_f64<float16>(c, random(), kStream);
      } else {
        test::expect_matches_f64<bfloat16>(c, random(), kStream);
      }
    }
  });
}

/// One long run, with a ragged last chunk.
LinearCase long_case(std::int64_t chunks) {
  LinearCase c{.rows = 64 * (chunks - 1) + 7, .units = 1, .heads = 1, .width_qk = 8, .width_v = 8, .strength = 0.02};
  c.runs = {{2, c.rows - 2, 0, true, true}};
  return c;
}

// Long enough for several stretches of chunks between states that backward keeps, and for stretches longer than the shortest.
TEST_F(LinearLevels, MatchF64OverManyChunks) {
  for_each_level([] {
    test::for_each_rule(long_case(19), [](const LinearCase& c) {
      test::expect_matches_f64<float>(c, 12, kStream);
      test::expect_matches_f64<bfloat16>(c, 13, kStream);
    });
    LinearCase longer = long_case(76);
    longer.decay = Decay::scalar;
    test::expect_matches_f64<float>(longer, 14, kStream);
    test::expect_matches_f64<bfloat16>(longer, 15, kStream);
  });
}

// Whole tiles go by groups of chunks while decays are mild: groups as long as they may be, shorter ones, and chunks that are in none.
TEST_F(LinearLevels, MatchF64OverGroupsOfChunks) {
  for_each_level([] {
    for (const Decay decay : {Decay::none, Decay::scalar, Decay::diagonal}) {
      for (const double strength : {0.01, 0.1, 0.4}) {
        LinearCase c{.rows = 1200, .units = 1, .heads = 2, .width_qk = 64, .width_v = 32};
        c.decay = decay;
        c.strength = strength;
        c.scale = 0.125;
        c.runs = {{0, 33, 0, true, false}, {33, 1167, 0, false, true}};
        test::expect_matches_f64<bfloat16>(c, 19, kStream);
      }
    }
  });
}

TEST_F(LinearLevels, AnyScale) {
  for_each_level([] {
    LinearCase c{.rows = 100, .units = 1, .heads = 1, .width_qk = 24, .width_v = 16};
    c.runs = {{0, 100, 0, true, true}};
    for (const double scale : {-0.3, 3.0, 1e-12, 1e-38}) {
      c.scale = scale;
      test::for_each_rule(c, [](const LinearCase& rule) {
        test::expect_matches_f64<float>(rule, 22, kStream);
        test::expect_matches_f64<bfloat16>(rule, 23, kStream);
      });
    }
  });
}

// Tokens that forget everything, or nothing, beside tokens that forget a little.
TEST_F(LinearLevels, AnyDecay) {
  for_each_level([] {
    LinearCase c{.rows = 200, .units = 1, .heads = 2, .width_qk = 24, .width_v = 16};
    c.runs = {{0, 200, 0, true, true}};
    test::for_each_rule(c, [&](const LinearCase& rule) {
      if (rule.decay == Decay::none) return;
      LinearPass<float> got(rule);
      got.randomize(14);
      std::mt19937_64 random(15);
      got.log_decay.for_each([&](float& value) {
        value *= static_cast<float>(test::pick_of(random, {0, 1, 1, 1, 100, 1000}));
        if (test::pick(random, 0, 20) == 0) value = -std::numeric_limits<float>::infinity();
      });
      LinearPass<double> wanted = got.widened();
      got.forward(kStream);
      got.backward(kStream);
      wanted.forward(kStream);
      wanted.backward(kStream);
      std::vector<const test::Host<double>*> expected;
      wanted.for_each_result([&](const char*, const test::Host<double>& result) { expected.push_back(&result); });
      auto next = expected.begin();
      got.for_each_result([&](const char* name, test::Host<float>& result) {
        const double difference = test::largest_difference(result, **next++);
        EXPECT_LE(difference, 10 * test::kGradientTolerance) << name;
        EXPECT_FALSE(std::isnan(difference)) << name;
      });
    });
  });
}

// What a token has from itself cancels in the gradient of a decay, whatever the scale; under strong decay nothing else is left.
TEST_F(LinearLevels, StrongDecaysHaveAlmostNoGradient) {
  for_each_level([] {
    LinearCase c{.rows = 150, .units = 1, .heads = 2, .width_qk = 32, .width_v = 24, .scale = std::sqrt(1 / 32.0)};
    c.runs = {{0, 150, 0, false, false}};
    test::for_each_rule(c, [&](const LinearCase& rule) {
      if (rule.decay == Decay::none) return;
      LinearPass<bfloat16> pass(rule);
      pass.randomize(20);
      pass.log_decay.fill(-20);
      pass.backward(kStream);
      const test::Host<float> none(rule.rows, rule.heads, rule.decay_width());
      EXPECT_LE(test::largest_difference(pass.dlog_decay, none), 1e-5);
    });
  });
}

/// Root of the mean square of a - b.
template <class A, class B>
double distance(const test::Host<A>& a, const test::Host<B>& b) {
  double sum = 0;
  for (std::int64_t row = 0; row < a.rows(); ++row) {
    for (std::int64_t head = 0; head < a.heads(); ++head) {
      for (std::int64_t i = 0; i < a.width(); ++i) sum += std::pow(a.get(row, head, i) - b.get(row, head, i), 2);
    }
  }
  return std::sqrt(sum / static_cast<double>(a.rows() * a.heads() * a.width()));
}

// The gradient of a decay is what is left of far larger sums, of which most cancels: as exact as those of the operands, or nearly.
TEST_F(LinearLevels, GradientsOfMildDecaysKeepTheirDigits) {
  for_each_level([] {
    for (const Decay decay : {Decay::scalar, Decay::diagonal}) {
      LinearCase c{.rows = 690, .units = 1, .heads = 1, .width_qk = 96, .width_v = 96, .decay = decay, .scale = 0.1, .strength = 0.2};
      c.runs = {{0, 690, 0, false, false}};
      LinearPass<bfloat16> got(c);
      got.randomize(21);
      LinearPass<double> wanted = got.widened();
      got.backward(kStream);
      wanted.backward(kStream);
      const test::Host<double> none(c.rows, c.heads, c.decay_width()), no_key(c.rows, c.heads, c.width_qk);
      EXPECT_LE(distance(got.dk, wanted.dk), 4e-3 * distance(wanted.dk, no_key));
      EXPECT_LE(distance(got.dlog_decay, wanted.dlog_decay), 9e-3 * distance(wanted.dlog_decay, none)) << c.decay_width();
    }
  });
}

template <class S>
bool same_results(LinearPass<S>& a, LinearPass<S>& b) {
  return test::same_bits(a.out.raw(), b.out.raw()) && test::same_bits(a.elements.raw(), b.elements.raw()) &&
         test::same_bits(a.delements.raw(), b.delements.raw()) && test::same_bits(a.dq.raw(), b.dq.raw()) &&
         test::same_bits(a.dk.raw(), b.dk.raw()) && test::same_bits(a.dv.raw(), b.dv.raw()) &&
         test::same_bits(a.dlog_decay.raw(), b.dlog_decay.raw()) && test::same_bits(a.dbeta.raw(), b.dbeta.raw());
}

TEST_F(LinearLevels, SameBitsForAnyNumberOfThreadsAndEveryTime) {
  for_each_level([] {
    LinearCase c{.rows = 300, .units = 2, .heads = 3, .width_qk = 32, .width_v = 40};
    c.runs = {{0, 70, 0, true, false}, {70, 30, 0, false, true}, {100, 200, 1, true, true}};
    test::for_each_rule(c, [](const LinearCase& rule) {
      LinearPass<bfloat16> one(rule);
      one.randomize(16);
      LinearPass<bfloat16> other = one;
      omp_set_num_threads(1);
      one.forward(kStream);
      one.backward(kStream);
      for (const int threads : {1, 2, 5}) {
        omp_set_num_threads(threads);
        other.forward(kStream);
        other.backward(kStream);
        EXPECT_TRUE(same_results(one, other)) << threads << " threads";
      }
    });
  });
}

template <class T>
test::Host<T> turned(test::Host<T> rows) {
  test::Host<T> result = rows;
  for (std::int64_t row = 0; row < rows.rows(); ++row) {
    for (std::int64_t head = 0; head < rows.heads(); ++head) {
      for (std::int64_t i = 0; i < rows.width(); ++i) result(rows.rows() - 1 - row, head, i) = rows(row, head, i);
    }
  }
  return result;
}

/// A view by which the rows of `host` stand in falling order.
template <class T>
TensorView falling(test::Host<T>& host) {
  const TensorView view = host.view();
  if (view.size(2) == 0) return {};
  std::byte* last = view.bytes() + (view.size(0) - 1) * view.stride(0) * static_cast<std::int64_t>(sizeof(T));
  return {last, view.dtype(), view.shape(), {-view.stride(0), view.stride(1), 1}};
}

template <class S>
void expect_falling_rows_change_no_bit(const LinearCase& c) {
  LinearPass<S> rising(c);
  rising.randomize(18);
  LinearPass<S> other = rising;
  for (auto member : {&LinearPass<S>::q, &LinearPass<S>::k, &LinearPass<S>::v, &LinearPass<S>::dout})
    other.*member = turned(rising.*member);
  other.log_decay = turned(rising.log_decay), other.beta = turned(rising.beta);
  rising.forward(kStream);
  rising.backward(kStream);
  LinearBlock block{falling(other.q), falling(other.k), falling(other.v), falling(other.log_decay), {}, c.runs, c.scale};
  LinearGradients gradients{falling(other.dq), falling(other.dk), falling(other.dv), falling(other.dlog_decay)};
  if (c.delta_rule) block.beta = falling(other.beta), gradients.dbeta = falling(other.dbeta);
  unit_states(block, other.elements, kStream);
  unit_apply(block, other.incoming, falling(other.out), kStream);
  unit_states_backward(block, falling(other.dout), other.delements, kStream);
  unit_apply_backward(block, other.incoming, falling(other.dout), other.doutgoing, gradients, kStream);
  for (auto member : {&LinearPass<S>::out, &LinearPass<S>::dq, &LinearPass<S>::dk, &LinearPass<S>::dv}) {
    other.*member = turned(other.*member);
  }
  other.dlog_decay = turned(other.dlog_decay), other.dbeta = turned(other.dbeta);
  EXPECT_TRUE(same_results(rising, other));
}

// The mirrored pass of bidirectional attention: views with negative row strides.
TEST_F(LinearLevels, RowsMayStandInFallingOrder) {
  for_each_level([] {
    LinearCase c{.rows = 151, .units = 2, .heads = 2, .width_qk = 24, .width_v = 40, .gap = 5};
    c.runs = {{0, 70, 0, true, false}, {70, 10, 0, false, true}, {80, 71, 1, true, true}};
    test::for_each_rule(c, [](const LinearCase& rule) {
      expect_falling_rows_change_no_bit<float>(rule);
      expect_falling_rows_change_no_bit<bfloat16>(rule);
    });
  });
}

// One run is one piece of work: messages must move while it is under way.
TEST_F(LinearLevels, CallTheProgressHookInsideARun) {
  for_each_level([] {
    LinearCase c{.rows = 640, .units = 1, .heads = 1, .width_qk = 64, .width_v = 64};
    c.runs = {{0, c.rows, 0, true, true}};
    test::for_each_rule(c, [](const LinearCase& rule) {
      LinearPass<bfloat16> pass(rule);
      pass.randomize(17);
      int calls = 0;
      const Stream stream([&] { ++calls; });
      const auto expect_calls = [&](const auto& call) {
        calls = 0;
        call();
        EXPECT_GE(calls, 10) << "of 10 chunks";
      };
      expect_calls([&] { unit_states(pass.block(), pass.elements, stream); });
      expect_calls([&] { unit_states_backward(pass.block(), pass.dout, pass.delements, stream); });
      expect_calls([&] { unit_apply(pass.block(), pass.incoming, pass.out, stream); });
      expect_calls([&] { unit_apply_backward(pass.block(), pass.incoming, pass.dout, pass.doutgoing, pass.gradients(), stream); });
    });
  });
}

}  // namespace
}  // namespace periplus::kernels
