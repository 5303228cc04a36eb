#include "launch/options.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include <boost/program_options.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "launch/suggest.h"
#include "launch/toml_file.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

namespace po = boost::program_options;

po::options_description describe(const std::vector<const Option*>& options) {
  po::options_description description;
  for (const Option* option : options) {
    auto* value = po::value<std::vector<std::string>>();
    if (is_switch(*option)) value->implicit_value({"true"}, "true");
    if (is_list(*option)) value->multitoken();
    description.add_options()(option->flag.c_str(), value);
  }
  return description;
}

/// Without short options a value may start with one dash: --window -1,0.
constexpr int kStyle =
    po::command_line_style::allow_long | po::command_line_style::long_allow_adjacent | po::command_line_style::long_allow_next;

std::string table_of(const std::string& key) { return key.substr(0, key.find('.')); }

}  // namespace

OptionTable::OptionTable(std::string command, std::string purpose, std::string usage)
    : command_(std::move(command)), purpose_(std::move(purpose)), usage_(std::move(usage)) {}

void OptionTable::add(Option option) {
  std::string text = to_toml(option.target);
  rows_.push_back({std::move(option), std::move(text), ""});
}

void OptionTable::add_common_options() {
  if (complete_) return;
  complete_ = true;
  const bool has_keys = std::ranges::any_of(rows_, [](const Row& row) { return !row.option.key.empty(); });
  if (has_keys) {
    add({.flag = "config", .target = &config_file_, .value = "FILE", .help = "TOML file with the keys that this page shows in brackets."});
    add({.flag = "set", .target = &settings_, .value = "TABLE.NAME=VALUE ...", .help = "Sets a key; overrides the file."});
    add({.flag = "dump-config", .target = &dump_wanted_, .help = "Prints all keys, their values and where each came from, then ends."});
  }
  add({.flag = "json", .target = &json_, .help = "Result as JSON on standard output, text for people on standard error."});
  add({.flag = "help", .target = &help_wanted_, .help = "Prints this page."});
}

OptionTable::Typed OptionTable::typed_flags(std::span<const std::string> arguments) {
  std::vector<const Option*> flags;
  for (const Row& row : rows_) {
    if (!row.option.flag.empty()) flags.push_back(&row.option);
  }
  const po::options_description description = describe(flags);
  std::vector<std::string> words(arguments.begin(), arguments.end());
  std::ranges::replace(words, std::string("-h"), std::string("--help"));
  Typed typed;
  try {
    const auto parsed = po::command_line_parser(words).options(description).style(kStyle).allow_unregistered().run();
    for (const auto& item : parsed.options) {
      if (item.unregistered) throw_unknown_flag(item.string_key);
      if (item.string_key.empty()) {
        const std::string word = item.original_tokens.empty() ? "" : item.original_tokens.front();
        throw InvalidArgument(
            fmt::format("unexpected argument '{}'; options start with --, as periplus {} --help lists them", word, command_));
      }
      Row* row = &row_of_flag(item.string_key);
      const auto earlier = std::ranges::find(typed, row, &Typed::value_type::first);
      if (earlier == typed.end()) {
        typed.emplace_back(row, item.value);
      } else if (is_list(row->option)) {
        earlier->second.insert(earlier->second.end(), item.value.begin(), item.value.end());
      } else {
        throw InvalidArgument(fmt::format("--{} is given twice; give it once", item.string_key));
      }
    }
  } catch (const po::error_with_option_name& error) {
    // Only a missing value is left: unknown names do not throw, and every other text is read by assign().
    const Option& option = row_of_flag(std::string_view(error.get_option_name()).substr(2)).option;
    const std::string value = is_switch(option) ? "true|false" : option.value;
    throw InvalidArgument(fmt::format("--{} needs a value: --{} {}", option.flag, option.flag, value));
  }
  for (auto& [row, texts] : typed) {
    if (texts.empty() && is_switch(row->option)) texts = {"true"};
  }
  return typed;
}

void OptionTable::parse(std::span<const std::string> arguments) {
  add_common_options();
  const Typed typed = typed_flags(arguments);
  for (const auto& [row, texts] : typed) {
    const std::string where = "--" + row->option.flag;
    if (where == "--config" || where == "--set") assign(row->option, given_from_texts(row->option, texts, where), where);
  }
  read_file();
  apply_settings();
  for (const auto& [row, texts] : typed) {
    const std::string where = "--" + row->option.flag;
    set(*row, given_from_texts(row->option, texts, where), where, where);
  }
}

void OptionTable::read_file() {
  if (config_file_.empty()) return;
  const std::string name = std::filesystem::path(config_file_).filename().string();
  for (const TomlEntry& entry : read_toml_file(config_file_)) {
    const std::string where = fmt::format("{}:{}:{}", name, entry.line, entry.column);
    const auto in_table = [&](const Row& known) { return known.option.key.starts_with(entry.key); };
    if (entry.is_table && std::ranges::any_of(rows_, in_table)) continue;
    Row* row = find_key(entry.key);
    if (row == nullptr) throw_unknown_key(where, entry.key, entry.is_table);
    set(*row, entry.given, fmt::format("{}: {}", where, entry.key), fmt::format("{}:{}", name, entry.line));
  }
}

void OptionTable::apply_settings() {
  for (const std::string& setting : settings_) {
    const std::size_t equals = setting.find('=');
    if (equals == std::string::npos || equals == 0) {
      throw InvalidArgument(fmt::format("--set: '{}' is not of the form table.name=value", setting));
    }
    const std::string key = setting.substr(0, equals);
    const std::string text = setting.substr(equals + 1);
    Row* row = find_key(key);
    if (row == nullptr) throw_unknown_key("--set", key, false);
    set_text(*row, text, "--set");
  }
}

