#include <gtest/gtest.h>
#include <omp.h>

#include "kernels/linear_attention.h"
#include "tests/kernels/linear_cases.h"
#include "tests/kernels/values.h"

namespace periplus::kernels {
namespace {

using test::Host;

const Stream kStream;

struct ScanCase {
  Transition transition = Transition::identity;
  std::int64_t elements = 1, states = 1, heads = 1, width_qk = 1, width_v = 1, gap = 0;
  std::int64_t numbers() const { return transition_width(transition, width_qk); }
  std::int64_t state_width() const { return width_qk * width_v; }
};

/// T, or its transpose, as a full matrix.
double transition_at(const ScanCase& c, const Host<double>& elements, std::int64_t unit, std::int64_t head, std::int64_t i,
                     std::int64_t j) {
  if (c.transition == Transition::dense) return elements.get(unit, head, i * c.width_qk + j);
  if (i != j) return 0;
  if (c.transition == Transition::identity) return 1;
  return elements.get(unit, head, c.transition == Transition::scalar ? 0 : i);
}

/// One fold from its definition.
void fold_plainly(const ScanCase& c, const Host<double>& elements, const UnitFold& fold, bool reverse, Host<double>& states) {
  for (std::int64_t n = 0; n < fold.end - fold.begin; ++n) {
    const std::int64_t unit = reverse ? fold.end - 1 - n : fold.begin + n;
    const Host<double> before = states;
    for (std::int64_t head = 0; head < c.heads; ++head) {
      for (std::int64_t d = 0; d < c.width_qk; ++d) {
        for (std::int64_t e = 0; e < c.width_v; ++e) {
          double sum = elements.get(unit, head, c.numbers() + d * c.width_v + e);
          for (std::int64_t i = 0; i < c.width_qk; ++i) {
            const double factor = reverse ? transition_at(c, elements, unit, head, i, d) : transition_at(c, elements, unit, head, d, i);
            sum += factor * before.get(fold.target, head, i * c.width_v + e);
          }
          states(fold.target, head, d * c.width_v + e) = sum;
        }
      }
    }
  }
}

/// Folds of any range, empty ones too, many with a common end; targets in no order, and one row that none writes.
std::vector<UnitFold> random_folds(std::mt19937_64& random, const ScanCase& c) {
  std::vector<UnitFold> folds;
  for (std::int64_t target = 1; target < c.states; ++target) {
    UnitFold fold{target, test::pick(random, 0, std::min<std::int64_t>(c.elements, 2)), 0};
    fold.end = test::pick(random, fold.begin, c.elements);
    if (test::pick(random, 0, 2) == 0) fold.end = c.elements;
    folds.push_back(fold);
  }
  std::shuffle(folds.begin(), folds.end(), random);
  return folds;
}

template <class A>
void expect_folds(const ScanCase& c, std::uint64_t seed, double tolerance) {
  std::mt19937_64 random(seed);
  Host<A> elements(c.elements, c.heads, c.numbers() + c.state_width(), c.gap), start(c.states, c.heads, c.state_width(), c.gap);
  elements.randomize(random);
  start.randomize(random);
  for (std::int64_t unit = 0; unit < c.elements; ++unit) {  // transitions that keep the size of a state
    for (std::int64_t head = 0; head < c.heads; ++head) {
      for (std::int64_t i = 0; i < c.numbers(); ++i) {
        elements(unit, head, i) /= static_cast<A>(c.transition == Transition::dense ? 2 * std::sqrt(static_cast<double>(c.width_qk)) : 3);
      }
    }
  }
  const Host<double> wide = elements.widened();
  for (const bool reverse : {false, true}) {
    for (const Update update : {Update::overwrite, Update::accumulate}) {
      SCOPED_TRACE(testing::Message() << "reverse " << reverse << " accumulate " << (update == Update::accumulate));
      const std::vector<UnitFold> folds = random_folds(random, c);
      Host<A> got = start;
      unit_scan(elements, folds, c.transition, reverse, got, update, kStream);
      Host<double> wanted = start.widened();
      for (const UnitFold& fold : folds) {
        for (std::int64_t head = 0; update == Update::overwrite && head < c.heads; ++head) {
          for (std::int64_t i = 0; i < c.state_width(); ++i) wanted(fold.target, head, i) = 0;
        }
        fold_plainly(c, wide, fold, reverse, wanted);
      }
      EXPECT_LE(test::largest_difference(got, wanted), tolerance);
      EXPECT_TRUE(got.gaps_untouched());
    }
  }
}

class UnitScan : public testing::Test {
 protected:
  ~UnitScan() override {
    set_cpu_level(level_);
    omp_set_num_threads(threads_);
  }

