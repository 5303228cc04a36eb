#include "kernels/mixer.h"
#include "tests/kernels/values.h"

namespace periplus::kernels {
namespace {

using namespace periplus::test;

double plain_softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }
double plain_sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TEST(LogsigmoidDecay, MatchesPlainFormulaAtAnySize) {
  for_each_storage_type([]<class T>() {
    auto x = random_values<T>(3000, 1, 5);
    x[0] = narrowed<T>(-1000);
    x[1] = narrowed<T>(1000);
    x[2] = narrowed<T>(0);
    std::vector<Sum<T>> decay(x.size());
    const Stream stream;
    logsigmoid_decay(view(x, {30, 100}), 16, view(decay, {30, 100}), stream);
    std::vector<double> expected;
    for (const double value : widened(x)) expected.push_back(-plain_softplus(-value) / 16);
    // Small decays must keep their relative accuracy: a state lives for as long as they say.
    expect_close(decay, expected, 8 * rounding<Sum<T>>(), 1e-30);
  });
}

TEST(LogsigmoidDecay, BackwardMatchesFiniteDifferences) {
  auto x = random_values<double>(40, 1, 3);
  const auto gradient = random_values<double>(40, 2);
  std::vector<double> dx(40);
  const Stream stream;
  logsigmoid_decay_backward(view(gradient, {40}), view(x, {40}), 16, view(dx, {40}), stream);
  expect_close(dx,
               numeric_gradient(x,
                                [&] {
                                  std::vector<double> decay(40);
                                  logsigmoid_decay(view(x, {40}), 16, view(decay, {40}), stream);
                                  return dot(decay, gradient);
                                }),
               1e-8);
}

template <class T>
struct SoftplusCase {
  std::int64_t rows, heads;
  std::vector<T> a, a_log, dt_bias, da;
  std::vector<Sum<T>> decay, step, ddecay, dstep, da_log, ddt_bias;
  Stream stream;

