#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace periplus {

/// Reads a whole file of at most `limit_bytes`. DeviceError if it cannot be read, InvalidArgument if it is larger.
std::string read_file(const std::filesystem::path& path, std::uint64_t limit_bytes);

/// Replaces `path` by `contents` so that a crash at any moment leaves the old or the new file: temporary file beside it,
/// fsync, rename, fsync of the folder. InvalidArgument if `path` is there and no regular file, DeviceError naming path and
/// reason on any failed call.
void write_file_atomically(const std::filesystem::path& path, std::string_view contents);

/// Creates a folder and those above it, where they are not there. DeviceError naming path and reason.
void create_folders(const std::filesystem::path& path);

/// fsync of a folder, so that a rename or a new file in it is durable.
void sync_directory(const std::filesystem::path& path);

/// Renames a file or folder and syncs the parent folder.
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);

/// XXH3-128 of a file's contents as 32 hexadecimal digits. Guards against accidents, not against attackers.
std::string digest_of_file(const std::filesystem::path& path);
/// XXH3-128 of bytes in memory, same form.
std::string digest_of_bytes(std::string_view bytes);
/// XXH3-64, for comparing plans and configurations between ranks.
std::uint64_t hash64(std::string_view bytes, std::uint64_t seed = 0);

}  // namespace periplus
