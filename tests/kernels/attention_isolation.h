#pragma once

#include <cmath>

#include "tests/kernels/attention_pass.h"

/// One element that is not finite, and which rows of the results may notice: for kernels of any device.
namespace periplus::kernels::test {

enum class Operand { q, k, v, dout };

/// One poisoned element, and which rows of the results may notice.
struct Poison {
  Operand operand;
  double value;
  std::int64_t row;

  bool in_query() const { return operand == Operand::q || operand == Operand::dout; }
  bool meets_row(const Case& c, std::int64_t i) const {
    if (!in_query()) return allowed(c.bands, i, row);
    bool sees_any = false;
    for (std::int64_t j = 0; j < c.key_rows; ++j) sees_any = sees_any || allowed(c.bands, i, j);
    return i == row && sees_any;
  }
  bool reaches_out(const Case& c, std::int64_t i) const { return operand != Operand::dout && meets_row(c, i); }
  bool reaches_lse(const Case& c, std::int64_t i) const { return (operand == Operand::q || operand == Operand::k) && meets_row(c, i); }
  bool reaches_dk(const Case& c, std::int64_t j) const { return (operand != Operand::v || j == row) && seen_by_a_met_row(c, j); }
  bool reaches_dv(const Case& c, std::int64_t j) const { return operand != Operand::v && seen_by_a_met_row(c, j); }

 private:
  /// A row with a score of NaN has no finite weight for any key.
  bool seen_by_a_met_row(const Case& c, std::int64_t j) const {
    for (std::int64_t i = 0; i < c.query_rows; ++i) {
      if (meets_row(c, i) && allowed(c.bands, i, j)) return true;
    }
    return false;
  }
};

inline constexpr std::int64_t kPoisonedColumn = 5;

/// Rows that `reached` names, of the poisoned head, are not finite; every other row holds the bits of the clean run.
template <class Reached>
void expect_isolated(const Host<float>& got, const Host<float>& clean, std::int64_t poisoned_head, const Reached& reached,
                     const char* name) {
  const std::int64_t column = std::min(kPoisonedColumn, got.width() - 1);
  for (std::int64_t head = 0; head < got.heads(); ++head) {
    for (std::int64_t row = 0; row < got.rows(); ++row) {
      if (head == poisoned_head && reached(row)) {
        ASSERT_FALSE(std::isfinite(got.get(row, head, column))) << name << " row " << row << " head " << head;
        continue;
      }
      for (std::int64_t i = 0; i < got.width(); ++i) {
        ASSERT_EQ(got.get(row, head, i), clean.get(row, head, i)) << name << " row " << row << " head " << head << " column " << i;
      }
    }
  }
}

/// run(pass, case) does both passes.
template <class S, class Run>
void expect_poison_isolated(const Case& c, const Poison& poison, const Run& run) {
  constexpr std::int64_t kHead = 1;
  Pass<S, float> clean(c);
  clean.randomize(46);
  Pass<S, float> got = clean;
  Host<S>& operand = poison.operand == Operand::q   ? got.q
                     : poison.operand == Operand::k ? got.k
                     : poison.operand == Operand::v ? got.v
                                                    : got.dout;
  operand(poison.row, kHead, kPoisonedColumn) = S(static_cast<float>(poison.value));
  for (Pass<S, float>* pass : {&clean, &got}) run(*pass, c);
  expect_isolated(
      got.out, clean.out, kHead, [&](std::int64_t i) { return poison.reaches_out(c, i); }, "out");
  expect_isolated(
      got.lse, clean.lse, kHead, [&](std::int64_t i) { return poison.reaches_lse(c, i); }, "lse");
  expect_isolated(
      got.dq, clean.dq, kHead, [&](std::int64_t i) { return poison.meets_row(c, i); }, "dq");
  expect_isolated(
      got.dk, clean.dk, kHead, [&](std::int64_t j) { return poison.reaches_dk(c, j); }, "dk");
  expect_isolated(
      got.dv, clean.dv, kHead, [&](std::int64_t j) { return poison.reaches_dv(c, j); }, "dv");
}

/// visit(case, poison): masks that cut tiles, documents that share them, rows that attend nothing; all four operands.
template <class Visit>
void for_each_poison(const Visit& visit) {
  Case causal{.query_rows = 200, .key_rows = 190, .heads = 2, .kv_heads = 2, .width_qk = 16, .width_v = 24};
  causal.scale = 0.25;
  causal.bands = {{0, 200, 0, 190, -kUnbounded, 0}};
  Case window = causal;
  window.bands = {{0, 200, 0, 190, -20, 3}};
  Case packed = causal;
  packed.bands = {{0, 37, 0, 37, -kUnbounded, 0}, {37, 90, 37, 90, -kUnbounded, 0}, {95, 190, 95, 190}};
  const std::vector<Poison> poisons = {
      {Operand::q, std::nan(""), 70},    {Operand::k, std::nan(""), 70},    {Operand::v, std::nan(""), 70},
      {Operand::dout, std::nan(""), 70}, {Operand::v, INFINITY, 131},       {Operand::dout, -INFINITY, 131},
      {Operand::v, std::nan(""), 92},    {Operand::dout, std::nan(""), 92}, {Operand::q, std::nan(""), 93}};
  for (const Case* c : {&causal, &window, &packed}) {
    for (const Poison& poison : poisons) {
      SCOPED_TRACE(testing::Message() << "operand " << static_cast<int>(poison.operand) << " row " << poison.row << " value "
                                      << poison.value << " bands " << c->bands.size() << " lo " << c->bands[0].lo);
      visit(*c, poison);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

}  // namespace periplus::kernels::test
