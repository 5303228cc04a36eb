#include "launch/descriptions.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "launch/suggest.h"
#include "launch/toml_file.h"
#include "runtime/error.h"
#include "runtime/file.h"

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
  if (name_or_file.ends_with(".toml") && std::filesystem::is_regular_file(name_or_file)) return read_toml_file(name_or_file);
  const std::vector<std::string> names = names_in(folder);
  throw InvalidArgument(fmt::format("there is no file '{}' that ends with .toml, and no built-in one of {}{}; there are {}", name_or_file,
                                    folder, did_you_mean(name_or_file, names), fmt::join(names, ", ")));
}

std::string name_of(const std::string& name_or_file) { return std::filesystem::path(name_or_file).stem().string(); }

/// Writes the variables of all rows whose keys are there, and returns those keys. No other key may be there.
std::vector<std::string> read(const std::vector<TomlEntry>& entries, const std::string& file, const std::vector<Option>& rows) {
  std::vector<std::string> keys, seen;
  for (const Option& row : rows) keys.push_back(row.key);
  for (const TomlEntry& entry : entries) {
    const std::string where = fmt::format("{}:{}:{}: {}", file, entry.line, entry.column, entry.key);
    const auto row = std::ranges::find(rows, entry.key, &Option::key);
    if (row == rows.end()) throw InvalidArgument(fmt::format("{}: unknown key{}", where, did_you_mean(entry.key, keys)));
    assign(*row, entry.given, where);
    seen.push_back(entry.key);
  }
  return seen;
}
std::vector<std::string> read(const std::string& name_or_file, std::string_view folder, const std::vector<Option>& rows) {
  return read(entries_of(name_or_file, folder), name_or_file, rows);
}

void require_keys(const std::string& name_or_file, const std::vector<std::string>& seen, const std::vector<std::string>& keys,
                  std::string_view who) {
  for (const std::string& key : keys) {
    if (std::ranges::find(seen, key) == seen.end())
      throw InvalidArgument(fmt::format("{}: the key {} is missing, which {} needs", name_or_file, key, who));
  }
}

Option row(const char* key, Target target) { return {.key = key, .target = target}; }

/// All that a model's file may say.
struct ModelFile {
  planner::Model model;
  simulate::Shape shape;
  std::vector<std::string> seen;
};

ModelFile read_model(const std::string& name_or_file) {
  ModelFile file;
  planner::Model& model = file.model;
  simulate::Shape& shape = file.shape;
  file.seen = read(name_or_file, "models",
                   {row("shape.layers", &shape.layers),
                    row("shape.hidden", &shape.hidden),
                    row("shape.heads", &shape.heads),
                    row("shape.kv_heads", &shape.kv_heads),
                    row("shape.element_bytes", &shape.element_bytes),
                    row("shape.head_size", &shape.head_size),
                    row("shape.ffn", &shape.ffn),
                    row("shape.ffn_matrices", &shape.ffn_matrices),
                    row("shape.vocabulary", &shape.vocabulary),
                    row("shape.pattern", &shape.pattern),
                    row("shape.tie_embeddings", &shape.tie_embeddings),
                    row("seconds.pair", &model.seconds_per_pair),
                    row("seconds.token", &model.seconds_per_token),
                    row("seconds.micro_batch", &model.seconds_per_micro_batch),
                    row("memory.activation_bytes", &model.activation_bytes),
                    row("memory.state_bytes", &model.state_bytes),
                    row("memory.logit_bytes", &shape.logit_bytes),
                    row("memory.score_bytes", &shape.score_bytes),
                    row("memory.mask_bytes", &shape.mask_bytes),
                    row("overhead.iteration_seconds", &shape.iteration_seconds),
                    row("overhead.host_seconds_per_token", &shape.host_seconds_per_token)});
  model.name = shape.name = name_of(name_or_file);
  model.layers = shape.layers, model.hidden = shape.hidden, model.heads = shape.heads, model.kv_heads = shape.kv_heads;
  model.element_bytes = shape.element_bytes;
  require_keys(name_or_file, file.seen, {"shape.layers", "shape.hidden", "shape.heads", "shape.kv_heads"}, "every model");
  return file;
}

/// All that a machine's file may say.
struct MachineFile {
  planner::Machine planner;
  simulate::Machine simulated;
  std::string kernels;  ///< Of examples/kernels; keys of the file itself go before.
  std::vector<std::string> seen;
};

