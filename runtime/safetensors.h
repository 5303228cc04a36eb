#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/tensor.h"

namespace periplus {

class AtomicFileWriter;

struct TensorInfo {
  DType dtype;
  std::vector<std::int64_t> shape;  ///< Any number of dimensions up to 8; 0-d is a scalar.
  std::uint64_t offset = 0;         ///< From the start of the file.
  std::uint64_t bytes = 0;

  bool has_shape(const Extents& extents) const {
    return std::equal(shape.begin(), shape.end(), extents.value.begin(), extents.value.begin() + extents.dims);
  }
};

/// Read-only memory map of a safetensors file (u64 header length, JSON header, data).
/// Every size is checked before anything is allocated: header within the file and at most 64 MiB, known dtype, shape
/// product without overflow equal to the byte range, ranges inside the data, no overlap, no gap, no duplicate name.
/// While it is mapped the file must not be truncated or rewritten in place; write_safetensors replaces it and is safe.
/// Errors: InvalidArgument naming file and tensor for a malformed file; DeviceError when it cannot be opened or mapped.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

  const std::map<std::string, TensorInfo>& tensors() const noexcept { return tensors_; }
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
  bool contains(const std::string& name) const { return tensors_.contains(name); }
  /// View into the map (up to 4 dimensions). InvalidArgument if there is no such tensor. Files of others, and files of mixed
  /// dtypes, may hold it unaligned: `copy` it into a Tensor before computing with it.
  ConstTensorView view(const std::string& name) const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

using NamedTensors = std::vector<std::pair<std::string, ConstTensorView>>;

/// Writes `tensors` (contiguous) to `path`: to a temporary file beside it, fsync, rename, fsync of the folder, so that
/// the name always holds an old or a new complete file. Data starts 8-byte aligned. DeviceError on any failed call.
void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});

struct TensorOutline {
  std::string name;
  DType dtype;
  Extents shape;
};

/// The same for tensors that are not all in memory at once. Destroyed before commit(), it leaves no trace.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorOutline> tensors,
                    const std::map<std::string, std::string>& metadata = {});
  ~SafetensorsWriter();

  /// The next of the tensors. InvalidArgument unless it is contiguous and of the outline's type and shape.
  void append(ConstTensorView tensor);
  /// InternalError before the last tensor.
  void commit();

 private:
  std::string path_;
  std::vector<TensorOutline> tensors_;
  std::size_t next_ = 0;
  std::unique_ptr<AtomicFileWriter> file_;
};

}  // namespace periplus
