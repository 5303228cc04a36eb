// What stands around the recurrence of linear attention, on a device: each function against the CPU, and bidirectional and normalised
// attention as a whole against their definition. Also compiled with the kernels for the CPU (tests/kernels/cuda_emulation).
#include "kernels/linear_tokens.h"

#include <cmath>
#include <tuple>

#include "kernels/reference/pairwise_attention.h"
#include "tests/kernels/cuda/workbench.h"
#include "tests/kernels/linear_cases.h"

namespace periplus::kernels {
namespace {

using test::CudaTest;
using test::Host;
using test::Workbench;

struct CudaLinearTokens : CudaTest {};

template <class S>
using Sum = std::conditional_t<std::is_same_v<S, double>, double, float>;

/// Runs call(views..., stream) here and there on copies of the operands and compares all of them.
template <class Call, class... T>
void expect_as_on_cpu(double tolerance, const Call& call, Host<T>... operands) {
  std::tuple<Host<T>...> here{operands...}, there{operands...};
  std::apply([&](auto&... each) { call(each.view()..., Stream()); }, here);
  Workbench& bench = Workbench::get();
  bench.clear();
  std::apply(
      [&](auto&... each) {
        const std::tuple views{std::pair{bench.put(each), &each}...};
        std::apply([&](const auto&... view) { call(view.first..., bench.stream()); }, views);
        std::apply([&](const auto&... view) { (bench.take(view.first, *view.second), ...); }, views);
      },
      there);
  [&]<std::size_t... i>(std::index_sequence<i...>) {
    const auto compare = [&](std::size_t which, auto& got, const auto& wanted) {
      const Host<double> wide = wanted.widened();
      const double size = 1 + largest_difference(wide, Host<double>(wide.rows(), wide.heads(), wide.width()));
      EXPECT_LE(largest_difference(got, wide), tolerance * size) << "operand " << which;
      EXPECT_TRUE(got.gaps_untouched()) << "operand " << which;
    };
    (compare(i, std::get<i>(there), std::get<i>(here)), ...);
  }
  (std::index_sequence_for<T...>());
}

template <class S>
constexpr double tolerance() {
  return std::is_same_v<S, double> ? 1e-14 : std::is_same_v<S, float> ? 2e-6 : test::stored_tolerance<S>();
}

/// Documents of one token, runs that enter and leave, rows in no run.
const std::vector<UnitRun> kRuns = {
    {0, 5, 0, true, false}, {5, 1, 0, false, false}, {6, 20, 0, false, true}, {30, 1, 1, true, true}, {31, 40, 3, true, true}};
constexpr std::int64_t kRows = 75, kUnits = 4, kHeads = 2;

template <class S>
Host<S> random_host(std::int64_t rows, std::int64_t width, std::int64_t gap, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Host<S> host(rows, kHeads, width, gap);
  host.randomize(random);
  return host;
}

template <class Body>
void for_each_type(const Body& body) {
  body.template operator()<double>();
  body.template operator()<float>();
  body.template operator()<bfloat16>();
  body.template operator()<float16>();
}

TEST_F(CudaLinearTokens, DecaysAreMirrored) {
  for (const std::int64_t width : {1, 5, 40}) {
    const auto run = [&]<class A>(A) {
      const auto mirror = [](TensorView decay, TensorView to, const Stream& stream) { mirror_decay(decay, kRuns, to, stream); };
      expect_as_on_cpu(0, mirror, random_host<A>(kRows, width, 3, 1), random_host<A>(kRows, width, 0, 2));
      const auto none = [](TensorView decay, TensorView to, const Stream& stream) { mirror_decay(decay, {}, to, stream); };
      expect_as_on_cpu(0, none, random_host<A>(kRows, width, 3, 1), random_host<A>(kRows, width, 0, 2));
      const auto decay = [](TensorView of, TensorView states, const Stream& stream) { decay_states(of, kRuns, states, stream); };
      expect_as_on_cpu(tolerance<A>(), decay, random_host<A>(kRows, width, 3, 3), random_host<A>(kUnits, width * 7, 2, 4));
    };
    run(double{}), run(float{});
  }
}

TEST_F(CudaLinearTokens, MirroredPassesAreAdded) {
  for_each_type([]<class S>() {
    for (const auto& [d, e] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {8, 5}, {40, 72}}) {
      const auto add = [](TensorView q, TensorView k, TensorView v, TensorView from, TensorView to, const Stream& stream) {
        add_mirrored({q, k, v, {}, {}, kRuns, 0.3}, from, to, stream);
      };
      const auto key = [&, d = d](std::uint64_t seed) { return random_host<S>(kRows, d, 3, seed); };
      const auto value = [&, e = e](std::uint64_t seed) { return random_host<S>(kRows, e, 0, seed); };
      expect_as_on_cpu(2 * tolerance<S>(), add, key(1), key(2), value(3), value(4), value(5));
    }
  });
}

TEST_F(CudaLinearTokens, GradientsOfMirroredPassesAreAdded) {
  for_each_type([]<class S>() {
    constexpr std::int64_t d = 40, e = 24;
    for (const std::int64_t width : {std::int64_t{1}, d}) {
      const auto add = [](TensorView q, TensorView k, TensorView v, TensorView dout, TensorView mq, TensorView mk, TensorView mv,
                          TensorView mdecay, TensorView dq, TensorView dk, TensorView dv, TensorView ddecay, const Stream& stream) {
        add_mirrored_backward({q, k, v, {}, {}, kRuns, 0.3}, dout, {mq, mk, mv, mdecay}, {dq, dk, dv, ddecay}, stream);
      };
      const auto key = [&](std::uint64_t seed) { return random_host<S>(kRows, d, 3, seed); };
      const auto value = [&](std::uint64_t seed) { return random_host<S>(kRows, e, 0, seed); };
      const auto decay = [&](std::uint64_t seed) { return random_host<Sum<S>>(kRows, width, 1, seed); };
      expect_as_on_cpu(2 * tolerance<S>(), add, key(1), key(2), value(3), value(4), key(5), key(6), value(7), decay(8), key(9), key(10),
                       value(11), decay(12));
    }
  });
}

TEST_F(CudaLinearTokens, ValuesAreExtendedAndNormalised) {
  for_each_type([]<class S>() {
    for (const std::int64_t e : {1, 31, 64}) {
      const auto host = [&](std::int64_t width, std::uint64_t seed) { return random_host<S>(kRows, width, 3, seed); };
      const auto positive = [&](auto x) {
        x.for_each([](auto& number) { number = static_cast<std::decay_t<decltype(number)>>(1.0f + std::abs(static_cast<float>(number))); });
        return x;
      };
      expect_as_on_cpu(
          0, [](TensorView v, TensorView to, const Stream& stream) { extend_values(v, to, stream); }, host(e, 1), host(e + 1, 2));
      expect_as_on_cpu(
          tolerance<S>(),
          [](TensorView extended, TensorView out, TensorView sums, const Stream& stream) { normalise(extended, 0.01, out, sums, stream); },
          positive(host(e + 1, 1)), host(e, 2), random_host<Sum<S>>(kRows, 1, 0, 3));
      expect_as_on_cpu(
          2 * tolerance<S>(),
          [](TensorView dout, TensorView out, TensorView sums, TensorView to, const Stream& stream) {
            normalise_backward(dout, out, sums, to, stream);
          },
          host(e, 1), host(e, 2), positive(random_host<Sum<S>>(kRows, 1, 0, 3)), host(e + 1, 4));
    }
  });
}

/// The same rows in falling order.
TensorView mirrored(const TensorView& view) {
  if (view.dims() == 0) return view;
  Extents strides = view.strides();
  std::byte* last = view.bytes() + (view.size(0) - 1) * strides[0] * static_cast<std::int64_t>(size_of(view.dtype()));
  strides[0] = -strides[0];
  return {last, view.dtype(), view.shape(), strides};
}

struct WholeCase {
  std::int64_t d, e;
  test::Decay decay;
  bool normalise;
  std::int64_t decay_width() const { return decay == test::Decay::none ? 0 : decay == test::Decay::scalar ? 1 : d; }
};

/// Bidirectional attention of documents in one unit, put together as parallel/execute/recurrence.cpp does.
template <class S>
struct Bidirectional {
  using A = Sum<S>;
  static constexpr double kScale = 0.3, kEpsilon = 0.1;
  static constexpr std::int64_t kTokens = 100;
  static inline const std::vector<std::int64_t> borders = {0, 66, 67, 100};

