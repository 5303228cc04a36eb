// Squares of 2 x 2 tiles of a product. Included by tile_products.h.
//
// Sums can be stored only when the last product is through (52 cycles): so they stay until the next square has loaded its first operands,
// and leave one by one. What the vector unit does with a square it does while the tile unit makes the next one, a part after each product.
#pragma once

#include "kernels/cpu/bf16/pack.h"
#include "kernels/cpu/linear/rows.h"

namespace periplus::kernels::cpu {
namespace {

/// Tiles of up to 2 x 2 of a product.
struct Operands {
  const bfloat16 *a, *b;
  std::int64_t a_next, b_next;  ///< From one tile to that of the next rows or columns.
  std::int64_t a_step, a_row_bytes;
  std::int64_t steps;  ///< Of 32 of the depth. Tiles of b follow each other.
};

/// What is done with a square: part() is called kParts times, each time for the next two rows.
template <class Part>
class SquareWork {
 public:
  static constexpr std::int64_t kParts = 16;

  void start(const Part& part) {
    part_ = part;
    left_ = kParts;
  }
  /// Calls of some() that it shall take.
  [[gnu::always_inline]] void spread(std::int64_t calls) { pace_ = calls > 0 ? (kParts + calls - 1) / calls : 0; }
  [[gnu::always_inline]] void some() {
    for (std::int64_t n = pace_; n > 0 && left_ > 0; --n, --left_) part_();
  }
  [[gnu::always_inline]] void rest() {
    for (; left_ > 0; --left_) part_();
  }

 private:
  Part part_ = {};
  std::int64_t left_ = 0, pace_ = 0;
};

struct NoSquareWork {
  static void some() {}
};

/// Products of squares, one after the other.
class Squares {
 public:
  /// c = (Add ? c : 0) + a b stays in the accumulators; the square before is stored.
  template <bool Add, class Work = const NoSquareWork>
  [[gnu::always_inline]] void begin(const Operands& on, Matrix c, Work& work = kNoWork) {
    Unit::load_rows<4>(on.a, on.a_row_bytes);
    Unit::load<6>(on.b);
    Unit::load<7>(on.b + on.b_next);
    Unit::load_rows<5>(on.a + on.a_next, on.a_row_bytes);
    exchange<Add, 0>(c);
    Unit::multiply<0, 4, 6>();
    exchange<Add, 1>(c);
    Unit::multiply<1, 4, 7>();
    exchange<Add, 2>(c);
    Unit::multiply<2, 5, 6>();
    exchange<Add, 3>(c);
    Unit::multiply<3, 5, 7>();
    pending_ = c;
    Unit::fence();
    accumulate(on, 1, work);
  }
  /// Adds the steps from `first` on to the square in the accumulators.
  template <class Work = const NoSquareWork>
  [[gnu::always_inline]] static void accumulate(const Operands& on, std::int64_t first, Work& work = kNoWork) {
    for (std::int64_t step = first; step < on.steps; ++step) {
      const bfloat16 *a = on.a + step * on.a_step, *b = on.b + step * kTile;
      Unit::load_rows<4>(a, on.a_row_bytes);
      Unit::load<6>(b);
      Unit::multiply<0, 4, 6>();
      work.some();
      Unit::load<7>(b + on.b_next);
      Unit::multiply<1, 4, 7>();
      work.some();
      Unit::load_rows<5>(a + on.a_next, on.a_row_bytes);
      Unit::multiply<2, 5, 6>();
      work.some();
      Unit::multiply<3, 5, 7>();
      work.some();
    }
  }
  void flush() {
    if (pending_.data == nullptr) return;
    Unit::store_rows<0>(pending_.data, pending_.stride * 4);
    Unit::store_rows<1>(pending_.data + 16, pending_.stride * 4);
    Unit::store_rows<2>(pending_.row(16), pending_.stride * 4);
    Unit::store_rows<3>(pending_.row(16) + 16, pending_.stride * 4);
    pending_ = {nullptr, 0};
    Unit::fence();
  }

 private:
  static constexpr NoSquareWork kNoWork = {};

  template <bool Add, int C>
  [[gnu::always_inline]] void exchange(Matrix c) {
    constexpr std::int64_t kRow = C / 2 * 16, kColumn = C % 2 * 16;
    if (pending_.data != nullptr) Unit::store_rows<C>(pending_.row(kRow) + kColumn, pending_.stride * 4);
    if constexpr (Add) {
      Unit::load_rows<C>(c.row(kRow) + kColumn, c.stride * 4);
    } else {
      Unit::zero<C>();
    }
  }

  Matrix pending_ = {nullptr, 0};  ///< Where the sums of the last square belong.
};

}  // namespace
}  // namespace periplus::kernels::cpu