  SoftplusCase(std::int64_t row_count, std::int64_t head_count)
      : rows(row_count),
        heads(head_count),
        a(random_values<T>(rows * heads, 1, 3)),
        a_log(random_values<T>(heads, 2)),
        dt_bias(random_values<T>(heads, 3)),
        da(a.size()),
        decay(a.size()),
        step(a.size()),
        ddecay(random_values<Sum<T>>(rows * heads, 4)),
        dstep(random_values<Sum<T>>(rows * heads, 5)),
        da_log(a_log.size(), 1),
        ddt_bias(a_log.size(), 2) {}
  Extents shape() const { return {rows, heads}; }
  SoftplusDecay inputs() const { return {view(a, shape()), view(a_log, {heads}), view(dt_bias, {heads})}; }
  void forward() { softplus_decay(inputs(), view(decay, shape()), view(step, shape()), stream); }
  void backward(bool with_step = true) {
    softplus_decay_backward(inputs(), view(ddecay, shape()), with_step ? view(dstep, shape()) : TensorView(), view(da, shape()),
                            view(da_log, {heads}), view(ddt_bias, {heads}), stream);
  }
};

TEST(SoftplusDecay, MatchesPlainFormula) {
  for_each_storage_type([]<class T>() {
    SoftplusCase<T> c(7, 5);
    c.a[0] = narrowed<T>(-200);
    c.a[1] = narrowed<T>(200);
    c.forward();
    std::vector<double> steps, decays;
    for (std::size_t i = 0; i < c.a.size(); ++i) {
      const std::size_t h = i % 5;
      steps.push_back(plain_softplus(static_cast<double>(c.a[i]) + static_cast<double>(c.dt_bias[h])));
      decays.push_back(-std::exp(static_cast<double>(c.a_log[h])) * steps.back());
    }
    expect_close(c.step, steps, 16 * rounding<Sum<T>>());
    expect_close(c.decay, decays, 16 * rounding<Sum<T>>());
  });
}

TEST(SoftplusDecay, BackwardMatchesFiniteDifferencesAndAccumulates) {
  for (const bool with_step : {true, false}) {
    SoftplusCase<double> c(6, 3);
    c.backward(with_step);
    const auto objective = [&] {
      c.forward();
      return dot(c.decay, c.ddecay) + (with_step ? dot(c.step, c.dstep) : 0);
    };
    expect_close(c.da, numeric_gradient(c.a, objective), 1e-8);
    auto da_log = numeric_gradient(c.a_log, objective), ddt_bias = numeric_gradient(c.dt_bias, objective);
    for (double& value : da_log) value += 1;
    for (double& value : ddt_bias) value += 2;
    expect_close(c.da_log, da_log, 1e-7);
    expect_close(c.ddt_bias, ddt_bias, 1e-7);
  }
}

TEST(SoftplusDecay, NarrowTypesFollowF64) {
  const auto check = []<class T>() {
    SoftplusCase<T> narrow(700, 4);
    SoftplusCase<double> wide(700, 4);
    wide.a = widened(narrow.a);
    wide.a_log = widened(narrow.a_log);
    wide.dt_bias = widened(narrow.dt_bias);
    wide.ddecay = widened(narrow.ddecay);
    wide.dstep = widened(narrow.dstep);
    narrow.backward();
    wide.backward();
    expect_close(narrow.da, wide.da, rounding<T>() + 64 * rounding<float>());
    expect_close(narrow.da_log, wide.da_log, 1e-5, 100);
    expect_close(narrow.ddt_bias, wide.ddt_bias, 1e-5, 100);
  };
  check.operator()<float>();
  check.operator()<bfloat16>();
}

TEST(SigmoidBeta, MatchesPlainFormulaAndFiniteDifferences) {
  for (const double ceiling : {1.0, 2.0}) {
    auto b = random_values<double>(30, 1, 3);
    const auto gradient = random_values<double>(30, 2);
    std::vector<double> beta(30), db(30), expected;
    const Stream stream;
    const auto objective = [&] {
      sigmoid_beta(view(b, {30}), ceiling, view(beta, {30}), stream);
      return dot(beta, gradient);
    };
    objective();
    for (const double value : b) expected.push_back(ceiling * plain_sigmoid(value));
    expect_close(beta, expected, 1e-14);
    sigmoid_beta_backward(view(gradient, {30}), view(b, {30}), ceiling, view(db, {30}), stream);
    expect_close(db, numeric_gradient(b, objective), 1e-8);
  }
}

TEST(Decays, BitsDoNotDependOnThreads) {
  for_each_storage_type([]<class T>() {
    expect_same_on_all_teams([] {
      SoftplusCase<T> c(5001, 13);
      c.forward();
      c.backward();
      auto all = c.decay;
      all.insert(all.end(), c.da_log.begin(), c.da_log.end());
      all.insert(all.end(), c.ddt_bias.begin(), c.ddt_bias.end());
      return all;
    });
  });
}

TEST(Decays, GradientsMayReplaceTheirInputs) {
  for_each_storage_type([]<class T>() {
    SoftplusCase<T> apart(50, 7), aliased(50, 7);
    apart.backward();
    softplus_decay_backward(aliased.inputs(), view(aliased.ddecay, aliased.shape()), view(aliased.dstep, aliased.shape()),
                            view(aliased.a, aliased.shape()), view(aliased.da_log, {7}), view(aliased.ddt_bias, {7}), aliased.stream);
    EXPECT_TRUE(same_bits(apart.da, aliased.a));
    auto x = random_values<T>(350, 1, 3), gate = x, beta = x;
    std::vector<T> dx(x.size());
    logsigmoid_decay_backward(view(apart.ddecay, {350}), view(x, {350}), 16, view(dx, {350}), apart.stream);
    logsigmoid_decay_backward(view(apart.ddecay, {350}), view(gate, {350}), 16, view(gate, {350}), apart.stream);
    EXPECT_TRUE(same_bits(dx, gate));
    sigmoid_beta_backward(view(apart.ddecay, {350}), view(x, {350}), 2, view(dx, {350}), apart.stream);
    sigmoid_beta_backward(view(apart.ddecay, {350}), view(beta, {350}), 2, view(beta, {350}), apart.stream);
    EXPECT_TRUE(same_bits(dx, beta));
  });
}

TEST(Decays, ConstantsOfRetentionAndLightning) {
  const auto retention = retention_log_decays(3);
  EXPECT_NEAR(std::exp(retention[0]), 1 - 1.0 / 32, 1e-15);
  EXPECT_NEAR(std::exp(retention[2]), 1 - 1.0 / 128, 1e-15);
  const auto first = lightning_log_decays(8, 0, 5), last = lightning_log_decays(8, 4, 5);
  EXPECT_NEAR(first[0], -0.5, 1e-5);
  EXPECT_NEAR(first[7], -1.0 / 256, 1e-7);
  EXPECT_LT(last[0], 0);
  EXPECT_GT(last[0], -1e-5);
}

TEST(Decays, AcceptNoTokensAndRefuseShapesByName) {
  SoftplusCase<float> none(0, 4);
  none.forward();
  none.backward();
  EXPECT_EQ(none.da_log, std::vector<float>(4, 1));
  SoftplusCase<float> c(4, 3);
  expect_refused(
      [&] {
        softplus_decay({view(c.a, {4, 3}), view(c.a_log, {3}), view(c.dt_bias, {3})}, view(c.decay, {3, 4}), view(c.step, {4, 3}),
                       c.stream);
      },
      {"softplus_decay", "log_decay", "[3, 4]", "[4, 3]"});
  std::vector<bfloat16> narrow(12);
  expect_refused([&] { logsigmoid_decay(view(narrow, {12}), 16, view(narrow, {12}), c.stream); }, {"log_decay is bf16", "f32"});
}

}  // namespace
}  // namespace periplus::kernels
