#include <cmath>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cuda/resident.h"
#include "tests/kernels/cuda/rounded_linear.h"
#include "tests/kernels/cuda/workbench.h"
#include "tests/kernels/linear_cases.h"
#include "tests/kernels/values.h"

// The CUDA kernels of linear attention and the delta rule against the f64 reference on the CPU. Also compiled with the kernels for the
// CPU (tests/kernels/cuda_emulation), where fewer cases must do.
namespace periplus::kernels {
namespace {

using test::CudaTest;
using test::Decay;
using test::Host;
using test::LinearCase;
using test::LinearPass;
using test::pick;
using test::pick_of;
using test::Workbench;

#ifdef PERIPLUS_EMULATED_CUDA
constexpr int kFewer = 8;
#else
constexpr int kFewer = 1;
#endif

struct CudaLinearAttention : CudaTest {};

/// A copy of a pass on the device.
template <class S>
struct DevicePass {
  explicit DevicePass(LinearPass<S>& host) : pass(host) {
    Workbench& bench = Workbench::get();
    bench.clear();
    q = keys(bench.put(host.q));
    k = keys(bench.put(host.k));
    for (auto [view, from] : {std::pair{&v, &host.v}, {&dout, &host.dout}}) *view = bench.put(*from);
    for (auto [view, from] :
         {std::pair{&log_decay, &host.log_decay}, {&beta, &host.beta}, {&incoming, &host.incoming}, {&doutgoing, &host.doutgoing}}) {
      *view = bench.put(*from);
    }
    for_each_result([&](TensorView& view, auto& from) { view = bench.put(from); });
  }

  LinearBlock block() const {
    LinearBlock block{q, k, v, {}, {}, pass.c.runs, pass.c.scale};
    if (pass.c.decay != Decay::none) block.log_decay = log_decay;
    if (pass.c.delta_rule) block.beta = beta;
    return block;
  }
  void run(void (*before_each)() = [] {}) {
    const Stream& stream = Workbench::get().stream();
    LinearGradients gradients{dq, dk, dv};
    if (pass.c.decay != Decay::none) gradients.dlog_decay = dlog_decay;
    if (pass.c.delta_rule) gradients.dbeta = dbeta;
    before_each();
    unit_states(block(), elements, stream);
    before_each();
    unit_apply(block(), incoming, out, stream);
    before_each();
    unit_states_backward(block(), dout, delements, stream);
    before_each();
    unit_apply_backward(block(), incoming, dout, doutgoing, gradients, stream);
  }
  void take_results() {
    for_each_result([&](TensorView& view, auto& to) { Workbench::get().take(view, to); });
  }

  LinearPass<S>& pass;
  TensorView q, k, v, dout, log_decay, beta, incoming, doutgoing;
  TensorView out, dq, dk, dv, dlog_decay, dbeta, elements, delements;

