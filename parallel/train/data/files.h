#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace periplus::train {

/// Absolute paths of readable regular files, sorted, without duplicates; a link and what it points to are two.
struct FoundFiles {
  std::vector<std::filesystem::path> paths;
  std::int64_t skipped = 0;  ///< Unreadable files met while walking.
};

/// Expands files, folders (walked to the bottom) and globs. Found by walking: symbolic links are not followed, unreadable files and all
/// that is no regular file are skipped.
/// Errors: InvalidArgument naming the path, and `key` as what to correct, if one does not exist, cannot be read or matches nothing.
FoundFiles find_files(std::span<const std::string> entries, std::string_view key);

}  // namespace periplus::train
