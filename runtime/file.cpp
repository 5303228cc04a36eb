// Whole-file reads, crash-safe writes and digests over POSIX calls.
#include "runtime/file.h"

#include <cerrno>
#include <memory>
#include <vector>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "runtime/error.h"
#include "runtime/file_descriptor.h"

namespace periplus {
namespace {

constexpr std::size_t kReadBytes = std::size_t{1} << 20;

std::size_t read_some(const FileDescriptor& file, char* to, std::size_t limit, const std::filesystem::path& path) {
  for (;;) {
    const ssize_t got = ::read(file.get(), to, limit);
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno != EINTR) throw_system_error("read", path);
  }
}

std::string hexadecimal(XXH128_hash_t hash) { return fmt::format("{:016x}{:016x}", hash.high64, hash.low64); }

std::filesystem::path folder_of(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.parent_path();
  return folder.empty() ? std::filesystem::path(".") : folder;
}

}  // namespace

std::string read_file(const std::filesystem::path& path, std::uint64_t limit_bytes) {
  std::uint64_t size = 0;
  const FileDescriptor file = open_regular_file(path, size);
  const auto too_large = [&](std::uint64_t bytes) {
    return InvalidArgument(fmt::format("file: {} has {} bytes or more; the limit is {}", path.string(), bytes, limit_bytes));
  };
  if (size > limit_bytes) throw too_large(size);
  // Files of /proc say size 0 and a file may grow: read to the end, whatever the size was.
  std::string contents(static_cast<std::size_t>(size) + 1, '\0');
  std::size_t filled = 0;
  while (const std::size_t got = read_some(file, contents.data() + filled, contents.size() - filled, path)) {
    filled += got;
    if (filled > limit_bytes) throw too_large(filled);
    if (filled == contents.size()) contents.resize(filled + kReadBytes);
  }
  contents.resize(filled);
  return contents;
}

void write_file_atomically(const std::filesystem::path& path, std::string_view contents) {
  AtomicFileWriter writer(path);
  writer.append(contents.data(), contents.size());
  writer.commit();
}

void create_folders(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw DeviceError(fmt::format("file: cannot create the folder {}: {}; name another", path.string(), error.message()));
}

void sync_directory(const std::filesystem::path& path) {
  const FileDescriptor folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() < 0) throw_system_error("open folder", path);
  if (::fsync(folder.get()) != 0) throw_system_error("fsync folder", path);
}

void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_system_error(fmt::format("rename to {}", to.string()), from);
  sync_directory(folder_of(to));
  if (folder_of(from) != folder_of(to)) sync_directory(folder_of(from));
}

std::string digest_of_file(const std::filesystem::path& path) {
  std::uint64_t size = 0;
  const FileDescriptor file = open_regular_file(path, size);
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(), XXH3_freeState);
  if (state == nullptr || XXH3_128bits_reset(state.get()) != XXH_OK) throw DeviceError("digest: no memory for the hash state");
  std::vector<char> block(kReadBytes);
  while (const std::size_t got = read_some(file, block.data(), block.size(), path)) {
    if (XXH3_128bits_update(state.get(), block.data(), got) != XXH_OK) throw InternalError("digest: XXH3 update failed");
  }
  return hexadecimal(XXH3_128bits_digest(state.get()));
}

std::string digest_of_bytes(std::string_view bytes) { return hexadecimal(XXH3_128bits(bytes.data(), bytes.size())); }

std::uint64_t hash64(std::string_view bytes, std::uint64_t seed) { return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed); }

FileDescriptor::~FileDescriptor() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void throw_system_error(std::string_view call, const std::filesystem::path& path) {
  const std::error_code reason(errno, std::generic_category());
  throw DeviceError(fmt::format("file: {} failed for {}: {}", call, path.string(), reason.message()));
}

FileDescriptor open_regular_file(const std::filesystem::path& path, std::uint64_t& size) {
  // O_NONBLOCK: opening a FIFO must not wait for its writer.
  FileDescriptor file(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  if (file.get() < 0) throw_system_error("open", path);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) throw_system_error("fstat", path);
  if (!S_ISREG(status.st_mode)) throw DeviceError(fmt::format("file: {} is not a regular file", path.string()));
  size = static_cast<std::uint64_t>(status.st_size);
  return file;
}

std::optional<FileDescriptor> try_lock(const std::filesystem::path& path) {
  FileDescriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));  // NFS locks only what may be written
  if (file.get() < 0 && errno == EACCES) file = FileDescriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));  // somebody else's
  if (file.get() < 0) throw_system_error("open", path);
  if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return std::nullopt;
  return file;
}

AtomicFileWriter::AtomicFileWriter(std::filesystem::path path) : path_(std::move(path)) {
  const std::string name = path_.filename().string();
  if (name.empty() || name == "." || name == "..") {
    throw InvalidArgument(fmt::format("file: '{}' does not name a file to write", path_.string()));
  }
  // rename would put a plain file in the place of a device such as /dev/null, for everyone on this machine.
  struct stat status {};
  if (::stat(path_.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
    throw InvalidArgument(fmt::format("file: {} is a {} and cannot be replaced by a file; name another", path_.string(),
                                      S_ISDIR(status.st_mode) ? "folder" : "device, pipe or socket"));
  }
  // Process and try number make the name unique; O_EXCL makes sure, and does not follow a planted link.
  for (int attempt = 0; attempt < 100; ++attempt) {
    temporary_ = folder_of(path_) / fmt::format(".{}.{}.{}.tmp", name, ::getpid(), attempt);
    file_ = FileDescriptor(::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (file_.get() >= 0) return;
    if (errno != EEXIST) break;
  }
  throw_system_error("create temporary file", temporary_);
}

AtomicFileWriter::~AtomicFileWriter() {
  if (file_.get() >= 0) ::unlink(temporary_.c_str());
}

void AtomicFileWriter::append(const void* data, std::size_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(file_.get(), from, bytes);
    if (written < 0) {
      if (errno == EINTR) continue;
      throw_system_error("write", temporary_);
    }
    from += written;
    bytes -= static_cast<std::size_t>(written);
  }
}

void AtomicFileWriter::commit() {
  if (::fsync(file_.get()) != 0) throw_system_error("fsync", temporary_);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    throw_system_error(fmt::format("rename to {}", path_.string()), temporary_);
  }
  file_ = FileDescriptor();
  sync_directory(folder_of(path_));
}

}  // namespace periplus