 private:
  TensorView keys(const TensorView& view) const {
    return {view.bytes(),
            view.dtype(),
            {pass.c.rows, pass.c.heads, pass.c.width_qk},
            {view.stride(0), pass.c.shared_keys ? 0 : view.stride(1), 1}};
  }
  template <class Visit>
  void for_each_result(const Visit& visit) {
    visit(out, pass.out);
    visit(dq, pass.dq);
    visit(dk, pass.dk);
    visit(dv, pass.dv);
    visit(dlog_decay, pass.dlog_decay);
    visit(dbeta, pass.dbeta);
    visit(elements, pass.elements);
    visit(delements, pass.delements);
  }
};

constexpr auto kRun = []<class S>(LinearPass<S>& pass) {
  DevicePass<S> device(pass);
  device.run();
  device.take_results();
};

using Rungs = std::initializer_list<cuda::Rung>;
#ifdef PERIPLUS_EMULATED_CUDA
constexpr Rungs kAllRungs = {cuda::Rung::plain, cuda::Rung::portable};
#else
constexpr Rungs kAllRungs = {cuda::Rung::plain, cuda::Rung::portable, cuda::Rung::hopper};
#endif

template <class S>
void expect_matches(const LinearCase& c, std::uint64_t seed, Rungs rungs = kAllRungs) {
  test::LinearExpectation<S> expected(c, seed);
  for (const cuda::Rung rung : rungs) {
    SCOPED_TRACE(to_string(rung));
    cuda::set_highest_rung(rung);
    const bool tiles = rung != cuda::Rung::plain && sizeof(S) == 2;
    // The delta rule also takes differences of products: what keys read of the state from values.
    const double of_tiles = (c.delta_rule ? 2 : 1) * test::kTileTolerance;
    const double tolerance = std::is_same_v<S, double> ? 1e-12 : tiles ? of_tiles : test::kRunningSumTolerance;
    const double stored = std::max(tolerance, test::stored_tolerance<S>() * (sizeof(S) == 2 ? 1 : 0));
    expected.check(tolerance, stored, kRun);
  }
}

template <class S>
void sweep(int count, std::uint64_t seed, LinearCase (*make)(std::mt19937_64&), Rungs rungs = kAllRungs) {
  std::mt19937_64 random(seed);
  for (int i = 0; i < count / kFewer && !testing::Test::HasFailure(); ++i) expect_matches<S>(make(random), random(), rungs);
}

TEST_F(CudaLinearAttention, Bfloat16MatchesReferenceOverRandomShapes) { sweep<bfloat16>(40, 1, test::random_linear_case); }
TEST_F(CudaLinearAttention, Float16MatchesReferenceOverRandomShapes) { sweep<float16>(24, 2, test::random_linear_case); }
TEST_F(CudaLinearAttention, SinglePrecisionMatchesReferenceOverRandomShapes) { sweep<float>(40, 3, test::random_linear_case); }
TEST_F(CudaLinearAttention, DoublePrecisionMatchesReferenceOverRandomShapes) { sweep<double>(24, 4, test::random_linear_case); }

/// Linear attention in widths that matrix instructions take.
LinearCase random_tile_case(std::mt19937_64& random) {
  LinearCase c = test::random_linear_case(random);
  c.width_qk = pick_of(random, {8, 40, 64, 64, 96, 128, 128});
  c.width_v = pick(random, 0, 2) == 0 ? pick_of(random, {16, 64, 128}) : c.width_qk;
  c.decay = static_cast<Decay>(pick_of(random, {0, 1, 1, 2, 2, 2}));
  c.strength = static_cast<double>(pick_of(random, {1, 1, 40})) * (pick(random, 0, 1) == 0 ? 1 : 0.02);
  c.delta_rule = c.decay != Decay::diagonal && pick(random, 0, 1) == 0;
  c.scale = 1 / std::sqrt(static_cast<double>(c.width_qk));
  c.gap = pick_of(random, {0, 8});
  cut_into_runs(random, pick_of(random, {20, 64, 200, 300}), c);
  return c;
}
TEST_F(CudaLinearAttention, TilesMatchReference) {
  sweep<bfloat16>(64, 10, random_tile_case, {cuda::Rung::portable});
  sweep<float16>(24, 11, random_tile_case, {cuda::Rung::portable});
}

void expect_errs_like_rounded(const LinearCase& c) {
  SCOPED_TRACE(describe(c));
  LinearPass<bfloat16> got(c);
  got.randomize(13);
  LinearPass<double> exact = got.widened();
  exact.forward(Stream());
  exact.backward(Stream());
  LinearPass<bfloat16> rounded = got;
  test::compute_rounded(rounded);
  kRun(got);
  const auto compare = [&](const char* name, auto& ours, auto& plain, const Host<double>& wanted) {
    const double error = test::relative_error(ours, wanted);
    EXPECT_LE(error, 2 * test::relative_error(plain, wanted)) << name;
    EXPECT_LE(error, 7e-3) << name;
    EXPECT_LE(error, 7e-3) << name;
  };
  compare("out", got.out, rounded.out, exact.out);
  compare("dq", got.dq, rounded.dq, exact.dq);
  compare("dk", got.dk, rounded.dk, exact.dk);
  compare("dv", got.dv, rounded.dv, exact.dv);
  if (c.decay != Decay::none) compare("dlog_decay", got.dlog_decay, rounded.dlog_decay, exact.dlog_decay);
  if (c.delta_rule) compare("dbeta", got.dbeta, rounded.dbeta, exact.dbeta);
}

TEST_F(CudaLinearAttention, ErrsNoMoreThanTwiceARoundedComputation) {
  LinearCase c{.rows = 1500 / kFewer + 400, .units = 1, .heads = 1, .width_qk = 64, .width_v = 64};
  c.runs = {{0, c.rows, 0, false, false}};
  c.scale = 0.125;
  const auto with = [&](Decay decay, bool delta_rule, double strength) {
    c.decay = decay, c.delta_rule = delta_rule, c.strength = strength;
    expect_errs_like_rounded(c);
  };
  for (const double strength : {0.3, 0.01}) {
    with(Decay::scalar, false, strength), with(Decay::diagonal, false, strength);
    with(Decay::scalar, true, strength);
  }
  with(Decay::none, true, 1);
}

/// A run of one head would leave most of a device idle.
LinearCase long_runs(Decay decay) {
  LinearCase c{.rows = kFewer == 1 ? 20000 : 1300, .units = 2, .heads = 1, .width_qk = 64, .width_v = 64, .decay = decay};
  c.runs = {{0, c.rows - 100, 0, true, true}, {c.rows - 100, 70, 1, false, true}};
  c.scale = 0.125;
  c.strength = 0.01;
  return c;
}
TEST_F(CudaLinearAttention, LongRunsAreCut) {
  expect_matches<bfloat16>(long_runs(Decay::scalar), 12, {cuda::Rung::portable});
  expect_matches<bfloat16>(long_runs(Decay::diagonal), 14, {cuda::Rung::portable});
}

/// To the byte: of what a call puts on the device then, its second table makes room by letting go of all that is there.
void fill_tables() {
  std::vector<std::byte> filler((std::size_t{64} << 20) + 1);
  cuda::resident_bytes(filler, Workbench::get().stream());
  filler.pop_back();
  cuda::resident_bytes(filler, Workbench::get().stream());
}
TEST_F(CudaLinearAttention, TablesStayUntilTheirCallHasUsedThem) {
  cuda::set_highest_rung(cuda::Rung::portable);
  for (const Decay decay : {Decay::scalar, Decay::diagonal}) {
    test::LinearExpectation<bfloat16> expected(long_runs(decay), 15);
    expected.check(test::kTileTolerance, std::max(test::kTileTolerance, test::stored_tolerance<bfloat16>()),
                   [](LinearPass<bfloat16>& pass) {
                     DevicePass<bfloat16> device(pass);
                     device.run(fill_tables);
                     device.take_results();
                   });
  }
}

TEST_F(CudaLinearAttention, WideHeadsMatchReference) {
  std::mt19937_64 random(5);
  LinearCase c{.rows = 0, .units = 2, .heads = 2, .width_qk = 256, .width_v = 200};
  c.scale = 1.0 / 16;
  cut_into_runs(random, 40 / kFewer, c);
  test::for_each_rule(c, [](const LinearCase& rule) { expect_matches<float>(rule, 6); });
}

TEST_F(CudaLinearAttention, RefusesWiderHeads) {
  LinearCase c{.rows = 2, .units = 1, .heads = 1, .width_qk = 257, .width_v = 8};
  c.runs = {{0, 2, 0, true, true}};
  LinearPass<float> pass(c);
  DevicePass<float> device(pass);
  try {
    device.run();
    ADD_FAILURE() << "not refused";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("heads of width 257; CUDA kernels take widths up to 256"), std::string::npos) << error.what();
  }
}

/// Folds that go on from others, in both directions.
template <class A>
void check_scan(Transition transition, bool reverse, Update update) {
  const std::int64_t heads = 2, rows = transition == Transition::dense ? 40 : transition == Transition::diagonal ? 12 : 1, columns = 21;
  const std::int64_t numbers = transition_width(transition, rows);
  std::mt19937_64 random(7);
  Host<A> elements(5, heads, numbers + rows * columns, 3), states(6, heads, rows * columns, 2);
  elements.randomize(random, 0.1);  // so that no state grows
  states.randomize(random);
  Host<A> there = states;
  const std::vector<UnitFold> folds = {{4, 0, 0}, {1, 0, 2}, {0, 1, 5}, {3, 0, 5}, {5, 3, 5}};
  unit_scan(elements, folds, transition, reverse, states, update, Stream());
  Workbench& bench = Workbench::get();
  bench.clear();
  const TensorView of_elements = bench.put(elements), of_states = bench.put(there);
  unit_scan(of_elements, folds, transition, reverse, of_states, update, bench.stream());
  bench.take(of_states, there);
  constexpr double tolerance = std::is_same_v<A, double> ? 1e-12 : 1e-5;
  EXPECT_LE(largest_difference(there, states.widened()), tolerance);
  EXPECT_TRUE(there.gaps_untouched());
}

TEST_F(CudaLinearAttention, ScansAsTheCpuDoes) {
  for (const Transition transition : {Transition::identity, Transition::scalar, Transition::diagonal, Transition::dense}) {
    for (const bool reverse : {false, true}) {
      for (const Update update : {Update::overwrite, Update::accumulate}) {
        SCOPED_TRACE(testing::Message() << static_cast<int>(transition) << " reverse " << reverse);
        check_scan<float>(transition, reverse, update);
        check_scan<double>(transition, reverse, update);
      }
    }
  }
}

TEST_F(CudaLinearAttention, GivesTheSameBitsAgain) {
  std::mt19937_64 random(8);
  LinearCase c{.rows = 0, .units = 3, .heads = 3, .width_qk = 64, .width_v = 64};
  c.scale = 0.125;
  cut_into_runs(random, 300 / kFewer, c);
  test::for_each_rule(c, [](const LinearCase& rule) {
    LinearPass<bfloat16> first(rule);
    first.randomize(9);
    LinearPass<bfloat16> again = first;
    kRun(first);
    for (int i = 0; i < 100 / kFewer / kFewer; ++i) {
      kRun(again);
      std::vector<bool> same;
      for (const auto& result :
           {&LinearPass<bfloat16>::out, &LinearPass<bfloat16>::dq, &LinearPass<bfloat16>::dk, &LinearPass<bfloat16>::dv}) {
        same.push_back(periplus::test::same_bits((first.*result).raw(), (again.*result).raw()));
      }
      for (const auto& result : {&LinearPass<bfloat16>::elements, &LinearPass<bfloat16>::delements, &LinearPass<bfloat16>::dlog_decay,
                                 &LinearPass<bfloat16>::dbeta}) {
        same.push_back(periplus::test::same_bits((first.*result).raw(), (again.*result).raw()));
      }
      EXPECT_EQ(same, std::vector<bool>(same.size(), true));
    }
  });
}

}  // namespace
}  // namespace periplus::kernels