  WholeCase c;
  std::int64_t columns = c.e + (c.normalise ? 1 : 0);
  Host<S> q = random_host<S>(kTokens, c.d, 0, 1), k = random_host<S>(kTokens, c.d, 0, 2), v = random_host<S>(kTokens, c.e, 0, 3);
  Host<S> dout = random_host<S>(kTokens, c.e, 0, 4);
  Host<A> log_decay = random_host<A>(kTokens, c.decay_width(), 0, 5);
  Host<S> out{v}, dq{q}, dk{q}, dv{kTokens, kHeads, columns};
  Host<A> dlog_decay{log_decay};

  void make_operands() {
    const auto positive = [](auto& number) { number = static_cast<std::decay_t<decltype(number)>>(std::abs(static_cast<float>(number))); };
    if (c.normalise) q.for_each(positive), k.for_each(positive);
    log_decay.for_each([](A& number) { number = -std::abs(number) / 4; });
  }
  static std::vector<UnitRun> runs(bool falling) {
    std::vector<UnitRun> runs;
    for (std::size_t i = 0; i + 1 < borders.size(); ++i) {
      const std::int64_t row0 = falling ? kTokens - borders[borders.size() - 1 - i] : borders[i];
      const std::int64_t end = falling ? kTokens - borders[borders.size() - 2 - i] : borders[i + 1];
      runs.push_back({row0, end - row0, 0, false, false});
    }
    return runs;
  }

