#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "runtime/dtype.h"
#include "runtime/memory.h"

namespace periplus {

inline constexpr int kMaxDims = 4;

/// Sizes or strides of up to four dimensions. Strides count elements.
struct Extents {
  std::array<std::int64_t, kMaxDims> value{};
  int dims = 0;

  Extents() = default;
  Extents(std::initializer_list<std::int64_t> list);
  explicit Extents(std::span<const std::int64_t> list);
  std::int64_t operator[](int dim) const { return value[static_cast<std::size_t>(dim)]; }
  std::int64_t& operator[](int dim) { return value[static_cast<std::size_t>(dim)]; }
  std::int64_t product() const noexcept;
  friend bool operator==(const Extents&, const Extents&) = default;
};

std::string to_string(const Extents& extents);
/// Row-major strides of a dense tensor.
Extents dense_strides(const Extents& shape);

/// Non-owning, strided. Byte is `std::byte` (TensorView, writable) or `const std::byte` (ConstTensorView).
template <class Byte>
class BasicTensorView {
 public:
  BasicTensorView() = default;
  BasicTensorView(Byte* data, DType dtype, const Extents& shape) : BasicTensorView(data, dtype, shape, dense_strides(shape)) {}
  BasicTensorView(Byte* data, DType dtype, const Extents& shape, const Extents& strides)
      : data_(data), dtype_(dtype), shape_(shape), strides_(strides) {}
  /// A writable view is also a read-only one.
  template <class Other>
  requires(std::is_const_v<Byte> && !std::is_const_v<Other>) BasicTensorView(const BasicTensorView<Other>& other)  // implicit on purpose
      : BasicTensorView(other.bytes(), other.dtype(), other.shape(), other.strides()) {}

  Byte* bytes() const noexcept { return data_; }
  DType dtype() const noexcept { return dtype_; }
  const Extents& shape() const noexcept { return shape_; }
  const Extents& strides() const noexcept { return strides_; }
  int dims() const noexcept { return shape_.dims; }
  std::int64_t size(int dim) const { return shape_[dim]; }
  std::int64_t stride(int dim) const { return strides_[dim]; }
  std::int64_t elements() const noexcept { return shape_.product(); }
  std::size_t size_bytes() const noexcept { return static_cast<std::size_t>(elements()) * size_of(dtype_); }
  /// Dense row-major (dimensions of size 1 do not matter).
  bool contiguous() const noexcept;

  /// The element pointer. Throws InvalidArgument if T is not the dtype.
  template <class T>
  auto data() const {
    using Pointer = std::conditional_t<std::is_const_v<Byte>, const T*, T*>;
    if (dtype_of<T> != dtype_) throw_unsupported_dtype(dtype_, "tensor data");
    return reinterpret_cast<Pointer>(data_);
  }
  /// All elements of a contiguous tensor.
  template <class T>
  auto span() const {
    return std::span(data<T>(), static_cast<std::size_t>(elements()));
  }
  /// Sub-range [begin, begin+count) of one dimension.
  BasicTensorView slice(int dim, std::int64_t begin, std::int64_t count) const;
  /// Same elements under another shape; only for contiguous tensors.
  BasicTensorView reshape(const Extents& shape) const;

 private:
  Byte* data_ = nullptr;
  DType dtype_ = DType::f32;
  Extents shape_;
  Extents strides_;
};

using TensorView = BasicTensorView<std::byte>;
using ConstTensorView = BasicTensorView<const std::byte>;

/// Owner of a dense tensor. Move-only; contents start uninitialised unless `zeros` made it.
class Tensor {
 public:
  Tensor() = default;
  Tensor(const Extents& shape, DType dtype, const Memory& memory);
  /// On a device the host waits until they are there.
  static Tensor zeros(const Extents& shape, DType dtype, const Memory& memory);

  TensorView view() const { return TensorView(buffer_.data(), dtype_, shape_); }
  operator TensorView() const { return view(); }
  operator ConstTensorView() const { return view(); }
  DType dtype() const noexcept { return dtype_; }
  const Extents& shape() const noexcept { return shape_; }
  bool empty() const noexcept { return shape_.dims == 0; }

 private:
  Buffer buffer_;
  DType dtype_ = DType::f32;
  Extents shape_;
};

/// Element-wise copy in host memory with dtype conversion (f64, f32, bf16, f16) between tensors of equal shape and any strides.
void copy(ConstTensorView source, TensorView destination);
/// destination += source, same rules.
void add(ConstTensorView source, TensorView destination);
void fill_zero(TensorView tensor);

/// Dense copies across the bus, for setting up and for results: the host waits until `stream` has passed. `memory` may also be
/// the host's, and the view given to to_host on a CPU stream too: both only copy then.
/// Errors: InvalidArgument if stream and memory are on different devices, or if `device` is not contiguous.
Tensor to_device(ConstTensorView host, const Memory& memory, StreamView stream);
Tensor to_host(ConstTensorView device, StreamView stream);

}  // namespace periplus
