// Memory brought to the second-level cache ahead of its use. Included by level_<unit>.cpp.
//
// Rows of operands and results are short pieces far apart, which the hardware does not foresee, and whoever packs or stores them would
// wait for each. So what comes next is fetched a few lines at a time between tile products: many fetches at once would hold up the
// tile loads.
#pragma once

#include "kernels/cpu/lanes.h"

namespace periplus::kernels::cpu {
namespace {

class Fetch {
 public:
  /// `rows` rows of `bytes` bytes, `stride` bytes apart. What does not fit the list is not fetched.
  void add(const void* first, std::int64_t stride, std::int64_t rows, std::int64_t bytes) {
    if (rows <= 0 || count_ == kMost) return;
    const std::int64_t lines = (bytes + kLine - 1) / kLine;
    list_[count_++] = {static_cast<const char*>(first), stride, rows, lines};
    lines_ += lines * rows;
  }
  /// Spreads the list over `calls` calls of some(), or as much of it as they may fetch.
  void start(std::int64_t calls) {
    constexpr std::int64_t kMostAtOnce = 6;
    pace_ = calls > 0 ? smaller((lines_ + calls - 1) / calls, kMostAtOnce) : 0;
    if (pace_ > 0) begin();
  }
  [[gnu::always_inline]] void some() {
    for (std::int64_t i = 0; i < pace_; ++i) {
      __builtin_prefetch(at_, 0, 2);
      at_ += kLine;
      if (--left_ == 0) next();
    }
  }

 private:
  struct Rows {
    const char* at;
    std::int64_t stride, rows, lines;
  };

  void begin() {
    at_ = list_[now_].at;
    left_ = list_[now_].lines;
  }
  [[gnu::noinline]] void next() {
    Rows& rows = list_[now_];
    rows.at += rows.stride;
    if (--rows.rows == 0 && ++now_ == count_) {
      pace_ = 0;
      left_ = 1;
      return;
    }
    begin();
  }

  static constexpr std::int64_t kLine = 64;
  static constexpr int kMost = 8;
  Rows list_[kMost];
  int count_ = 0, now_ = 0;
  std::int64_t lines_ = 0, pace_ = 0, left_ = 0;
  const char* at_ = nullptr;
};

}  // namespace
}  // namespace periplus::kernels::cpu
