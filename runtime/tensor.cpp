// Shapes, views and the element-wise operations that every layer needs (copy, add, zero).
#include "runtime/tensor.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus {
namespace {

std::int64_t element_bytes(DType dtype) { return static_cast<std::int64_t>(size_of(dtype)); }

std::size_t checked_bytes(const Extents& shape, DType dtype) {
  std::size_t bytes = size_of(dtype);
  for (int dim = 0; dim < shape.dims; ++dim) {
    if (shape[dim] < 0) throw InvalidArgument(fmt::format("tensor: shape {} has a negative size", to_string(shape)));
    if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(shape[dim]), &bytes)) {
      throw InvalidArgument(fmt::format("tensor: shape {} of {} is too large to address", to_string(shape), to_string(dtype)));
    }
  }
  return bytes;
}

// Elements are loaded and stored bytewise: a view into a file need not be aligned for its type.
template <class T>
T load(const std::byte* from) noexcept {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <class T>
void store(std::byte* to, T value) noexcept {
  std::memcpy(to, &value, sizeof(T));
}

/// A float rounded to odd: rounding it to nearest in fewer bits gives what rounding `value` itself would, whereas two
/// roundings to nearest miss ties.
float rounded_to_odd(double value) noexcept {
  const float nearest = static_cast<float>(value);
  const double back = nearest;
  std::uint32_t word = std::bit_cast<std::uint32_t>(nearest);
  const double magnitude = value < 0 ? -value : value;
  const double back_magnitude = back < 0 ? -back : back;
  word -= back_magnitude > magnitude ? 1u : 0u;
  word |= back != value ? 1u : 0u;
  return std::bit_cast<float>(word);
}

template <class To, class From>
To convert(From value) noexcept {
  if constexpr (sizeof(To) == 2) {
    if constexpr (std::is_same_v<From, double>)
      return To(rounded_to_odd(value));
    else
      return To(static_cast<float>(value));
  } else {
    return static_cast<To>(value);
  }
}

/// Equal-shaped operands with unit dimensions dropped and neighbouring dimensions merged where both sides allow it.
struct Pairing {
  std::array<std::int64_t, kMaxDims> size{1, 1, 1, 1};
  std::array<std::int64_t, kMaxDims> source_bytes{};  ///< Strides; the last dimension is the inner loop.
  std::array<std::int64_t, kMaxDims> destination_bytes{};
};

Pairing pair_up(const ConstTensorView& source, const TensorView& destination) {
  const std::int64_t source_element = element_bytes(source.dtype());
  const std::int64_t destination_element = element_bytes(destination.dtype());
  Pairing pairing;
  std::size_t at = kMaxDims - 1;
  pairing.source_bytes[at] = source_element;
  pairing.destination_bytes[at] = destination_element;
  bool first = true;
  for (int dim = source.dims() - 1; dim >= 0; --dim) {
    const std::int64_t size = source.size(dim);
    if (size == 1) continue;
    const std::int64_t source_stride = source.stride(dim) * source_element;
    const std::int64_t destination_stride = destination.stride(dim) * destination_element;
    if (!first && source_stride == pairing.source_bytes[at] * pairing.size[at] &&
        destination_stride == pairing.destination_bytes[at] * pairing.size[at]) {
      pairing.size[at] *= size;
      continue;
    }
    if (!first) --at;
    first = false;
    pairing.size[at] = size;
    pairing.source_bytes[at] = source_stride;
    pairing.destination_bytes[at] = destination_stride;
  }
  return pairing;
}

constexpr std::int64_t kParallelBytes = std::int64_t{1} << 20;
constexpr std::int64_t kChunkElements = std::int64_t{1} << 15;

/// Calls run(source, destination, count) for pieces of the inner dimension, in parallel where that pays.
template <class Run>
void for_each_run(const ConstTensorView& source, const TensorView& destination, const Run& run) {
  const Pairing pairing = pair_up(source, destination);
  const auto& size = pairing.size;
  const std::int64_t chunks = (size[3] + kChunkElements - 1) / kChunkElements;
  const std::int64_t runs = size[0] * size[1] * size[2] * chunks;
  const std::int64_t bytes = source.elements() * std::max(element_bytes(source.dtype()), element_bytes(destination.dtype()));
  const std::byte* const from = source.bytes();
  std::byte* const to = destination.bytes();
#pragma omp parallel for schedule(static) if (bytes > kParallelBytes)
  for (std::int64_t index = 0; index < runs; ++index) {
    const std::int64_t begin = index % chunks * kChunkElements;
    const std::int64_t row = index / chunks;
    const std::array<std::int64_t, kMaxDims> at = {row / size[2] / size[1], row / size[2] % size[1], row % size[2], begin};
    std::int64_t source_offset = 0;
    std::int64_t destination_offset = 0;
    for (std::size_t dim = 0; dim < kMaxDims; ++dim) {
      source_offset += at[dim] * pairing.source_bytes[dim];
      destination_offset += at[dim] * pairing.destination_bytes[dim];
    }
    run(from + source_offset, pairing.source_bytes[3], to + destination_offset, pairing.destination_bytes[3],
        std::min(kChunkElements, size[3] - begin));
  }
}

template <class From, class To, class Combine>
void transform(const ConstTensorView& source, const TensorView& destination, const Combine& combine) {
  constexpr auto kFrom = static_cast<std::int64_t>(sizeof(From));
  constexpr auto kTo = static_cast<std::int64_t>(sizeof(To));
  for_each_run(source, destination,
               [&](const std::byte* from, std::int64_t from_step, std::byte* to, std::int64_t to_step, std::int64_t count) {
                 if (from_step == kFrom && to_step == kTo) {  // constant steps let the compiler vectorise
                   for (std::int64_t i = 0; i < count; ++i) store<To>(to + i * kTo, combine(load<From>(from + i * kFrom), to + i * kTo));
                 } else {
                   for (std::int64_t i = 0; i < count; ++i)
                     store<To>(to + i * to_step, combine(load<From>(from + i * from_step), to + i * to_step));
                 }
               });
}

template <std::int64_t kSize>
void copy_elements(const ConstTensorView& source, const TensorView& destination) {
  for_each_run(source, destination,
               [](const std::byte* from, std::int64_t from_step, std::byte* to, std::int64_t to_step, std::int64_t count) {
                 if (from_step == kSize && to_step == kSize) {
                   std::memcpy(to, from, static_cast<std::size_t>(count * kSize));
                 } else {
                   for (std::int64_t i = 0; i < count; ++i) std::memcpy(to + i * to_step, from + i * from_step, kSize);
                 }
               });
}

void copy_same_dtype(const ConstTensorView& source, const TensorView& destination) {
  switch (size_of(source.dtype())) {
    case 8:
      return copy_elements<8>(source, destination);
    case 4:
      return copy_elements<4>(source, destination);
    case 2:
      return copy_elements<2>(source, destination);
    default:
      return copy_elements<1>(source, destination);
  }
}

/// True if there is anything to do.
bool check_operands(const ConstTensorView& source, const TensorView& destination, std::string_view operation) {
  if (source.shape() != destination.shape()) {
    throw InvalidArgument(fmt::format("{}: source shape {} differs from destination shape {}", operation, to_string(source.shape()),
                                      to_string(destination.shape())));
  }
  if (source.elements() == 0) return false;
  if (source.bytes() == nullptr || destination.bytes() == nullptr) {
    throw InvalidArgument(fmt::format("{}: {} of shape {} has no memory", operation, source.bytes() == nullptr ? "source" : "destination",
                                      to_string(source.shape())));
  }
  return true;
}

}  // namespace