std::vector<Option> kernel_rows(simulate::Kernels& kernels) {
  return {row("kernels.matmul_flops_per_second", &kernels.matmul_flops_per_second),
          row("kernels.memory_bytes_per_second", &kernels.memory_bytes_per_second),
          row("kernels.launch_seconds", &kernels.launch_seconds),
          row("kernels.forward_lengths", &kernels.forward.lengths),
          row("kernels.forward_causal", &kernels.forward.causal_flops_per_second),
          row("kernels.forward_full", &kernels.forward.full_flops_per_second),
          row("kernels.backward_lengths", &kernels.backward.lengths),
          row("kernels.backward_causal", &kernels.backward.causal_flops_per_second),
          row("kernels.backward_full", &kernels.backward.full_flops_per_second),
          row("kernels.head_sizes", &kernels.head_sizes),
          row("kernels.tile_queries", &kernels.tile_queries),
          row("kernels.tile_keys", &kernels.tile_keys),
          row("kernels.merge_passes", &kernels.merge_passes),
          row("kernels.sliced_merge_passes", &kernels.sliced_merge_passes),
          row("kernels.first_merge_passes", &kernels.first_merge_passes),
          row("kernels.merge_launches", &kernels.merge_launches),
          row("kernels.backward_merge_passes", &kernels.backward_merge_passes),
          row("kernels.merge_efficiency", &kernels.merge_efficiency),
          row("kernels.linear_efficiency", &kernels.linear_efficiency),
          row("kernels.linear_backward_efficiency", &kernels.linear_backward_efficiency)};
}

/// Groups of powers of two inside a node and of whole nodes; a device's share of the cards is all it has for what leaves its node.
void derive_all_to_all(planner::Machine& machine) {
  for (std::int64_t degree = 2; degree <= machine.devices; degree *= 2) {
    if (degree > machine.devices_per_node && degree % machine.devices_per_node != 0) continue;
    const double leaving =
        degree > machine.devices_per_node ? 1 - static_cast<double>(machine.devices_per_node) / static_cast<double>(degree) : 0;
    const double card = machine.node_bytes_per_second / machine.devices_per_node;
    machine.all_to_all.push_back(
        {static_cast<int>(degree), leaving > 0 ? std::min(machine.link_bytes_per_second, card / leaving) : machine.link_bytes_per_second});
  }
}

