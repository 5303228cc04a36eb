#include "launch/descriptions.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "launch/suggest.h"
#include "launch/toml_file.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

std::vector<std::string> names_in(std::string_view folder) {
  std::vector<std::string> names;
  for (const BuiltInFile& file : built_in_files()) {
    if (file.folder == folder) names.emplace_back(file.name);
  }
  return names;
}

std::vector<TomlEntry> entries_of(const std::string& name_or_file, std::string_view folder) {
  for (const BuiltInFile& file : built_in_files()) {
    if (file.folder == folder && file.name == name_or_file) return read_toml_text(file.text, fmt::format("{}.toml", file.name));
  }
  if (name_or_file.ends_with(".toml") && std::filesystem::exists(name_or_file)) return read_toml_file(name_or_file);
  const std::vector<std::string> names = names_in(folder);
  throw InvalidArgument(fmt::format("there is no file '{}' that ends with .toml, and no built-in one of {}{}; there are {}", name_or_file,
                                    folder, did_you_mean(name_or_file, names), fmt::join(names, ", ")));
}

std::string name_of(const std::string& name_or_file) { return std::filesystem::path(name_or_file).stem().string(); }

/// Writes the variables of all rows. Every key must be there, and no other.
void read(const std::string& name_or_file, std::string_view folder, const std::vector<Option>& rows) {
  std::vector<std::string> keys, seen;
  for (const Option& row : rows) keys.push_back(row.key);
  for (const TomlEntry& entry : entries_of(name_or_file, folder)) {
    const std::string where = fmt::format("{}:{}:{}: {}", name_or_file, entry.line, entry.column, entry.key);
    const auto row = std::ranges::find(rows, entry.key, &Option::key);
    if (row == rows.end()) throw InvalidArgument(fmt::format("{}: unknown key{}", where, did_you_mean(entry.key, keys)));
    assign(*row, entry.given, where);
    seen.push_back(entry.key);
  }
  for (const std::string& key : keys) {
    if (std::ranges::find(seen, key) == seen.end()) throw InvalidArgument(fmt::format("{}: the key {} is missing", name_or_file, key));
  }
}

Option row(const char* key, Target target) { return {.key = key, .target = target}; }

}  // namespace

planner::Model load_model(const std::string& name_or_file) {
  planner::Model model;
  model.name = name_of(name_or_file);
  read(name_or_file, "models",
       {row("shape.layers", &model.layers), row("shape.hidden", &model.hidden), row("shape.heads", &model.heads),
        row("shape.kv_heads", &model.kv_heads), row("shape.element_bytes", &model.element_bytes),
        row("seconds.pair", &model.seconds_per_pair), row("seconds.token", &model.seconds_per_token),
        row("seconds.micro_batch", &model.seconds_per_micro_batch), row("memory.activation_bytes", &model.activation_bytes),
        row("memory.state_bytes", &model.state_bytes)});
  planner::check(model);
  return model;
}

planner::Machine load_machine(const std::string& name_or_file) {
  planner::Machine machine;
  machine.name = name_of(name_or_file);
  std::vector<std::int64_t> degrees;
  std::vector<double> rates;
  read(name_or_file, "machines",
       {row("devices.count", &machine.devices), row("devices.per_node", &machine.devices_per_node),
        row("devices.memory_bytes", &machine.memory_bytes), row("all_to_all.degrees", &degrees), row("all_to_all.bytes_per_second", &rates),
        row("links.device_bytes_per_second", &machine.link_bytes_per_second),
        row("links.node_bytes_per_second", &machine.node_bytes_per_second),
        row("links.stream_bytes_per_second", &machine.stream_bytes_per_second), row("links.hop_seconds", &machine.hop_seconds),
        row("links.ring_efficiency", &machine.ring_efficiency)});
  if (degrees.size() != rates.size()) {
    throw InvalidArgument(
        fmt::format("{}: all_to_all has {} degrees and {} rates; each degree needs one", name_or_file, degrees.size(), rates.size()));
  }
  for (std::size_t i = 0; i < degrees.size(); ++i) {
    if (degrees[i] < 1 || degrees[i] > (1 << 20))
      throw InvalidArgument(fmt::format("{}: all_to_all.degrees: {} is no size of a group", name_or_file, degrees[i]));
    machine.all_to_all.push_back({static_cast<int>(degrees[i]), rates[i]});
  }
  planner::check(machine);
  return machine;
}

LengthDistribution load_lengths(const std::string& name_or_file) {
  LengthDistribution lengths;
  lengths.name = name_of(name_or_file);
  const auto entries = entries_of(name_or_file, "lengths");
  if (std::ranges::find(entries, "uniform", &TomlEntry::key) != entries.end()) {
    read(name_or_file, "lengths", {row("uniform", &lengths.uniform)});
    if (lengths.uniform.size() != 2) throw InvalidArgument(fmt::format("{}: uniform must be the least and the most length", name_or_file));
    return lengths;
  }
  read(name_or_file, "lengths", {row("shares", &lengths.shares), row("lengths", &lengths.lengths)});
  const bool ascending = std::ranges::is_sorted(lengths.shares) && std::ranges::is_sorted(lengths.lengths);
  if (lengths.shares.size() != lengths.lengths.size() || lengths.shares.size() < 2 || !ascending || lengths.shares.front() != 0 ||
      lengths.shares.back() >= 1 || lengths.lengths.front() <= 0) {
    throw InvalidArgument(fmt::format("{}: shares must ascend from 0 to below 1, with as many ascending lengths above 0", name_or_file));
  }
  return lengths;
}

double LengthDistribution::length_at(double share) const {
  if (!uniform.empty()) return uniform[0] + share * (uniform[1] - uniform[0]);
  std::size_t i = 1;
  while (i + 1 < shares.size() && shares[i] < share) ++i;
  const double part = std::log((1 - share) / (1 - shares[i - 1])) / std::log((1 - shares[i]) / (1 - shares[i - 1]));
  return lengths[i - 1] * std::pow(lengths[i] / lengths[i - 1], std::min(1.0, part));
}

}  // namespace periplus::launch