Extents::Extents(std::initializer_list<std::int64_t> list) : Extents(std::span(list.begin(), list.size())) {}

Extents::Extents(std::span<const std::int64_t> list) {
  if (list.size() > kMaxDims) {
    throw InvalidArgument(
        fmt::format("tensor: [{}] has {} dimensions; at most {} are supported", fmt::join(list, ", "), list.size(), kMaxDims));
  }
  std::copy(list.begin(), list.end(), value.begin());
  dims = static_cast<int>(list.size());
}

std::int64_t Extents::product() const noexcept {
  std::int64_t result = 1;
  for (int dim = 0; dim < dims; ++dim) result *= (*this)[dim];
  return result;
}

std::string to_string(const Extents& extents) {
  return fmt::format("[{}]", fmt::join(extents.value.begin(), extents.value.begin() + extents.dims, ", "));
}

Extents dense_strides(const Extents& shape) {
  Extents strides = shape;
  std::int64_t stride = 1;
  for (int dim = shape.dims - 1; dim >= 0; --dim) {
    strides[dim] = stride;
    stride *= shape[dim];
  }
  return strides;
}

template <class Byte>
bool BasicTensorView<Byte>::contiguous() const noexcept {
  if (elements() == 0) return true;
  std::int64_t stride = 1;
  for (int dim = dims() - 1; dim >= 0; --dim) {
    if (size(dim) != 1 && strides_[dim] != stride) return false;
    stride *= size(dim);
  }
  return true;
}

template <class Byte>
BasicTensorView<Byte> BasicTensorView<Byte>::slice(int dim, std::int64_t begin, std::int64_t count) const {
  if (dim < 0 || dim >= dims()) {
    throw InvalidArgument(fmt::format("tensor slice: shape {} has no dimension {}", to_string(shape_), dim));
  }
  if (begin < 0 || count < 0 || begin > size(dim) || count > size(dim) - begin) {
    throw InvalidArgument(
        fmt::format("tensor slice: {} elements from {} on are not inside dimension {} of shape {}", count, begin, dim, to_string(shape_)));
  }
  BasicTensorView part = *this;
  part.shape_[dim] = count;
  if (data_ != nullptr) part.data_ += begin * stride(dim) * element_bytes(dtype_);
  return part;
}

