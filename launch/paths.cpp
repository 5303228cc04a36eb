#include "launch/paths.h"

#include <filesystem>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::launch {
namespace {

namespace fs = std::filesystem;

fs::file_type type_of(const fs::path& path) {
  std::error_code ignored;  // a path that cannot be looked at is one that cannot be used
  return fs::status(path, ignored).type();
}

const char* name_of(fs::file_type type) { return type == fs::file_type::directory ? "a folder" : "a device, pipe or socket"; }

}  // namespace

void check_input_file(std::string_view flag, const std::string& path) {
  const fs::file_type type = type_of(path);
  if (type == fs::file_type::regular) return;
  if (type == fs::file_type::not_found || type == fs::file_type::none)
    throw InvalidArgument(fmt::format("--{}: there is no file '{}'", flag, path));
  throw InvalidArgument(fmt::format("--{}: '{}' is {} and not a file", flag, path, name_of(type)));
}

void check_output_file(std::string_view flag, const std::string& path) {
  const fs::path folder = fs::absolute(path).parent_path();
  if (type_of(folder) != fs::file_type::directory)
    throw InvalidArgument(fmt::format("--{}: there is no folder '{}'", flag, folder.string()));
  const fs::file_type type = type_of(path);
  if (type == fs::file_type::regular || type == fs::file_type::not_found) return;
  throw InvalidArgument(fmt::format("--{}: '{}' is {} and cannot be replaced by a file", flag, path, name_of(type)));
}

}  // namespace periplus::launch
