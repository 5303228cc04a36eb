#include "launch/paths.h"

#include <filesystem>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::launch {
namespace {

namespace fs = std::filesystem;

fs::file_type type_of(const fs::path& path) {
  std::error_code ignored;
  return fs::status(path, ignored).type();
}

/// What it is instead of a file; empty for a file, and for what this user may not look at: to open it will say why.
std::string_view other_than_file(fs::file_type type) {
  switch (type) {
    case fs::file_type::directory:
      return "a folder";
    case fs::file_type::block:
    case fs::file_type::character:
    case fs::file_type::fifo:
    case fs::file_type::socket:
      return "a device, pipe or socket";
    default:
      return {};
  }
}

}  // namespace

void check_input_file(std::string_view flag, const std::string& path) {
  const fs::file_type type = type_of(path);
  if (type == fs::file_type::not_found) throw InvalidArgument(fmt::format("--{}: there is no file '{}'", flag, path));
  if (const std::string_view other = other_than_file(type); !other.empty())
    throw InvalidArgument(fmt::format("--{}: '{}' is {} and not a file", flag, path, other));
}

void check_output_file(std::string_view flag, const std::string& path) {
  const fs::path folder = fs::absolute(path).parent_path();
  // A folder that this user may not look at (none) is left to the attempt.
  if (const fs::file_type type = type_of(folder); type != fs::file_type::directory && type != fs::file_type::none)
    throw InvalidArgument(fmt::format("--{}: there is no folder '{}'", flag, folder.string()));
  if (const std::string_view other = other_than_file(type_of(path)); !other.empty())
    throw InvalidArgument(fmt::format("--{}: '{}' is {} and cannot be replaced by a file", flag, path, other));
}

}  // namespace periplus::launch
