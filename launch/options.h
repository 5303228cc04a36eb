#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "launch/option_values.h"

namespace periplus::launch {

/// All options of one command. One table feeds the flags, the TOML keys, --set, the help page and the error messages.
/// Every table has --help and --json; one with keys also has --config FILE, --set table.name=value and --dump-config.
/// Precedence: default < TOML file < --set < flag.
class OptionTable {
 public:
  /// usage: one line, "mpirun -n 2 periplus train --data PATH... [options]".
  OptionTable(std::string command, std::string purpose, std::string usage);
  OptionTable(const OptionTable&) = delete;
  OptionTable& operator=(const OptionTable&) = delete;

  void add(Option option);

  /// Writes the variables. Errors: InvalidArgument with one sentence that names the flag, or file:line:column and key, and
  /// the nearest known name if it is unknown.
  void parse(std::span<const std::string> arguments);

  /// After parse(): the same for a key that nothing has set, as --set would. `origin`: where it comes from, for resolved_toml().
  void set_unless_given(const std::string& key, const std::string& text, const std::string& origin);

  bool help_wanted() const noexcept { return help_wanted_; }
  bool json() const noexcept { return json_; }
  bool dump_wanted() const noexcept { return dump_wanted_; }
  /// Whether anything but the default set the option with this flag.
  bool given(std::string_view flag) const;
  /// Whether the command line set it, as a flag or by --set. A file may hold all keys, as --dump-config writes them.
  bool typed(std::string_view flag) const;
  /// All flags that are `given`, in the order of the help page.
  std::vector<std::string> given_flags() const;

  std::string help() const;
  /// All keys with their values and, as a comment, where each came from.
  std::string resolved_toml() const;

 private:
  struct Row {
    Option option;
    std::string default_text;
    std::string origin;  ///< Empty: the default.
  };
  /// Texts of each flag that was typed, in the order of their first.
  using Typed = std::vector<std::pair<Row*, std::vector<std::string>>>;
  void add_common_options();
  Typed typed_flags(std::span<const std::string> arguments);
  void read_file();
  void apply_settings();
  void set_text(Row& row, const std::string& text, const std::string& origin);
  void set(Row& row, const Given& given, std::string_view where, std::string origin);
  Row* find_key(std::string_view key);
  Row& row_of_flag(std::string_view flag);
  [[noreturn]] void throw_unknown_flag(const std::string& name) const;
  [[noreturn]] void throw_unknown_key(std::string_view where, const std::string& key, bool table) const;
  std::vector<std::string> names(bool flags) const;
  std::vector<std::string> tables() const;  ///< In the order of their first key.

  std::string command_, purpose_, usage_;
  std::vector<Row> rows_;
  bool help_wanted_ = false, json_ = false, dump_wanted_ = false, complete_ = false;
  std::string config_file_;
  std::vector<std::string> settings_;
};

}  // namespace periplus::launch
