#include "launch/toml_file.h"

#include <algorithm>

#include <fmt/format.h>

// What the parser asserts, and in optimised builds assumes, of the first character of a key does not hold for a header such as [=].
// It finds the error itself where it may look.
#undef NDEBUG
#define TOML_ASSERT(condition) static_cast<void>(0)
#include <toml++/toml.h>

#include "launch/paths.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus::launch {
namespace {

constexpr std::uint64_t kLargestFile = std::uint64_t{1} << 20;

[[noreturn]] void throw_unusable(std::string_view where) {
  throw InvalidArgument(fmt::format("{}: dates, tables and lists of lists are not values of any key", where));
}

Scalar scalar_of(const toml::node& node, std::string_view where) {
  if (const auto* value = node.as_boolean()) return value->get();
  if (const auto* value = node.as_integer()) return value->get();
  if (const auto* value = node.as_floating_point()) return value->get();
  if (const auto* value = node.as_string()) return value->get();
  throw_unusable(where);
}

Given given_of(const toml::node& node, std::string_view where) {
  Given given;
  if (const auto* array = node.as_array()) {
    given.array = true;
    for (const toml::node& item : *array) given.items.push_back(scalar_of(item, where));
  } else {
    given.items.push_back(scalar_of(node, where));
  }
  return given;
}

void collect(const toml::table& table, const std::string& prefix, const std::string& file, std::vector<TomlEntry>& entries) {
  for (const auto& [name, node] : table) {
    TomlEntry entry;
    entry.key = prefix + std::string(name.str());
    entry.line = static_cast<int>(name.source().begin.line);
    entry.column = static_cast<int>(name.source().begin.column);
    const auto* inner = node.as_table();
    if (inner != nullptr && !inner->empty()) {
      collect(*inner, entry.key + ".", file, entries);
      continue;
    }
    entry.is_table = inner != nullptr && prefix.empty();
    if (entry.is_table) {
      entry.key += ".";
    } else {
      entry.given = given_of(node, fmt::format("{}:{}:{}: {}", file, entry.line, entry.column, entry.key));
    }
    entries.push_back(std::move(entry));
  }
}

}  // namespace

std::vector<TomlEntry> read_toml_file(const std::filesystem::path& path) {
  check_input_file("config", path.string());
  return read_toml_text(read_file(path, kLargestFile), path.filename().string());
}

std::vector<TomlEntry> read_toml_text(std::string_view text, const std::string& file) {
  std::vector<TomlEntry> entries;
  try {
    collect(toml::parse(text), "", file, entries);
  } catch (const toml::parse_error& error) {
    const auto& begin = error.source().begin;
    throw InvalidArgument(fmt::format("{}:{}:{}: {}", file, begin.line, begin.column, error.description()));
  }
  std::ranges::stable_sort(entries, {}, [](const TomlEntry& entry) { return std::pair(entry.line, entry.column); });
  return entries;
}

Given read_toml_value(std::string_view text, std::string_view where) {
  try {
    const toml::table table = toml::parse(fmt::format("value = {}", text));
    if (table.size() != 1) throw_unusable(where);
    return given_of(*table.get("value"), where);
  } catch (const toml::parse_error& error) {
    throw InvalidArgument(fmt::format("{}: {}", where, error.description()));
  }
}

}  // namespace periplus::launch
