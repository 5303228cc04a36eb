#include "kernels/transformer.h"
#include "tests/kernels/values.h"

namespace periplus::kernels {
namespace {

using namespace periplus::test;

std::vector<double> plain_forward(const std::vector<double>& gate, const std::vector<double>& up) {
  std::vector<double> h;
  for (std::size_t i = 0; i < gate.size(); ++i) h.push_back(gate[i] / (1 + std::exp(-gate[i])) * up[i]);
  return h;
}

template <class T>
struct Case {
  std::int64_t rows, width;
  std::vector<T> gate, up, dh, h, dgate, dup;
  Stream stream;

  Case(std::int64_t row_count, std::int64_t hidden_width)
      : rows(row_count),
        width(hidden_width),
        gate(random_values<T>(rows * width, 1, 3)),
        up(random_values<T>(rows * width, 2)),
        dh(random_values<T>(rows * width, 3)),
        h(gate.size()),
        dgate(gate.size()),
        dup(gate.size()) {}
  Extents shape() const { return {rows, width}; }
  void forward() { swiglu(view(gate, shape()), view(up, shape()), view(h, shape()), stream); }
  void backward() {
    swiglu_backward(view(dh, shape()), view(gate, shape()), view(up, shape()), view(dgate, shape()), view(dup, shape()), stream);
  }
};

TEST(Swiglu, MatchesPlainFormula) {
  for_each_storage_type([]<class T>() {
    Case<T> c(3, 37);
    c.gate[0] = narrowed<T>(-200);  // far beyond the range of exp
    c.gate[1] = narrowed<T>(200);
    c.forward();
    expect_close(c.h, plain_forward(widened(c.gate), widened(c.up)), rounding<T>() + 8 * rounding<Sum<T>>());
  });
}

TEST(Swiglu, BackwardMatchesFiniteDifferences) {
  Case<double> c(2, 21);
  c.backward();
  const auto objective = [&] { return dot(plain_forward(c.gate, c.up), c.dh); };
  expect_close(c.dgate, numeric_gradient(c.gate, objective), 1e-8);
  expect_close(c.dup, numeric_gradient(c.up, objective), 1e-8);
}

template <class T>
void check_narrow_backward() {
  Case<T> narrow(4, 50);
  narrow.backward();
  Case<double> wide(4, 50);
  wide.gate = widened(narrow.gate);
  wide.up = widened(narrow.up);
  wide.dh = widened(narrow.dh);
  wide.backward();
  expect_close(narrow.dgate, wide.dgate, rounding<T>() + 64 * rounding<float>());
  expect_close(narrow.dup, wide.dup, rounding<T>() + 64 * rounding<float>());
}

TEST(Swiglu, NarrowTypesFollowF64) {
  check_narrow_backward<float>();
  check_narrow_backward<bfloat16>();
}

TEST(Swiglu, GradientsMayReplaceTheirInputs) {
  for_each_storage_type([]<class T>() {
    Case<T> apart(5, 77), aliased(5, 77);
    apart.backward();
    swiglu_backward(view(aliased.dh, aliased.shape()), view(aliased.gate, aliased.shape()), view(aliased.up, aliased.shape()),
                    view(aliased.gate, aliased.shape()), view(aliased.up, aliased.shape()), aliased.stream);
    EXPECT_TRUE(same_bits(apart.dgate, aliased.gate));
    EXPECT_TRUE(same_bits(apart.dup, aliased.up));
  });
}

TEST(Swiglu, BitsDoNotDependOnThreads) {
  for_each_storage_type([]<class T>() {
    expect_same_on_all_teams([] {
      Case<T> c(300, 401);
      c.forward();
      c.backward();
      auto all = c.h;
      all.insert(all.end(), c.dgate.begin(), c.dgate.end());
      all.insert(all.end(), c.dup.begin(), c.dup.end());
      return all;
    });
  });
}

TEST(Swiglu, AcceptsNoTokensAndRefusesShapesByName) {
  Case<float> none(0, 8);
  none.forward();
  none.backward();
  Case<float> c(4, 6);
  expect_refused(
      [&] {
        swiglu(view(c.gate, {4, 6}), view(c.up, {6, 4}), view(c.h, {4, 6}), c.stream);
      },
      {"swiglu", "up", "[6, 4]", "[4, 6]"});
  std::vector<bfloat16> narrow(24);
  expect_refused([&] { swiglu(view(c.gate, {4, 6}), view(c.up, {4, 6}), view(narrow, {4, 6}), c.stream); }, {"h is bf16", "f32"});
  const ConstTensorView gaps(reinterpret_cast<const std::byte*>(c.gate.data()), DType::f32, {2, 6}, {12, 1});
  expect_refused([&] { swiglu(gaps, gaps, view(c.h, {2, 6}), c.stream); }, {"gate", "[12, 1]", "contiguous"});
}

}  // namespace
}  // namespace periplus::kernels
