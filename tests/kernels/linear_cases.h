#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cpu_level.h"
#include "kernels/linear_attention.h"
#include "tests/kernels/attention_cases.h"
#include "tests/kernels/tolerance.h"

/// Random runs and operands of linear attention, and the comparison with f64: for kernels of any storage type and device.
namespace periplus::kernels::test {

using namespace periplus::test;

enum class Decay { none, scalar, diagonal };

struct LinearCase {
  std::int64_t rows = 1, units = 1, heads = 1, width_qk = 4, width_v = 4;
  Decay decay = Decay::none;
  bool delta_rule = false;
  std::vector<UnitRun> runs = {};
  double scale = 1;
  double strength = 0.2;     ///< Mean of -log_decay.
  bool shared_keys = false;  ///< All heads read the same q and k, by a head stride of 0.
  std::int64_t gap = 0;

  std::int64_t decay_width() const { return decay == Decay::none ? 0 : decay == Decay::scalar ? 1 : width_qk; }
  Transition transition() const {
    if (delta_rule) return Transition::dense;
    return decay == Decay::none ? Transition::identity : decay == Decay::scalar ? Transition::scalar : Transition::diagonal;
  }
  std::int64_t state_width() const { return width_qk * width_v; }
  std::int64_t transition_numbers() const { return transition_width(transition(), width_qk); }
};

inline std::string describe(const LinearCase& c) {
  std::ostringstream text;
  text << c.rows << " rows, " << c.runs.size() << " runs, " << c.units << " units, " << c.heads << " heads, widths " << c.width_qk << ","
       << c.width_v << ", decay width " << c.decay_width() << " strength " << c.strength << ", delta rule " << c.delta_rule
       << ", shared keys " << c.shared_keys << ", gap " << c.gap;
  return text.str();
}

/// Every decay with and without the delta rule: visit(case).
template <class Visit>
void for_each_rule(LinearCase c, const Visit& visit) {
  for (const Decay decay : {Decay::none, Decay::scalar, Decay::diagonal}) {
    for (const bool delta_rule : {false, true}) {
      c.decay = decay;
      c.delta_rule = delta_rule;
      SCOPED_TRACE(describe(c));
      visit(c);
    }
  }
}

/// Cuts c.units units of up to `longest` rows into documents, some of one token. Some units continue a document, some leave one
/// open, some have no run; some rows between runs are in none.
inline void cut_into_runs(std::mt19937_64& random, std::int64_t longest, LinearCase& c) {
  c.rows = 0;
  c.runs.clear();
  for (std::int64_t unit = 0; unit < c.units; ++unit) {
    const std::int64_t end = c.rows + pick(random, 1, longest);
    const bool whole = pick(random, 0, 2) == 0;
    const std::size_t first = c.runs.size();
    if (pick(random, 0, 7) == 0) c.rows = end;  // no run
    while (c.rows < end) {
      const std::int64_t rows = whole ? end - c.rows : pick(random, 0, 2) == 0 ? 1 : pick(random, 1, end - c.rows);
      if (c.rows + rows == end || pick(random, 0, 9) != 0) c.runs.push_back({c.rows, rows, unit, false, false});
      c.rows += rows;
    }
    if (c.runs.size() == first) continue;
    c.runs[first].enters = pick(random, 0, 1) == 0;
    c.runs.back().leaves = pick(random, 0, 1) == 0;
  }
}

inline LinearCase random_linear_case(std::mt19937_64& random) {
  LinearCase c;
  c.units = pick(random, 1, 4);
  c.heads = pick_of(random, {1, 2, 3});
  c.width_qk = pick_of(random, {1, 3, 8, 16, 24, 40, 64});
  c.width_v = pick(random, 0, 1) == 0 ? c.width_qk : pick_of(random, {1, 5, 16, 32, 72});
  c.decay = static_cast<Decay>(pick(random, 0, 2));
  c.delta_rule = pick(random, 0, 1) == 0;
  c.scale = 1 / std::sqrt(static_cast<double>(c.width_qk));
  c.strength = pick(random, 0, 3) == 0 ? 3 : pick(random, 0, 1) == 0 ? 0.2 : 0.01;
  c.shared_keys = pick(random, 0, 3) == 0;
  c.gap = pick_of(random, {0, 0, 5, 16});
  cut_into_runs(random, pick_of(random, {3, 20, 70, 150}), c);
  return c;
}

/// Operands and results of one call of every function, of storage type S.
template <class S>
struct LinearPass {
  using A = std::conditional_t<std::is_same_v<S, double>, double, float>;

