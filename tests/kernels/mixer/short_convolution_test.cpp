#include "kernels/mixer.h"
#include "tests/kernels/values.h"

namespace periplus::kernels {
namespace {

using namespace periplus::test;

template <class T>
struct Case {
  std::int64_t rows, channels, taps, units, columns;
  std::vector<UnitRun> runs;
  std::vector<T> x, weight, halo, dy, y, dx;
  std::vector<Sum<T>> dhalo, dweight;
  Stream stream;

  Case(std::vector<UnitRun> unit_runs, std::int64_t channel_count, std::int64_t tap_count, bool bias = false)
      : rows(unit_runs.empty() ? 0 : unit_runs.back().row0 + unit_runs.back().rows),
        channels(channel_count),
        taps(tap_count),
        units(unit_runs.empty() ? 1 : unit_runs.back().unit + 1),
        columns(taps + (bias ? 1 : 0)),
        runs(std::move(unit_runs)),
        x(random_values<T>(rows * channels, 1)),
        weight(random_values<T>(channels * columns, 2)),
        halo(random_values<T>(units * (taps - 1) * channels, 3)),
        dy(random_values<T>(rows * channels, 4)),
        y(x.size()),
        dx(x.size()),
        dhalo(halo.size(), 9),
        dweight(weight.size(), 1) {}
  Extents shape() const { return {rows, channels}; }
  Extents halo_shape() const { return {units, taps - 1, channels}; }
  ShortConvolution inputs() const { return {view(x, shape()), view(weight, {channels, columns}), view(halo, halo_shape()), runs}; }
  void forward() { short_convolution(inputs(), view(y, shape()), stream); }
  void backward() {
    short_convolution_backward(inputs(), view(dy, shape()), view(dx, shape()), view(dhalo, halo_shape()),
                               view(dweight, {channels, columns}), stream);
  }
};

/// Documents of one token, runs shorter than the reach, a run that enters, one that is longer than a piece.
std::vector<UnitRun> mixed_runs() {
  return {{.row0 = 0, .rows = 2, .unit = 0, .enters = true},
          {.row0 = 2, .rows = 1, .unit = 0},
          {.row0 = 3, .rows = 140, .unit = 0, .leaves = true},
          {.row0 = 143, .rows = 9, .unit = 1, .enters = true, .leaves = true}};
}

/// Token by token, from the formula.
std::vector<double> plain_forward(const Case<double>& c) {
  std::vector<double> y(c.x.size());
  for (const UnitRun& run : c.runs) {
    for (std::int64_t i = 0; i < run.rows; ++i) {
      for (std::int64_t channel = 0; channel < c.channels; ++channel) {
        double sum = c.columns > c.taps ? c.weight[static_cast<std::size_t>(channel * c.columns + c.taps)] : 0;
        for (std::int64_t back = 0; back < c.taps; ++back) {  // tokens ago
          double value = 0;
          if (i >= back) {
            value = c.x[static_cast<std::size_t>((run.row0 + i - back) * c.channels + channel)];
          } else if (run.enters) {
            const std::int64_t row = c.taps - 1 + i - back;
            value = c.halo[static_cast<std::size_t>((run.unit * (c.taps - 1) + row) * c.channels + channel)];
          }
          sum += c.weight[static_cast<std::size_t>(channel * c.columns + c.taps - 1 - back)] * value;
        }
        y[static_cast<std::size_t>((run.row0 + i) * c.channels + channel)] = sum / (1 + std::exp(-sum));
      }
    }
  }
  return y;
}

TEST(ShortConvolution, MatchesPlainFormula) {
  for (const std::int64_t taps : {1, 2, 4, 7}) {
    for (const bool bias : {false, true}) {
      Case<double> c(mixed_runs(), 131, taps, bias);
      c.forward();
      expect_close(c.y, plain_forward(c), 1e-14);
    }
  }
}

TEST(ShortConvolution, BackwardMatchesFiniteDifferencesAndAccumulatesWeights) {
  for (const auto& [taps, bias] : {std::pair{1, false}, {1, true}, {4, false}, {4, true}}) {
    Case<double> c(mixed_runs(), 3, taps, bias);
    c.backward();
    const auto objective = [&] { return dot(plain_forward(c), c.dy); };
    expect_close(c.dx, numeric_gradient(c.x, objective), 1e-8);
    expect_close(c.dhalo, numeric_gradient(c.halo, objective), 1e-8);
    auto dweight = numeric_gradient(c.weight, objective);
    for (double& value : dweight) value += 1;
    expect_close(c.dweight, dweight, 1e-7);
  }
}

TEST(ShortConvolution, UnitsThatNoRunEntersGetNoGradient) {
  auto runs = mixed_runs();
  runs[3].enters = false;
  Case<double> c(runs, 3, 4);
  c.backward();
  for (std::size_t i = 9; i < 18; ++i) EXPECT_EQ(c.dhalo[i], 0);
}

TEST(ShortConvolution, NarrowTypesFollowF64) {
  const auto check = []<class T>() {
    Case<T> narrow(mixed_runs(), 70, 4, true);
    Case<double> wide(mixed_runs(), 70, 4, true);
    wide.x = widened(narrow.x);
    wide.weight = widened(narrow.weight);
    wide.halo = widened(narrow.halo);
    wide.dy = widened(narrow.dy);
    narrow.forward();
    narrow.backward();
    wide.forward();
    wide.backward();
    expect_close(narrow.y, wide.y, rounding<T>() + 64 * rounding<float>());
    expect_close(narrow.dx, wide.dx, rounding<T>() + 64 * rounding<float>());
    expect_close(narrow.dhalo, wide.dhalo, 64 * rounding<float>());
    expect_close(narrow.dweight, wide.dweight, 1e-5, 30);
  };
  check.operator()<float>();
  check.operator()<bfloat16>();
}

TEST(ShortConvolution, BitsDoNotDependOnThreads) {
  for_each_storage_type([]<class T>() {
    expect_same_on_all_teams([] {
      Case<T> c({{.row0 = 0, .rows = 1500, .unit = 0, .enters = true, .leaves = true}}, 300, 4);
      c.forward();
      c.backward();
      std::vector<Sum<T>> all = c.dweight;
      all.insert(all.end(), c.dhalo.begin(), c.dhalo.end());
      for (const T value : c.y) all.push_back(static_cast<Sum<T>>(value));
      for (const T value : c.dx) all.push_back(static_cast<Sum<T>>(value));
      return all;
    });
  });
}

TEST(ShortConvolution, AcceptsNoTokensAndRefusesRunsOutside) {
  Case<float> none({}, 8, 4);
  none.forward();
  none.backward();
  Case<float> c(mixed_runs(), 8, 4);
  c.runs[3].rows = 10;
  expect_refused([&] { c.forward(); }, {"short_convolution", "rows 143 to 153", "[152, 8]"});
  c.runs[3] = {.row0 = 143, .rows = 9, .unit = 2};
  expect_refused([&] { c.backward(); }, {"unit 2", "halo"});
  c.columns = 6, c.weight.resize(48);
  expect_refused([&] { c.forward(); }, {"weight is [8, 6]", "4 taps", "bias"});
}

}  // namespace
}  // namespace periplus::kernels
