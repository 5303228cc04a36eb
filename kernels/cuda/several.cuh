#pragma once

#include <type_traits>

/// Wide accesses.
namespace periplus::kernels::cuda {

/// `count` consecutive elements as one access of up to 16 bytes.
template <class T, int count>
struct alignas(sizeof(T) * count < 16 ? sizeof(T) * count : 16) Several {
  T value[count];
};
template <int count, class T>
__device__ __forceinline__ Several<std::remove_const_t<T>, count> load(T* from) {
  return *reinterpret_cast<const Several<std::remove_const_t<T>, count>*>(from);
}
template <int count, class T>
__device__ __forceinline__ void store(const Several<T, count>& values, T* to) {
  *reinterpret_cast<Several<T, count>*>(to) = values;
}

}  // namespace periplus::kernels::cuda