  explicit LinearPass(const LinearCase& of)
      : c(of),
        q(c.rows, c.shared_keys ? 1 : c.heads, c.width_qk, c.gap),
        k(q),
        v(c.rows, c.heads, c.width_v, c.gap),
        dout(v),
        log_decay(c.rows, c.heads, c.decay_width(), c.gap),
        beta(c.rows, c.heads, 1, c.gap),
        incoming(c.units, c.heads, c.state_width(), c.gap),
        doutgoing(incoming),
        out(v),
        dq(c.rows, c.heads, c.width_qk, c.gap),
        dk(dq),
        dv(v),
        dlog_decay(log_decay),
        dbeta(beta),
        elements(c.units, c.heads, c.transition_numbers() + c.state_width(), c.gap),
        delements(elements) {}

  /// Keys of length 1 and beta in (0, 1), as models have them: the delta rule then never makes a state grow.
  void randomize(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    for (Host<S>* operand : {&q, &k, &v, &dout}) operand->randomize(random);
    for (Host<A>* state : {&incoming, &doutgoing}) state->randomize(random);
    for (std::int64_t row = 0; row < k.rows(); ++row) {
      for (std::int64_t head = 0; head < k.heads(); ++head) {
        double square = 1e-6;
        for (std::int64_t i = 0; i < c.width_qk; ++i) square += k.get(row, head, i) * k.get(row, head, i);
        for (std::int64_t i = 0; i < c.width_qk; ++i) {
          k(row, head, i) = static_cast<S>(static_cast<float>(k.get(row, head, i) / std::sqrt(square)));
        }
      }
    }
    std::exponential_distribution<float> decay(static_cast<float>(1 / c.strength));
    log_decay.for_each([&](A& value) { value = -decay(random); });
    std::uniform_real_distribution<float> fraction(0.05f, 0.95f);
    beta.for_each([&](A& value) { value = fraction(random); });
  }

  LinearBlock block() {
    LinearBlock block{keys(q), keys(k), v, {}, {}, c.runs, c.scale};
    if (c.decay != Decay::none) block.log_decay = log_decay;
    if (c.delta_rule) block.beta = beta;
    return block;
  }
  LinearGradients gradients() {
    LinearGradients gradients{dq, dk, dv};
    if (c.decay != Decay::none) gradients.dlog_decay = dlog_decay;
    if (c.delta_rule) gradients.dbeta = dbeta;
    return gradients;
  }
  void forward(StreamView stream) {
    unit_states(block(), elements, stream);
    unit_apply(block(), incoming, out, stream);
  }
  void backward(StreamView stream) {
    unit_states_backward(block(), dout, delements, stream);
    unit_apply_backward(block(), incoming, dout, doutgoing, gradients(), stream);
  }

  /// The same operands in f64 without gaps; results are not taken along.
  LinearPass<double> widened() const {
    LinearCase dense = c;
    dense.gap = 0;
    LinearPass<double> wide(dense);
    wide.q = q.widened();
    wide.k = k.widened();
    wide.v = v.widened();
    wide.dout = dout.widened();
    wide.log_decay = log_decay.widened();
    wide.beta = beta.widened();
    wide.incoming = incoming.widened();
    wide.doutgoing = doutgoing.widened();
    return wide;
  }
  /// visit(name, result) for each result that the case has.
  template <class Visit>
  void for_each_result(const Visit& visit) {
    visit("out", out);
    visit("elements", elements);
    visit("delements", delements);
    visit("dq", dq);
    visit("dk", dk);
    visit("dv", dv);
    if (c.decay != Decay::none) visit("dlog_decay", dlog_decay);
    if (c.delta_rule) visit("dbeta", dbeta);
  }