  void run() {
    make_operands();
    Workbench& bench = Workbench::get();
    const Stream& stream = bench.stream();
    bench.clear();
    const auto values = [&] { return Host<S>(kTokens, kHeads, columns); };
    Host<S> of_values = values();
    Host<A> state(1, kHeads, c.d * columns), normaliser(kTokens, kHeads, 1);
    const TensorView q_ = bench.put(q), k_ = bench.put(k), given_v = bench.put(v), given_dout = bench.put(dout), out_ = bench.put(out);
    const TensorView decay = c.decay_width() > 0 ? bench.put(log_decay) : TensorView{};
    const TensorView mirrored_decay = c.decay_width() > 0 ? bench.put(log_decay) : TensorView{};
    const TensorView nothing = bench.put(state), sums = bench.put(normaliser);
    const TensorView v_ = c.normalise ? bench.put(of_values) : given_v, all = c.normalise ? bench.put(of_values) : out_;
    const TensorView dall = c.normalise ? bench.put(of_values) : given_dout, mirrored_out = bench.put(of_values);
    const LinearGradients to{bench.put(dq), bench.put(dk), bench.put(dv), c.decay_width() > 0 ? bench.put(dlog_decay) : TensorView{}};
    const LinearGradients back{bench.put(dq), bench.put(dk), bench.put(dv), c.decay_width() > 0 ? bench.put(dlog_decay) : TensorView{}};
    const auto rising_runs = runs(false), falling_runs = runs(true);
    const LinearBlock rising{q_, k_, v_, decay, {}, rising_runs, kScale};
    const LinearBlock falling{mirrored(q_), mirrored(k_), mirrored(v_), mirrored(mirrored_decay), {}, falling_runs, 1};
    const LinearBlock around{q_, k_, v_, {}, {}, rising_runs, kScale};

    if (c.normalise) extend_values(given_v, v_, stream);
    if (decay.dims() > 0) mirror_decay(decay, rising_runs, mirrored_decay, stream);
    unit_apply(rising, nothing, all, stream);
    unit_apply(falling, nothing, mirrored(mirrored_out), stream);
    add_mirrored(around, mirrored_out, all, stream);
    if (c.normalise) normalise(all, kEpsilon, out_, sums, stream), normalise_backward(given_dout, out_, sums, dall, stream);
    unit_apply_backward(rising, nothing, dall, nothing, to, stream);
    unit_apply_backward(falling, nothing, mirrored(dall), nothing,
                        {mirrored(back.dq), mirrored(back.dk), mirrored(back.dv), mirrored(back.dlog_decay)}, stream);
    add_mirrored_backward(around, dall, back, to, stream);

    bench.take(out_, out), bench.take(to.dq, dq), bench.take(to.dk, dk), bench.take(to.dv, dv);
    if (decay.dims() > 0) bench.take(to.dlog_decay, dlog_decay);
  }