MachineFile read_machine(const std::vector<TomlEntry>& entries, const std::string& name_or_file, const std::string& kernels) {
  MachineFile file;
  planner::Machine& machine = file.planner;
  simulate::Machine& simulated = file.simulated;
  machine.name = simulated.name = name_of(name_or_file);
  std::vector<std::int64_t> degrees;
  std::vector<double> rates;
  std::string sharing = "port";
  std::vector<Option> rows = kernel_rows(simulated.kernels);
  for (const Option& more : std::initializer_list<Option>{
           row("devices.count", &machine.devices), row("devices.per_node", &machine.devices_per_node),
           row("devices.memory_bytes", &machine.memory_bytes), row("devices.peak_flops_per_second", &simulated.peak_flops_per_second),
           row("all_to_all.degrees", &degrees), row("all_to_all.bytes_per_second", &rates),
           row("links.device_bytes_per_second", &machine.link_bytes_per_second),
           row("links.device_hop_seconds", &simulated.links.inside.latency_seconds), row("links.sharing", &sharing),
           row("links.node_bytes_per_second", &machine.node_bytes_per_second),
           row("links.stream_bytes_per_second", &machine.stream_bytes_per_second), row("links.hop_seconds", &machine.hop_seconds),
           row("links.ring_efficiency", &machine.ring_efficiency), row("links.collective_seconds", &simulated.collective_seconds),
           row("links.host_bytes_per_second", &simulated.host_bytes_per_second), row("links.overlap_slowdown", &simulated.overlap_slowdown),
           row("links.exposed_gather_share", &simulated.exposed_gather_share), row("kernels.base", &file.kernels)}) {
    rows.push_back(more);
  }
  file.seen = read(entries, name_or_file, rows);
  if (const std::string& base = kernels.empty() ? file.kernels : kernels; !base.empty()) {
    read(base, "kernels", kernel_rows(simulated.kernels));
    read(entries, name_or_file, rows);  // again: keys of the machine's own file go before those of the base
  }
  require_keys(name_or_file, file.seen,
               {"devices.count", "devices.per_node", "devices.memory_bytes", "links.device_bytes_per_second", "links.node_bytes_per_second",
                "links.stream_bytes_per_second", "links.hop_seconds"},
               "every machine");
  if (degrees.size() != rates.size()) {
    throw InvalidArgument(
        fmt::format("{}: all_to_all has {} degrees and {} rates; each degree needs one", name_or_file, degrees.size(), rates.size()));
  }
  for (std::size_t i = 0; i < degrees.size(); ++i) {
    if (degrees[i] < 1 || degrees[i] > (1 << 20))
      throw InvalidArgument(fmt::format("{}: all_to_all.degrees: {} is no size of a group", name_or_file, degrees[i]));
    machine.all_to_all.push_back({static_cast<int>(degrees[i]), rates[i]});
    if (degrees[i] > 2) simulated.all_to_all[static_cast<int>(degrees[i])] = rates[i];
  }
  planner::check(machine);
  if (degrees.empty()) derive_all_to_all(machine);
  simulated.devices = machine.devices, simulated.devices_per_node = machine.devices_per_node;
  simulated.memory_bytes = machine.memory_bytes, simulated.node_bytes_per_second = machine.node_bytes_per_second;
  simulated.links.inside.bytes_per_second = machine.link_bytes_per_second;
  simulated.links.between = {machine.stream_bytes_per_second, machine.hop_seconds, comm::Sharing::port};
  simulated.links.inside.sharing = comm::sharing_from_string(sharing);
  simulated.links.ranks_per_node = machine.devices_per_node;
  const double cards = std::max(1.0, std::round(machine.node_bytes_per_second / machine.stream_bytes_per_second));
  simulated.links.ranks_per_nic = std::max(1, static_cast<int>(machine.devices_per_node / cards));
  return file;
}

MachineFile read_machine(const std::string& name_or_file, const std::string& kernels) {
  return read_machine(entries_of(name_or_file, "machines"), name_or_file, kernels);
}

const simulate::Machine& with_kernels(const MachineFile& file, const std::string& name_or_file) {
  if (file.simulated.kernels.matmul_flops_per_second <= 0) {
    throw InvalidArgument(fmt::format("{}: the simulator needs kernels: kernels.base = \"NAME\" (there are {}), or the keys of such a file",
                                      name_or_file, fmt::join(names_in("kernels"), ", ")));
  }
  simulate::check(file.simulated);
  return file.simulated;
}

}  // namespace

planner::Model load_model(const std::string& name_or_file) {
  const ModelFile file = read_model(name_or_file);
  require_keys(name_or_file, file.seen,
               {"seconds.pair", "seconds.token", "seconds.micro_batch", "memory.activation_bytes", "memory.state_bytes"}, "the planner");
  planner::check(file.model);
  return file.model;
}

planner::Machine load_machine(const std::string& name_or_file) { return read_machine(name_or_file, {}).planner; }

simulate::Shape load_shape(const std::string& name_or_file) {
  const ModelFile file = read_model(name_or_file);
  simulate::check(file.shape);
  return file.shape;
}

simulate::Machine load_simulated_machine(const std::string& name_or_file, const std::string& kernels) {
  return with_kernels(read_machine(name_or_file, kernels), name_or_file);
}

std::string machine_text(const std::string& name_or_file) {
  constexpr std::uint64_t kLargestFile = std::uint64_t{1} << 20;
  entries_of(name_or_file, "machines");  // says what there is
  for (const BuiltInFile& file : built_in_files()) {
    if (file.folder == "machines" && file.name == name_or_file) return std::string(file.text);
  }
  return read_file(name_or_file, kLargestFile);
}

train::MachineDescription machine_from_text(const std::string& text, const std::string& file) {
  const MachineFile machine = read_machine(read_toml_text(text, file), file, {});
  return {.planner = machine.planner, .simulated = with_kernels(machine, file), .text = text};
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
  const auto seen = read(name_or_file, "lengths", {row("shares", &lengths.shares), row("lengths", &lengths.lengths)});
  require_keys(name_or_file, seen, {"shares", "lengths"}, "every distribution");
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