  LinearCase c;
  Host<S> q, k, v, dout;
  Host<A> log_decay, beta, incoming, doutgoing;
  Host<S> out, dq, dk, dv;
  Host<A> dlog_decay, dbeta, elements, delements;

 private:
  TensorView keys(Host<S>& operand) const {
    const TensorView view = operand.view();
    return {view.bytes(), view.dtype(), {c.rows, c.heads, c.width_qk}, {view.stride(0), c.shared_keys ? 0 : view.stride(1), 1}};
  }
};

/// Both passes on random operands of storage type S, and what f64 tensors, hence the reference, make of them.
template <class S>
class LinearExpectation {
 public:
  LinearExpectation(const LinearCase& c, std::uint64_t seed) : start_(c), wanted_(c) {
    start_.randomize(seed);
    wanted_ = start_.widened();
    const auto mark = [](const char*, auto& result) { result.fill(3); };
    start_.for_each_result(mark);
    wanted_.for_each_result(mark);
    wanted_.forward(Stream());
    wanted_.backward(Stream());
  }

  /// Of what run(pass) makes. Rows in no run keep what they held. Tolerances are relative to 1 + the largest element; `stored` is for
  /// results of storage type.
  template <class Run>
  void check(double tolerance, double stored, const Run& run) {
    SCOPED_TRACE(describe(start_.c));
    LinearPass<S> got = start_;
    run(got);
    std::vector<const Host<double>*> expected;
    wanted_.for_each_result([&](const char*, const Host<double>& result) { expected.push_back(&result); });
    auto next = expected.begin();
    got.for_each_result([&]<class T>(const char* name, Host<T>& result) {
      const Host<double>& want = **next++;
      const double size = 1 + largest_difference(want, Host<double>(want.rows(), want.heads(), want.width()));
      EXPECT_LE(largest_difference(result, want), (std::is_same_v<T, S> ? stored : tolerance) * size) << name;
      EXPECT_TRUE(result.gaps_untouched()) << name;
    });
  }

 private:
  LinearPass<S> start_;
  LinearPass<double> wanted_;
};

/// Of results of a storage type that is computed in f32.
template <class S>
constexpr double stored_tolerance() {
  return std::is_same_v<S, bfloat16> ? kBfloat16Rounding : std::is_same_v<S, float16> ? kFloat16Rounding : kGradientTolerance;
}

/// With the tolerances of the storage type, and of bf16 on matrix tiles if the level in use has them: there the operands of
/// every product are rounded to bf16. The delta rule also takes differences of such products (what keys read of the state from values),
/// and the gradient of a decay sums differences over a group of up to 512 tokens.
template <class S>
void expect_matches_f64(const LinearCase& c, std::uint64_t seed, const Stream& stream) {
  const auto run = [&](LinearPass<S>& pass) {
    pass.forward(stream);
    pass.backward(stream);
  };
  if (std::is_same_v<S, bfloat16> && has_tiles(cpu_level())) {
    constexpr std::int64_t kGroup = 512;
    const double stored = (c.delta_rule ? 2 : 1) * kTileTolerance;
    const bool sums_differences = c.delta_rule || (c.decay != Decay::none && c.rows >= kGroup);
    return LinearExpectation<S>(c, seed).check((sums_differences ? 2 : 1) * kTileTolerance, stored, run);
  }
  LinearExpectation<S>(c, seed).check(kGradientTolerance, stored_tolerance<S>(), run);
}

}  // namespace periplus::kernels::test
