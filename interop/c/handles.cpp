#include "interop/c/handles.h"

#include <algorithm>

#include <fmt/format.h>

#include "runtime/comm/process_ranks.h"
#include "runtime/error.h"

namespace periplus::interop {
namespace {

thread_local std::string last_error;

constexpr std::int32_t kHost = 1, kCuda = 2;
constexpr std::uint8_t kFloat = 2, kBfloat = 4;

}  // namespace

int fail(const std::exception& error) noexcept {
  try {
    last_error = comm::message_of(error);
    return comm::exit_code_of(error);
  } catch (const std::exception&) {
    last_error.clear();
    return PERIPLUS_FAILURE;
  }
}

void require_given(std::initializer_list<const void*> pointers) {
  if (std::ranges::find(pointers, nullptr) != pointers.end())
    throw InvalidArgument("a handle, a spec, a name or the place of a result is NULL");
}

DType dtype_of(periplus_dtype dtype, const std::string& name) {
  if (dtype.lanes == 1 && dtype.code == kBfloat && dtype.bits == 16) return DType::bf16;
  if (dtype.lanes == 1 && dtype.code == kFloat) {
    if (dtype.bits == 64) return DType::f64;
    if (dtype.bits == 32) return DType::f32;
    if (dtype.bits == 16) return DType::f16;
  }
  throw InvalidArgument(fmt::format("{}: type code {} of {} bits and {} lanes is not supported; use f64, f32, bf16 or f16", name,
                                    static_cast<int>(dtype.code), static_cast<int>(dtype.bits), dtype.lanes));
}

Device device_of(periplus_device device, const std::string& name) {
  if (device.device_type == kHost) return {};
  if (device.device_type == kCuda) return {DeviceKind::cuda, device.device_id};
  throw InvalidArgument(fmt::format("{}: device type {} is not supported; use 1 (host) or 2 (CUDA)", name, device.device_type));
}

TensorView view_of(const periplus_tensor* tensor, const std::string& name, Device device) {
  if (tensor == nullptr) return {};
  if (tensor->ndim < 1 || tensor->ndim > 3 || tensor->shape == nullptr)
    throw InvalidArgument(fmt::format("{}: has {} dimensions; they are between 1 and 3", name, tensor->ndim));
  if (const Device own = device_of(tensor->device, name); own != device)
    throw InvalidArgument(fmt::format("{}: is on {}, but this was made for {}", name, to_string(own), to_string(device)));
  const std::span<const std::int64_t> sizes(tensor->shape, static_cast<std::size_t>(tensor->ndim));
  const Extents shape(sizes);
  Extents strides = dense_strides(shape);
  if (tensor->strides != nullptr) strides = Extents(std::span<const std::int64_t>(tensor->strides, sizes.size()));
  return {static_cast<std::byte*>(tensor->data) + tensor->byte_offset, dtype_of(tensor->dtype, name), shape, strides};
}

TensorView heads_view_of(const periplus_tensor* tensor, const std::string& name, Device device) {
  const TensorView view = view_of(tensor, name, device);
  if (tensor == nullptr) return view;
  Extents shape = view.shape(), strides = view.strides();
  if (shape.dims < 3) {
    shape.value[static_cast<std::size_t>(shape.dims++)] = 1;
    strides.value[static_cast<std::size_t>(strides.dims++)] = 1;
  }
  if (shape.dims < 3) {  // [heads] is one row
    shape = {1, shape[0], 1};
    strides = {shape[1] * strides[0], strides[0], 1};
  }
  return {view.bytes(), view.dtype(), shape, strides};
}

Stream stream_of(Device device, void* stream) {
  if (device.kind == DeviceKind::cpu) return {};
  return Stream(device, std::shared_ptr<void>(stream, [](void*) {}));
}

void parse(launch::OptionTable& table, const char** options, std::int64_t count) {
  if (count < 0 || (count > 0 && (options == nullptr || std::find(options, options + count, nullptr) != options + count)))
    throw InvalidArgument(fmt::format("options: there are {} of them, or one is NULL", count));
  const std::vector<std::string> flags(options, options + count);
  for (const std::string& flag : flags) {
    const std::string name = flag.substr(0, flag.find('='));
    for (const char* const other : {"--help", "-h", "--json", "--config", "--set", "--dump-config"}) {
      if (name == other) throw InvalidArgument(fmt::format("options: {} is for the command line; give flags and values only", other));
    }
  }
  table.parse(flags);
}

std::vector<std::int64_t> documents_of(const int64_t* cu_seqlens, std::int64_t documents) {
  if (cu_seqlens == nullptr || documents < 1)
    throw InvalidArgument(fmt::format("cu_seqlens: there are borders of {} documents; give at least [0, tokens] for one", documents));
  return {cu_seqlens, cu_seqlens + documents + 1};
}

std::int64_t write_rows(const SequenceLayout& layout, int rank, int64_t* rows) {
  if (rows != nullptr) std::ranges::copy(layout.global_rows(rank), rows);
  return layout.rows_of(rank);
}

}  // namespace periplus::interop

const char* periplus_error(void) { return periplus::interop::last_error.c_str(); }
int periplus_abi(void) { return PERIPLUS_ABI; }
const char* periplus_version(void) { return PERIPLUS_VERSION; }