 private:
  CpuLevel level_ = cpu_level();
  int threads_ = omp_get_max_threads();
};

TEST_F(UnitScan, FoldsElementsAsWrittenForEveryTransitionAndLevel) {
  std::mt19937_64 random(1);
  for (const CpuLevel level : {CpuLevel::scalar, CpuLevel::avx2, CpuLevel::avx512}) {
    if (level > best_cpu_level()) continue;
    set_cpu_level(level);
    for (int trial = 0; trial < 40; ++trial) {
      ScanCase c;
      c.transition = static_cast<Transition>(trial % 4);
      c.elements = test::pick_of(random, {0, 1, 3, 7});
      c.states = test::pick_of(random, {1, 3, 6});
      c.heads = test::pick(random, 1, 3);
      c.width_qk = test::pick_of(random, {1, 3, 8, 13, 16});
      c.width_v = test::pick_of(random, {1, 5, 16, 32, 37, 64});
      c.gap = test::pick_of(random, {0, 3});
      SCOPED_TRACE(testing::Message() << to_string(level) << " trial " << trial << " widths " << c.width_qk << "," << c.width_v);
      expect_folds<double>(c, random(), 1e-13);
      expect_folds<float>(c, random(), 2e-5);
      if (HasFailure()) return;
    }
  }
}

// However many folds lie in between, the sums are those of a fold alone, bit for bit.
TEST_F(UnitScan, GoingOnFromAnEarlierFoldChangesNoBit) {
  std::mt19937_64 random(2);
  for (const Transition transition : {Transition::identity, Transition::scalar, Transition::diagonal, Transition::dense}) {
    const ScanCase c{transition, 9, 9, 2, 8, 32, 0};
    Host<float> elements(c.elements, c.heads, c.numbers() + c.state_width()), together(c.states, c.heads, c.state_width());
    elements.randomize(random, 0.3);
    for (const bool reverse : {false, true}) {
      std::vector<UnitFold> folds;
      for (std::int64_t i = 0; i < 9; ++i) folds.push_back(reverse ? UnitFold{i, 9 - i, 9} : UnitFold{i, 0, i});
      unit_scan(elements, folds, transition, reverse, together, Update::overwrite, kStream);
      Host<float> alone = together;
      for (const UnitFold& fold : folds) {
        unit_scan(elements, std::vector<UnitFold>{fold}, transition, reverse, alone, Update::overwrite, kStream);
      }
      EXPECT_EQ(alone.raw(), together.raw());
    }
  }
}

TEST_F(UnitScan, SameBitsForAnyNumberOfThreads) {
  std::mt19937_64 random(3);
  const ScanCase c{Transition::dense, 6, 2, 5, 64, 64, 0};
  Host<float> elements(c.elements, c.heads, c.numbers() + c.state_width());
  elements.randomize(random, 0.1);
  const auto compute = [&](int threads) {
    omp_set_num_threads(threads);
    Host<float> states(c.states, c.heads, c.state_width());
    unit_scan(elements, std::vector<UnitFold>{{0, 0, 4}, {1, 0, 6}}, c.transition, false, states, Update::overwrite, kStream);
    return states;
  };
  const Host<float> one = compute(1);
  EXPECT_EQ(one.raw(), compute(2).raw());
  EXPECT_EQ(one.raw(), compute(3).raw());
}

TEST_F(UnitScan, RefusesWhatDoesNotFitInOneSentence) {
  Host<float> elements(3, 2, 4 + 4 * 5), states(2, 2, 4 * 5), narrow(2, 2, 19), few_heads(2, 1, 20);
  Host<double> wide(3, 2, 24);
  Host<bfloat16> half(2, 2, 20), half_elements(3, 2, 24);
  const auto scan = [&](ConstTensorView from, std::vector<UnitFold> folds, Transition transition, TensorView to) {
    return [=] { unit_scan(from, folds, transition, false, to, Update::overwrite, kStream); };
  };
  const auto diagonal = Transition::diagonal;
  scan(elements, {{1, 0, 3}, {0, 1, 1}}, diagonal, states)();
  test::expect_refused(scan(elements, {}, Transition::scalar, states), {"unit_scan", "width 24", "width 20", "4 numbers", "takes one"});
  test::expect_refused(scan(elements, {}, Transition::identity, states), {"takes none"});
  test::expect_refused(scan(elements, {}, diagonal, narrow), {"width 19", "one per row"});
  test::expect_refused(scan(states, {}, Transition::dense, elements), {"-4 numbers", "a square matrix"});
  test::expect_refused(scan(elements, {}, diagonal, few_heads), {"elements has shape [3, 2, 24], expected [3, 1, 24]"});
  test::expect_refused(scan(wide, {}, diagonal, states), {"elements is f64, expected f32"});
  test::expect_refused(scan(half_elements, {}, diagonal, half), {"unit_scan", "bf16"});
  test::expect_refused(scan(elements, {{0, 0, 4}}, diagonal, states), {"elements [0, 4)", "3 elements"});
  test::expect_refused(scan(elements, {{0, 2, 1}}, diagonal, states), {"elements [2, 1)"});
  test::expect_refused(scan(elements, {{2, 0, 1}}, diagonal, states), {"target 2", "2 states"});
  test::expect_refused(scan(elements, {{1, 0, 1}, {1, 0, 2}}, diagonal, states), {"two folds have target 1"});
}

}  // namespace
}  // namespace periplus::kernels