void OptionTable::set_text(Row& row, const std::string& text, const std::string& origin) {
  const std::string where = origin + " " + row.option.key;
  const bool is_toml = !text.empty() && (text[0] == '[' || text[0] == '"');
  set(row, is_toml ? read_toml_value(text, where) : given_from_texts(row.option, {text}, where), where, origin);
}

void OptionTable::set_unless_given(const std::string& key, const std::string& text, const std::string& origin) {
  Row* const row = find_key(key);
  if (row == nullptr) throw_unknown_key(origin, key, false);
  if (row->origin.empty()) set_text(*row, text, origin);
}

void OptionTable::set(Row& row, const Given& given, std::string_view where, std::string origin) {
  assign(row.option, given, where);
  row.origin = std::move(origin);
}

OptionTable::Row* OptionTable::find_key(std::string_view key) {
  const auto row = std::ranges::find_if(rows_, [&](const Row& candidate) { return !key.empty() && candidate.option.key == key; });
  return row == rows_.end() ? nullptr : &*row;
}

OptionTable::Row& OptionTable::row_of_flag(std::string_view flag) {
  const auto row = std::ranges::find_if(rows_, [&](const Row& candidate) { return candidate.option.flag == flag; });
  if (row == rows_.end()) throw InternalError(fmt::format("option table of {}: no flag '{}'", command_, flag));
  return *row;
}

bool OptionTable::given(std::string_view flag) const {
  return std::ranges::any_of(rows_, [&](const Row& row) { return row.option.flag == flag && !row.origin.empty(); });
}

std::vector<std::string> OptionTable::given_flags() const {
  std::vector<std::string> flags;
  for (const Row& row : rows_) {
    if (!row.origin.empty() && !row.option.flag.empty()) flags.push_back(row.option.flag);
  }
  return flags;
}

bool OptionTable::typed(std::string_view flag) const {
  return std::ranges::any_of(rows_, [&](const Row& row) { return row.option.flag == flag && row.origin.starts_with("--"); });
}

std::vector<std::string> OptionTable::names(bool flags) const {
  std::vector<std::string> result;
  for (const Row& row : rows_) {
    if (flags && !row.option.flag.empty()) result.push_back("--" + row.option.flag);
    if (!flags && !row.option.key.empty()) result.push_back(row.option.key);
  }
  return result;
}

std::vector<std::string> OptionTable::tables() const {
  std::vector<std::string> result;
  for (const Row& row : rows_) {
    const std::string table = table_of(row.option.key);
    if (!table.empty() && std::ranges::find(result, table) == result.end()) result.push_back(table);
  }
  return result;
}

void OptionTable::throw_unknown_key(std::string_view where, const std::string& key, bool table) const {
  const std::vector<std::string> keys = names(false);
  const std::vector<std::string> tables = this->tables();
  const bool table_is_known = std::ranges::find(tables, table_of(key)) != tables.end();
  if (!table_is_known && (table || key.find('.') != std::string::npos)) {
    const std::string similar = did_you_mean(table_of(key), tables);
    throw InvalidArgument(fmt::format("{}: unknown table [{}]{}", where, table_of(key),
                                      similar.empty() ? fmt::format("; there are: {}", fmt::join(tables, ", ")) : similar));
  }
  const auto same_name = std::ranges::find_if(keys, [&](const std::string& known) { return known.ends_with("." + key); });
  const std::string hint = same_name == keys.end() ? did_you_mean(key, keys) : fmt::format("; did you mean '{}'?", *same_name);
  throw InvalidArgument(
      fmt::format("{}: unknown key '{}'{}", where, key, hint.empty() ? fmt::format("; periplus {} --help lists all", command_) : hint));
}

void OptionTable::throw_unknown_flag(const std::string& name) const {
  const std::string hint = did_you_mean("--" + name, names(true));
  throw InvalidArgument(
      fmt::format("unknown option '--{}'{}", name, hint.empty() ? fmt::format("; periplus {} --help lists all", command_) : hint));
}

std::string OptionTable::help() const {
  std::string page = fmt::format("periplus {}: {}\n\nUsage: {}\n\nOptions{}:\n", command_, purpose_, usage_,
                                 names(false).empty() ? "" : " [key in the TOML file = default]");
  for (const Row& row : rows_) {
    const Option& option = row.option;
    std::string left = option.flag.empty() ? "" : fmt::format("--{} {}", option.flag, option.value);
    if (left.size() > 25) left += "\n" + std::string(27, ' ');
    page += fmt::format("  {:<25} {}", left, option.help);
    if (!option.choices.empty()) {
      page += fmt::format(" {}.", fmt::join(option.choices, " | "));
    }
    if (!option.key.empty()) {
      page += fmt::format(" [{} = {}]", option.key, row.default_text);
    } else if (!is_switch(option) && !is_list(option) && row.default_text != "\"\"" &&
               !(std::atof(row.default_text.c_str()) < option.least)) {  // a default out of range: the option is needed
      page += fmt::format(" Default: {}.", row.default_text);
    }
    page += "\n";
  }
  return page;
}

std::string OptionTable::resolved_toml() const {
  std::string text;
  for (const std::string& table : tables()) {
    text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", table);
    for (const Row& row : rows_) {
      if (row.option.key.empty() || table_of(row.option.key) != table) continue;
      const std::string line = fmt::format("{} = {}", row.option.key.substr(table.size() + 1), to_toml(row.option.target));
      text += fmt::format("{:<40} # {}\n", line, row.origin.empty() ? "default" : row.origin);
    }
  }
  return text;
}

}  // namespace periplus::launch
