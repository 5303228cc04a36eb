// The product of packed tiles: 2 x 2 accumulators over any number of steps. Included by level_<unit>.cpp after a unit.
//
// Four accumulators (tiles 0 to 3), two A tiles (4, 5) and two B tiles (6, 7) are all eight registers; each step is four
// tile products (16 cycles each) for four tile loads (8 each), so loads hide behind products if both keep flowing. They do
// not where a product ends: its sums can leave only when the last product is through (52 cycles). So sums stay in their
// registers until the next product has loaded its first operands, and then leave one by one, each just before its register
// is used again. `Pending` is where the sums of the last product belong; flush() writes them.
//
// Between any two tile products there is room for vector work that does not depend on them: the `meanwhile` argument.
#pragma once

#include <type_traits>

#include "kernels/cpu/bf16/pack.h"

namespace periplus::kernels::cpu {
namespace {

/// Which of the four tile products of a step.
template <int I>
using Product = std::integral_constant<int, I>;

struct NoWork {
  template <int I>
  [[gnu::always_inline]] void operator()(std::int64_t /*step*/, Product<I>) const {}
};

/// The accumulators and where they belong.
class Pending {
 public:
  /// `discard` takes 4 KiB of sums that nobody wants.
  explicit Pending(float* discard) : discard_(discard), to_(discard) {}

  /// Operands of a product: each step reads two tiles of A and of B side by side.
  struct Operands {
    const bfloat16 *a_first, *b_first;
    std::int64_t a_step, b_step;  ///< Elements from step to step.

    const bfloat16* a(std::int64_t step) const { return a_first + step * a_step; }
    const bfloat16* b(std::int64_t step) const { return b_first + step * b_step; }
  };

  /// sums[4 tiles: a0 b0, a0 b1, a1 b0, a1 b1] := (add ? sums : 0) + A B over `steps` >= 1 steps. After each tile product
  /// calls meanwhile(step, Product<I>), which must be always_inline. In step 0, the sums of the product before are in memory
  /// up to accumulator I.
  template <class On, class Work = NoWork>
  [[gnu::always_inline]] void multiply(bool add, const On& on, std::int64_t steps, float* sums, Work&& meanwhile = {}) {
    const bfloat16 *a = on.a(0), *b = on.b(0);
    Unit::load_streamed<4>(a);
    Unit::load<6>(b);
    Unit::load<7>(b + kTile);
    Unit::load_streamed<5>(a + kTile);
    exchange<0, 4, 6>(add, sums, meanwhile);
    exchange<1, 4, 7>(add, sums, meanwhile);
    exchange<2, 5, 6>(add, sums, meanwhile);
    exchange<3, 5, 7>(add, sums, meanwhile);
    to_ = sums;
    for (std::int64_t step = 1; step < steps; ++step) {
      a = on.a(step);
      b = on.b(step);
      Unit::fence();  // what the work wrote may be read by this step
      Unit::load_streamed<4>(a);
      Unit::load<6>(b);
      Unit::multiply<0, 4, 6>();
      meanwhile(step, Product<0>{});
      Unit::load<7>(b + kTile);
      Unit::multiply<1, 4, 7>();
      meanwhile(step, Product<1>{});
      Unit::load_streamed<5>(a + kTile);
      Unit::multiply<2, 5, 6>();
      meanwhile(step, Product<2>{});
      Unit::multiply<3, 5, 7>();
      meanwhile(step, Product<3>{});
    }
  }

  void flush() {
    Unit::store<0>(to_);
    Unit::store<1>(to_ + kSums);
    Unit::store<2>(to_ + 2 * kSums);
    Unit::store<3>(to_ + 3 * kSums);
    to_ = discard_;
  }
  /// Forgets the sums.
  void drop() { to_ = discard_; }

 private:
  static constexpr std::int64_t kSums = 256;  // of an accumulator

  template <int C, int A, int B, class Work>
  [[gnu::always_inline]] void exchange(bool add, float* sums, Work&& meanwhile) {
    Unit::store<C>(to_ + C * kSums);
    if (add) {
      Unit::load<C>(sums + C * kSums);
    } else {
      Unit::zero<C>();
    }
    Unit::multiply<C, A, B>();
    meanwhile(0, Product<C>{});
  }

  float* discard_;
  float* to_;
};

}  // namespace
}  // namespace periplus::kernels::cpu
