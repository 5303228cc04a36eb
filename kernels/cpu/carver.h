#pragma once

#include <cstddef>
#include <cstdint>

namespace periplus::kernels::cpu {
namespace {  // for code of different instruction sets

/// Takes arrays from scratch memory one after another, each from a cache line on; without memory it only counts.
class Carver {
 public:
  explicit Carver(std::byte* memory) : memory_(memory) {}
  template <class T = float>
  T* take(std::int64_t count) {
    std::byte* taken = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += (count * static_cast<std::int64_t>(sizeof(T)) + kLine - 1) & -kLine;
    return reinterpret_cast<T*>(taken);
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  static constexpr std::int64_t kLine = 64;
  std::byte* memory_;
  std::int64_t bytes_ = 0;
};

}  // namespace
}  // namespace periplus::kernels::cpu