template <class Byte>
BasicTensorView<Byte> BasicTensorView<Byte>::reshape(const Extents& shape) const {
  if (!contiguous()) {
    throw InvalidArgument(
        fmt::format("tensor reshape: shape {} with strides {} is not contiguous; copy it first", to_string(shape_), to_string(strides_)));
  }
  if (shape.product() != elements()) {
    throw InvalidArgument(
        fmt::format("tensor reshape: {} has {} elements, {} has {}", to_string(shape_), elements(), to_string(shape), shape.product()));
  }
  return BasicTensorView(data_, dtype_, shape);
}

template class BasicTensorView<std::byte>;
template class BasicTensorView<const std::byte>;

Tensor::Tensor(const Extents& shape, DType dtype, const Memory& memory)
    : buffer_(checked_bytes(shape, dtype), memory), dtype_(dtype), shape_(shape) {}

Tensor Tensor::zeros(const Extents& shape, DType dtype, const Memory& memory) {
  Tensor tensor(shape, dtype, memory);
  if (memory.device().kind == DeviceKind::cuda) {
    const Stream stream = cuda::make_stream(memory.device().index);
    cuda::fill_bytes(tensor.view().bytes(), 0, tensor.view().size_bytes(), stream);
    cuda::synchronize(stream);
  } else {
    fill_zero(tensor);
  }
  return tensor;
}

void copy(ConstTensorView source, TensorView destination) {
  if (!check_operands(source, destination, "copy")) return;
  if (source.dtype() == destination.dtype()) return copy_same_dtype(source, destination);
  visit_dtype<double, float, bfloat16, float16>(source.dtype(), "copy with conversion", [&]<class From>() {
    visit_dtype<double, float, bfloat16, float16>(destination.dtype(), "copy with conversion", [&]<class To>() {
      transform<From, To>(source, destination, [](From value, const std::byte*) { return convert<To>(value); });
    });
  });
}

void add(ConstTensorView source, TensorView destination) {
  if (!check_operands(source, destination, "add")) return;
  visit_dtype<double, float, bfloat16, float16>(source.dtype(), "add", [&]<class From>() {
    visit_dtype<double, float, bfloat16, float16>(destination.dtype(), "add", [&]<class To>() {
      // One rounding, in the wider type: f32 += f64 sums in f64.
      constexpr bool kDouble = std::is_same_v<From, double> || std::is_same_v<To, double>;
      using Sum = std::conditional_t<kDouble, double, float>;
      transform<From, To>(source, destination, [](From value, const std::byte* to) {
        return convert<To>(static_cast<Sum>(load<To>(to)) + static_cast<Sum>(value));
      });
    });
  });
}

void fill_zero(TensorView tensor) {
  if (tensor.elements() == 0) return;
  if (tensor.contiguous()) {
    std::memset(tensor.bytes(), 0, tensor.size_bytes());
    return;
  }
  for (std::int64_t i = 0; i < tensor.size(0); ++i) {
    const TensorView part = tensor.slice(0, i, 1);
    Extents shape = part.shape();
    Extents strides = part.strides();
    std::copy(shape.value.begin() + 1, shape.value.end(), shape.value.begin());
    std::copy(strides.value.begin() + 1, strides.value.end(), strides.value.begin());
    shape.value.back() = strides.value.back() = 0;
    --shape.dims;
    --strides.dims;
    fill_zero(TensorView(part.bytes(), part.dtype(), shape, strides));
  }
}

Tensor to_device(ConstTensorView host, const Memory& memory, StreamView stream) {
  if (memory.device() != stream.device()) {
    throw InvalidArgument(fmt::format("to_device: the memory is on {}, but the stream on {}; use a stream of the memory's device",
                                      to_string(memory.device()), to_string(stream.device())));
  }
  if (memory.device().kind == DeviceKind::cuda && !host.contiguous()) return to_device(to_host(host, Stream()), memory, stream);
  Tensor tensor(host.shape(), host.dtype(), memory);
  if (memory.device().kind == DeviceKind::cpu) {
    copy(host, tensor);
    return tensor;
  }
  cuda::copy_bytes(tensor.view().bytes(), host.bytes(), host.size_bytes(), stream);
  cuda::synchronize(stream);
  return tensor;
}

Tensor to_host(ConstTensorView device, StreamView stream) {
  Tensor tensor(device.shape(), device.dtype(), Memory());
  if (stream.device().kind == DeviceKind::cpu) {
    copy(device, tensor);
    return tensor;
  }
  if (!device.contiguous()) {
    throw InvalidArgument(fmt::format("to_host: shape {} with strides {} is not contiguous; copy it on the device first",
                                      to_string(device.shape()), to_string(device.strides())));
  }
  cuda::copy_bytes(tensor.view().bytes(), device.bytes(), device.size_bytes(), stream);
  cuda::synchronize(stream);
  return tensor;
}

}  // namespace periplus
