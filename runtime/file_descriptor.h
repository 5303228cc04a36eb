// Owned file descriptors and the crash-safe writer that file.cpp and safetensors.cpp share.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>

namespace periplus {

class FileDescriptor {
 public:
  explicit FileDescriptor(int descriptor = -1) noexcept : descriptor_(descriptor) {}
  FileDescriptor(FileDescriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~FileDescriptor();
  int get() const noexcept { return descriptor_; }

 private:
  int descriptor_;
};

/// Throws DeviceError with the reason in errno.
[[noreturn]] void throw_system_error(std::string_view call, const std::filesystem::path& path);

/// Opens for reading without ever blocking; a folder, FIFO or device is refused. Sets `size`.
FileDescriptor open_regular_file(const std::filesystem::path& path, std::uint64_t& size);

/// The lock of a file, which is made if it is not there; it ends with the descriptor, or with the process. Nothing if somebody else
/// has it. On a file system that has no locks everybody gets it.
std::optional<FileDescriptor> try_lock(const std::filesystem::path& path);

/// Writes a temporary file beside `path`; `commit` makes it durable under that name. Destroyed before that, it leaves no trace.
class AtomicFileWriter {
 public:
  explicit AtomicFileWriter(std::filesystem::path path);
  AtomicFileWriter(const AtomicFileWriter&) = delete;
  AtomicFileWriter& operator=(const AtomicFileWriter&) = delete;
  ~AtomicFileWriter();
  void append(const void* data, std::size_t bytes);
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  FileDescriptor file_;
};

}  // namespace periplus
