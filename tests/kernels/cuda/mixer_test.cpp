// The token-parallel parts of linear mixers on a device against those of the CPU, twice for equal bits.
#include "kernels/mixer.h"

#include <functional>

#include "tests/kernels/cuda/there.h"
#include "tests/parallel/execute/cuda_test.h"

namespace periplus::kernels {
namespace {

class MixerOnCuda : public test::OnCuda {};

/// One operand of a call: filled at random, kept on the host or on the device.
template <class T>
struct Operand {
  Extents shape;
  std::vector<T> values;
  Operand(const Extents& extents, std::uint64_t seed) : shape(extents), values(random_values<T>(extents.product(), seed)) {}
};

/// Runs call(views..., stream) once on the CPU and twice on the device; all operands end up alike there and here, within
/// `tolerance` of their rounding and terms of size `size`.
template <class Call, class... T>
void expect_same_as_cpu(const Call& call, double tolerance, double size, std::int64_t skip, const Operand<T>&... operands) {
  const Stream stream = periplus::cuda::make_stream(0);
  const auto on_device = [&] {
    const std::tuple<There<T>...> there{There<T>(operands.values, stream, skip)...};
    return std::apply(
        [&](const auto&... each) {
          call(each.view(operands.shape)..., stream);
          return std::tuple{each.back()...};
        },
        there);
  };
  const auto first = on_device(), second = on_device();
  std::tuple<std::vector<T>...> here{operands.values...};
  std::apply([&](auto&... each) { call(view(each, operands.shape)..., Stream()); }, here);
  [&]<std::size_t... i>(std::index_sequence<i...>) {
    const auto compare = [&](const auto& one, const auto& two, const auto& cpu) { expect_agreement(one, two, cpu, tolerance, size); };
    (compare(std::get<i>(first), std::get<i>(second), std::get<i>(here)), ...);
  }
  (std::index_sequence_for<T...>());
}

TEST_F(MixerOnCuda, LogsigmoidDecay) {
  for_each_case([]<class T>(const Size& s) {
    const Extents shape{s.rows, s.columns};
    expect_same_as_cpu([](TensorView x, TensorView decay, const Stream& on) { logsigmoid_decay(x, 16, decay, on); }, kTolerance<T>, 1,
                       s.skip, Operand<T>(shape, 1), Operand<Sum<T>>(shape, 2));
    expect_same_as_cpu([](TensorView d, TensorView x, TensorView dx, const Stream& on) { logsigmoid_decay_backward(d, x, 16, dx, on); },
                       kTolerance<T>, 1, s.skip, Operand<Sum<T>>(shape, 1), Operand<T>(shape, 2), Operand<T>(shape, 3));
    expect_same_as_cpu([](TensorView d, TensorView x, const Stream& on) { logsigmoid_decay_backward(d, x, 16, x, on); }, kTolerance<T>, 1,
                       s.skip, Operand<Sum<T>>(shape, 1), Operand<T>(shape, 2));
  });
}

TEST_F(MixerOnCuda, SigmoidBeta) {
  for_each_case([]<class T>(const Size& s) {
    const Extents shape{s.rows, s.columns};
    expect_same_as_cpu([](TensorView b, TensorView beta, const Stream& on) { sigmoid_beta(b, 2, beta, on); }, kTolerance<T>, 1, s.skip,
                       Operand<T>(shape, 1), Operand<Sum<T>>(shape, 2));
    expect_same_as_cpu([](TensorView d, TensorView b, const Stream& on) { sigmoid_beta_backward(d, b, 2, b, on); }, kTolerance<T>, 1,
                       s.skip, Operand<Sum<T>>(shape, 1), Operand<T>(shape, 2));
  });
}

TEST_F(MixerOnCuda, SoftplusDecay) {
  for_each_case([]<class T>(const Size& s) {
    if (s.columns > 200) return;
    const Extents shape{s.rows, s.columns}, heads{s.columns};
    using A = Sum<T>;
    expect_same_as_cpu(
        [](TensorView a, TensorView a_log, TensorView bias, TensorView decay, TensorView step, const Stream& on) {
          softplus_decay({a, a_log, bias}, decay, step, on);
        },
        kTolerance<T>, 1, s.skip, Operand<T>(shape, 1), Operand<T>(heads, 2), Operand<T>(heads, 3), Operand<A>(shape, 4),
        Operand<A>(shape, 5));
    const double size = 4 * std::sqrt(static_cast<double>(s.rows) + 1);
    expect_same_as_cpu(
        [](TensorView a, TensorView a_log, TensorView bias, TensorView ddecay, TensorView dstep, TensorView da_log, TensorView dbias,
           const Stream& on) {
          softplus_decay_backward({a, a_log, bias}, ddecay, dstep, a, da_log, dbias, on);
        },
        kTolerance<T>, size, s.skip, Operand<T>(shape, 1), Operand<T>(heads, 2), Operand<T>(heads, 3), Operand<A>(shape, 4),
        Operand<A>(shape, 5), Operand<A>(heads, 6), Operand<A>(heads, 7));
    expect_same_as_cpu(
        [](TensorView a, TensorView a_log, TensorView bias, TensorView ddecay, TensorView da, TensorView da_log, TensorView dbias,
           const Stream& on) {
          softplus_decay_backward({a, a_log, bias}, ddecay, {}, da, da_log, dbias, on);
        },
        kTolerance<T>, size, s.skip, Operand<T>(shape, 1), Operand<T>(heads, 2), Operand<T>(heads, 3), Operand<A>(shape, 4),
        Operand<T>(shape, 5), Operand<A>(heads, 6), Operand<A>(heads, 7));
  });
}

/// Three heads of `columns` channels, side by side with as many that are not touched.
TensorView heads_of(TensorView rows) {
  const std::int64_t width = rows.size(1) / 6;
  return {rows.bytes(), rows.dtype(), {rows.size(0), 3, width}, {6 * width, 2 * width, 1}};
}

TEST_F(MixerOnCuda, OperationsByHead) {
  for_each_case([]<class T>(const Size& s) {
    if (s.columns > 200) return;
    using A = Sum<T>;
    const Extents wide{s.rows, 6 * s.columns}, factors{s.rows, 3};
    const double size = 2 * std::sqrt(static_cast<double>(s.columns)), tolerance = kTolerance<T>;
    const Operand<T> x(wide, 1), y(wide, 2), z(wide, 3), skip({3}, 4);
    const Operand<A> factor(factors, 5), dfactor(factors, 6), dskip({3}, 7);
    expect_same_as_cpu([](TensorView a, TensorView b, const Stream& on) { l2_norm(heads_of(a), 1e-6, heads_of(b), on); }, tolerance, 1,
                       s.skip, x, y);
    // A head of one channel has no direction that its norm could turn: all of its gradient cancels.
    expect_same_as_cpu([](TensorView d, TensorView a, TensorView b,
                          const Stream& on) { l2_norm_backward(heads_of(d), heads_of(a), 1e-6, heads_of(b), on); },
                       tolerance, s.columns < 8 ? 1e3 : size, s.skip, x, y, z);
    expect_same_as_cpu([](TensorView a, TensorView f, TensorView b, const Stream& on) { scale_heads(heads_of(a), f, heads_of(b), on); },
                       tolerance, 1, s.skip, x, factor, y);
    expect_same_as_cpu([](TensorView d, TensorView a, TensorView f, TensorView b, TensorView df,
                          const Stream& on) { scale_heads_backward(heads_of(d), heads_of(a), f, heads_of(b), df, on); },
                       tolerance, size, s.skip, x, y, factor, z, dfactor);
    expect_same_as_cpu([](TensorView a, TensorView f, TensorView b, const Stream& on) { add_skip(heads_of(a), f, heads_of(b), on); },
                       tolerance, 2, s.skip, x, skip, y);
    expect_same_as_cpu([](TensorView d, TensorView a, TensorView f, TensorView b, TensorView df,
                          const Stream& on) { add_skip_backward(heads_of(d), heads_of(a), f, heads_of(b), df, on); },
                       tolerance, size * std::sqrt(static_cast<double>(s.rows) + 1), s.skip, x, y, skip, z, dskip);
    expect_same_as_cpu(
        [](TensorView a, TensorView b, const Stream& on) {
          sum_heads(heads_of(a), {b.bytes(), b.dtype(), {b.size(0), 1, b.size(1)}}, on);
        },
        tolerance, 4, s.skip, x, Operand<T>({s.rows, s.columns}, 8));
  });
}

/// Documents of one token, runs shorter than the reach, a run that enters, one that is longer than a piece.
constexpr UnitRun kRuns[] = {{.row0 = 0, .rows = 2, .unit = 0, .enters = true},
                             {.row0 = 2, .rows = 1, .unit = 0},
                             {.row0 = 3, .rows = 140, .unit = 0, .leaves = true},
                             {.row0 = 143, .rows = 9, .unit = 1, .enters = true, .leaves = true}};

TEST_F(MixerOnCuda, ShortConvolution) {
  for_each_storage_type([]<class T>() {
    using A = Sum<T>;
    for (const std::int64_t taps : {1, 2, 4, 7, 64}) {
      for (const std::int64_t channels : {1, 31, 131}) {
        SCOPED_TRACE(testing::Message() << taps << " taps, " << channels << " channels");
        const bool bias = channels == 31;
        const Extents rows{152, channels}, weights{channels, taps + (bias ? 1 : 0)}, halos{2, taps - 1, channels};
        const double size = static_cast<double>(taps);
        expect_same_as_cpu(
            [](TensorView x, TensorView w, TensorView halo, TensorView y, const Stream& on) {
              short_convolution({x, w, halo, kRuns}, y, on);
            },
            kTolerance<T>, size, 0, Operand<T>(rows, 1), Operand<T>(weights, 2), Operand<T>(halos, 3), Operand<T>(rows, 4));
        expect_same_as_cpu(
            [](TensorView x, TensorView w, TensorView halo, TensorView dy, TensorView dx, TensorView dhalo, TensorView dw,
               const Stream& on) {
              short_convolution_backward({x, w, halo, kRuns}, dy, dx, dhalo, dw, on);
            },
            kTolerance<T>, 16 * size, 1, Operand<T>(rows, 1), Operand<T>(weights, 2), Operand<T>(halos, 3), Operand<T>(rows, 4),
            Operand<T>(rows, 5), Operand<A>(halos, 6), Operand<A>(weights, 7));
      }
    }
  });
}

TEST_F(MixerOnCuda, TooManyTapsAreRefused) {
  const Stream stream = periplus::cuda::make_stream(0);
  const std::vector<float> x(1), weight(65), halo(64);
  const There<float> x_there(x, stream), weight_there(weight, stream), halo_there(halo, stream);
  const UnitRun run{.row0 = 0, .rows = 1};
  expect_refused(
      [&] {
        short_convolution({x_there.view({1, 1}), weight_there.view({1, 65}), halo_there.view({1, 64, 1}), {&run, 1}}, x_there.view({1, 1}),
                          stream);
      },
      {"65 taps", "at most 64"});
}

}  // namespace
}  // namespace periplus::kernels
