// From what users name, files, folders or globs, to the files of a text.
#include "parallel/train/data/files.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <fmt/format.h>
#include <glob.h>
#include <unistd.h>

#include "runtime/error.h"

namespace periplus::train {
namespace {

namespace fs = std::filesystem;

/// Of the effective user, who will open the file (access() asks about the real one).
bool readable(const fs::path& path) { return ::faccessat(AT_FDCWD, path.c_str(), R_OK, AT_EACCESS) == 0; }

/// Without "." and "..". After a symbolic link ".." is not the folder that the text says.
fs::path plain_path(const fs::path& path) {
  const fs::path plain = fs::absolute(path).lexically_normal();
  std::error_code error;
  return std::find(path.begin(), path.end(), "..") == path.end() || fs::equivalent(path, plain, error) ? plain : fs::canonical(path);
}

class FileCollector {
 public:
  explicit FileCollector(std::string_view key) : key_(key) {}

  void add(const std::string& entry) {
    std::error_code error;
    const fs::file_status status = fs::status(entry, error);
    if (fs::exists(status)) {
      add_named(entry, status);
    } else if (status.type() != fs::file_type::not_found) {
      throw cannot_use(entry, error.message());
    } else if (entry.find_first_of("*?[") != std::string::npos) {
      add_glob(entry);
    } else {
      throw cannot_use(entry, "there is no such file or folder");
    }
  }

  FoundFiles take_sorted() {
    std::sort(files_.begin(), files_.end());
    files_.erase(std::unique(files_.begin(), files_.end()), files_.end());
    return {std::move(files_), skipped_};
  }

 private:
  InvalidArgument cannot_use(const fs::path& path, std::string_view reason) const {
    return InvalidArgument(fmt::format("corpus: {}: {}; correct {}", path.string(), reason, key_));
  }

  void add_named(const fs::path& path, const fs::file_status& status) {
    if (fs::is_directory(status)) {
      walk(path);
    } else if (!fs::is_regular_file(status)) {
      throw cannot_use(path, "this is neither a regular file nor a folder");
    } else if (!readable(path)) {
      throw cannot_use(path, std::strerror(errno));
    } else {
      files_.push_back(plain_path(path));
    }
  }

  void walk(const fs::path& folder) {
    std::error_code error;
    fs::directory_iterator entries(folder, error);
    if (error) throw cannot_use(folder, "the folder cannot be read: " + error.message());
    for (; entries != fs::directory_iterator(); entries.increment(error)) {
      const fs::file_status status = entries->symlink_status(error);
      if (!fs::status_known(status)) throw cannot_use(entries->path(), error.message());
      if (fs::is_directory(status)) {
        walk(entries->path());
      } else if (fs::is_regular_file(status)) {
        add_walked(entries->path());
      }
    }
    if (error) throw cannot_use(folder, "the folder cannot be read: " + error.message());
  }

  void add_walked(const fs::path& file) {
    if (readable(file)) {
      files_.push_back(plain_path(file));
    } else {
      ++skipped_;
    }
  }

  void add_glob(const std::string& pattern) {
    glob_t found{};
    const int status = ::glob(pattern.c_str(), GLOB_ERR, nullptr, &found);
    const std::vector<std::string> matches(found.gl_pathv, found.gl_pathv + found.gl_pathc);
    ::globfree(&found);
    if (status == GLOB_NOMATCH) throw cannot_use(pattern, "nothing matches this pattern");
    if (status != 0) throw cannot_use(pattern, "a folder of this pattern cannot be read");
    for (const std::string& match : matches) {
      const fs::file_status match_status = fs::status(match);
      // A pattern such as /data/* also meets sockets and devices; nobody asked for those by name.
      if (fs::is_directory(match_status) || fs::is_regular_file(match_status)) add_named(match, match_status);
    }
  }

  std::string key_;
  std::vector<fs::path> files_;
  std::int64_t skipped_ = 0;
};

}  // namespace

FoundFiles find_files(std::span<const std::string> entries, std::string_view key) {
  FileCollector collector(key);
  for (const std::string& entry : entries) collector.add(entry);
  return collector.take_sorted();
}

}  // namespace periplus::train
