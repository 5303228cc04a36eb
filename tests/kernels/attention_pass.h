#pragma once

#include <gtest/gtest.h>
#include <omp.h>

#include "kernels/cpu_level.h"
#include "tests/kernels/attention_cases.h"

/// One forward and backward pass at a chosen level, for the tests of the vectorised kernels.
namespace periplus::kernels::test {

using namespace periplus::test;

inline const Stream kStream;

inline std::vector<CpuLevel> levels() {
  std::vector<CpuLevel> all(std::begin(kCpuLevels), std::end(kCpuLevels));
  all.resize(static_cast<std::size_t>(best_cpu_level()) + 1);
  return all;
}

/// Restores level and team size after a test that changes them.
class Attention : public testing::Test {
 protected:
  ~Attention() override {
    set_cpu_level(level_);
    omp_set_num_threads(threads_);
  }

 private:
  CpuLevel level_ = cpu_level();
  int threads_ = omp_get_max_threads();
};

/// Operands, a state that some earlier block left (used by Update::accumulate), and results of storage type S, state type A.
template <class S, class A>
struct Pass {
  explicit Pass(const Case& c)
      : q(c.query_rows, c.heads, c.width_qk, c.gap),
        k(c.key_rows, c.kv_heads, c.width_qk, c.gap),
        v(c.key_rows, c.kv_heads, c.width_v, c.gap),
        dout(c.query_rows, c.heads, c.width_v, c.gap),
        out(c.query_rows, c.heads, c.width_v, c.gap),
        lse(c.query_rows, c.heads, 1, c.gap),
        delta(c.query_rows, c.heads, 1, c.gap),
        dq(c.query_rows, c.heads, c.width_qk, c.gap),
        dk(c.key_rows, c.kv_heads, c.width_qk, c.gap),
        dv(c.key_rows, c.kv_heads, c.width_v, c.gap) {}

  void randomize(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    for (Host<S>* operand : {&q, &k, &v, &dout}) operand->randomize(random);
    for (Host<A>* state : {&out, &lse, &delta, &dq, &dk, &dv}) state->randomize(random);
    for (std::int64_t row = 0; row < lse.rows(); row += 3) {  // every third row is still empty
      lse(row, 0) = static_cast<A>(kMinusInfinity);
      for (std::int64_t i = 0; i < out.width(); ++i) out(row, 0, i) = 0;
    }
  }
  void forward(const Case& c) { attend({q, k, v, c.bands, c.scale, c.softcap}, {out, lse}, c.update, kStream); }
  void backward(const Case& c) {
    attend_backward({q, k, v, c.bands, c.scale, c.softcap}, dout, lse, delta, {dq, dk, dv, c.update, c.update}, kStream);
  }
  Pass<double, double> widened(const Case& c) const {
    Pass<double, double> wide(c);
    wide.q = q.widened();
    wide.k = k.widened();
    wide.v = v.widened();
    wide.dout = dout.widened();
    wide.out = out.widened();
    wide.lse = lse.widened();
    wide.delta = delta.widened();
    wide.dq = dq.widened();
    wide.dk = dk.widened();
    wide.dv = dv.widened();
    return wide;
  }

  Host<S> q, k, v, dout;
  Host<A> out, lse, delta, dq, dk, dv;
};

inline Case causal_case(std::int64_t rows, std::int64_t heads, std::int64_t kv_heads, std::int64_t width) {
  Case c{.query_rows = rows, .key_rows = rows, .heads = heads, .kv_heads = kv_heads, .width_qk = width, .width_v = width};
  c.scale = 1 / std::sqrt(static_cast<double>(width));
  c.bands = {{0, rows, 0, rows, -kUnbounded, 0}};
  return c;
}

}  // namespace periplus::kernels::test