  void compare(double tolerance) {
    Host<double> wide_q = q.widened(), wide_k = k.widened(), wide_v = v.widened(), wide_decay = log_decay.widened();
    Host<double> wide_dout = dout.widened(), want_out = wide_v, want_q = wide_q, want_k = wide_q, want_v = wide_v, want_decay = wide_decay;
    for (Host<double>* host : {&want_out, &want_q, &want_k, &want_v, &want_decay}) host->fill(0);
    const bool decays = c.decay_width() > 0;
    const reference::PairwiseAttention pairs{
        wide_q, wide_k, wide_v, decays ? ConstTensorView(wide_decay) : ConstTensorView{}, borders, true, c.normalise, kScale, kEpsilon};
    pairs.forward(want_out);
    pairs.backward(wide_dout, want_q, want_k, want_v, decays ? TensorView(want_decay) : TensorView{});
    Host<double> got_v(kTokens, kHeads, c.e);
    for (std::int64_t row = 0; row < kTokens; ++row) {
      for (std::int64_t head = 0; head < kHeads; ++head) {
        for (std::int64_t i = 0; i < c.e; ++i) got_v(row, head, i) = dv.get(row, head, i);
      }
    }
    const auto expect = [&](const char* name, auto& got, const Host<double>& want) {
      const double size = 1 + largest_difference(want, Host<double>(want.rows(), want.heads(), want.width()));
      EXPECT_LE(largest_difference(got, want), tolerance * size)
          << name << ", widths " << c.d << ", " << c.e << ", decay width " << c.decay_width() << ", normalised " << c.normalise;
    };
    expect("out", out, want_out), expect("dq", dq, want_q), expect("dk", dk, want_k), expect("dv", got_v, want_v);
    if (decays) expect("dlog_decay", dlog_decay, want_decay);
  }
};

template <class S>
void expect_bidirectional(const WholeCase& c, double tolerance) {
  for (const cuda::Rung rung : {cuda::Rung::plain, cuda::Rung::portable}) {
    SCOPED_TRACE(to_string(rung));
    cuda::set_highest_rung(rung);
    Bidirectional<S> whole{c};
    whole.run();
    whole.compare(tolerance);
  }
}

TEST_F(CudaLinearTokens, BothDirectionsMatchTheDefinition) {
  for (const test::Decay decay : {test::Decay::none, test::Decay::scalar, test::Decay::diagonal}) {
    for (const bool normalise : {false, true}) {
      expect_bidirectional<double>({8, 6, decay, normalise}, 1e-12);
      expect_bidirectional<float>({16, 8, decay, normalise}, 1e-5);
      expect_bidirectional<bfloat16>({16, 24, decay, normalise}, 2 * test::kTileTolerance);
    }
  }
  expect_bidirectional<float16>({16, 24, test::Decay::scalar, false}, 2 * test::kTileTolerance);
}

}  // namespace
}  // namespace periplus::kernels
