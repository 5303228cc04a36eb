#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "launch/option_values.h"

namespace periplus::launch {

/// One value of a TOML file, or (`is_table`) an empty table of the file, which only an unknown name can make worth reporting.
struct TomlEntry {
  std::string key;  ///< "table.name"
  Given given;
  int line = 0, column = 0;
  bool is_table = false;
};

/// Entries in the order of the file. Errors: InvalidArgument for a missing file or, with file:line:column, for a syntax
/// error or a value that no option takes (dates, nested lists); DeviceError if the file cannot be read.
std::vector<TomlEntry> read_toml_file(const std::filesystem::path& path);

/// The same of a text; `file` is its name in messages.
std::vector<TomlEntry> read_toml_text(std::string_view text, const std::string& file);

/// One value written as in TOML: ["a", "b"].
Given read_toml_value(std::string_view text, std::string_view where);

}  // namespace periplus::launch
