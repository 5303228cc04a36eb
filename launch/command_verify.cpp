// periplus verify: proves the plans of many problems, and runs small ones in fp64 against the one-rank reference.
#include <algorithm>
#include <optional>
#include <set>
#include <vector>

#include <fmt/format.h>
#include <malloc.h>
#include <nlohmann/json.hpp>

#include "launch/attention_options.h"
#include "launch/commands.h"
#include "launch/devices.h"
#include "launch/linear_options.h"
#include "launch/ranks.h"
#include "launch/verify_run.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

struct VerifyOptions {
  std::string ranks = "1-16", sample = "none";
  VerifySelection selection;
  bool symbolic_only = false;
  std::string device = "cpu";
};

/// "1-16,64,72-88:8" -> 1..16, 64, 72, 80, 88; a count that is named twice counts once.
std::set<int> parse_ranks(const std::string& text) {
  constexpr int kMostRanks = 4096;
  std::set<int> ranks;
  std::size_t position = 0;
  const auto number = [&] {
    std::size_t used = 0;
    int value = 0;
    try {
      if (position < text.size() && std::isdigit(static_cast<unsigned char>(text[position])) != 0)
        value = std::stoi(text.substr(position), &used);
    } catch (const std::out_of_range&) {
    }
    if (value < 1 || value > kMostRanks) {
      throw InvalidArgument(
          fmt::format("--ranks: '{}' is not a list of numbers and ranges between 1 and {}, such as 1-16,64 or 72-256:8", text, kMostRanks));
    }
    position += used;
    return value;
  };
  for (;;) {
    const int first = number();
    int last = first;
    if (position < text.size() && text[position] == '-') ++position, last = number();
    if (last < first)
      throw InvalidArgument(fmt::format("--ranks: '{}': {}-{} runs backwards; write {}-{}", text, first, last, last, first));
    int step = 1;
    if (position < text.size() && text[position] == ':' && last > first) ++position, step = number();
    for (int value = first; value <= last; value += step) ranks.insert(value);
    if (position == text.size()) return ranks;
    if (text[position] != ',') position = text.size();  // which is no number, so the next round complains
    ++position;
  }
}

/// Rank counts, and what is looked at for each.
struct VerifyRun {
  std::string ranks;
  VerifySelection selection;
};

/// What is asked for, or a sample that has a name.
std::vector<VerifyRun> runs_of(const VerifyOptions& options, const OptionTable& table) {
  if (options.sample == "none") return {{options.ranks, options.selection}};
  if (options.sample != "many_ranks") throw InvalidArgument(fmt::format("--sample: '{}'; use many_ranks, or none", options.sample));
  for (const char* const chosen : {"ranks", "strategy", "layout", "mask", "head-ranks"}) {
    if (table.given(chosen)) throw InvalidArgument(fmt::format("--sample {} chooses --{}; leave one out", options.sample, chosen));
  }
  if (!options.symbolic_only)
    throw InvalidArgument(fmt::format("--sample {} has too many ranks to run here; add --symbolic-only", options.sample));
  const VerifySelection one{.layout = "zigzag", .mask = 1};
  VerifySelection meshes = one;
  meshes.strategy = "usp", meshes.head_ranks = {2, 4, 8, 16, 32, 64, 128, 256};
  return {{"72-256:8", one}, {"1024", meshes}};
}

std::optional<Device> device_of(const VerifyOptions& options, const OptionTable& table) {
  const DeviceRequest request = parse_device(options.device);
  if (options.symbolic_only) {
    if (table.given("device")) throw InvalidArgument("--device has no effect with --symbolic-only, which runs nothing; leave one out");
    return {};
  }
  require_device(request);
  return shared_device(request);
}

/// Plans come and go by the thousand: without this the C library returns their memory to the system each time.
void keep_freed_memory() {
  constexpr int kKept = 1 << 30, kLargestKept = 32 << 20;
  mallopt(M_TRIM_THRESHOLD, kKept);
  mallopt(M_MMAP_THRESHOLD, kLargestKept);
}

void add_options(OptionTable& table, VerifyOptions& options) {
  table.add({.key = "verify.ranks",
             .flag = "ranks",
             .target = &options.ranks,
             .value = "LIST",
             .help = "Numbers and ranges: 1-16,64, or in steps: 72-256:8."});
  std::vector<std::string> more = linear_strategy_names();
  more.emplace_back("all");
  add_strategy_and_layout(table, options.selection.strategy, options.selection.layout, more);
  table.add({.key = "verify.mask",
             .flag = "mask",
             .target = &options.selection.mask,
             .value = "N",
             .help = "Only this one of the softmax masks, from 1 on; 0: all, and the linear strategies."});
  table.add({.key = "verify.head_ranks",
             .flag = "head-ranks",
             .target = &options.selection.head_ranks,
             .value = "A,B,...",
             .help = "usp: the meshes to prove, by the ranks that share heads, with at least a head each."});
  table.add({.key = "verify.sample",
             .flag = "sample",
             .target = &options.sample,
             .value = "NAME",
             .help = "many_ranks: 24 rank counts up to 256, and 8 meshes of 1,024 ranks (5 GB, minutes); causal, zigzag."});
  table.add({.key = "verify.symbolic_only",
             .flag = "symbolic-only",
             .target = &options.symbolic_only,
             .help = "Leaves the fp64 comparison out."});
  table.add({.key = "parallel.device",
             .flag = "device",
             .target = &options.device,
             .value = "NAME",
             .help = "Where the fp64 comparison runs the plans: cpu, cuda or cuda:N, which all ranks share."});
}

/// Says a line for each kind of plan as it is done, and adds it to `total` and to the rows that are returned.
nlohmann::json verify_all(const OptionTable& table, const std::vector<VerifyRun>& runs, const std::optional<Device>& device,
                          VerifyEntry& total) {
  VerifyWidths widths;
  for (const VerifyRun& run : runs) {
    widths.ranks = std::max(widths.ranks, run.ranks.size());
    for (const VerifySubject& subject : verify_subjects(run.selection)) widths.kind = std::max(widths.kind, subject.kind.size());
  }
  say(table, verify_header(widths));
  keep_freed_memory();
  Prover prover;
  nlohmann::json rows = nlohmann::json::array();
  for (const VerifyRun& run : runs) {
    const std::set<int> ranks = parse_ranks(run.ranks);
    for (const VerifySubject& subject : verify_subjects(run.selection)) {
      for (const VerifyEntry& entry : verify_subject(subject, ranks, run.ranks, device, prover)) {
        for (const std::string& line : verify_lines(widths, entry)) say(table, line);
        rows.push_back(to_json(entry));
        total.tally.add(entry.tally);
      }
    }
  }
  for (const std::string& line : verify_lines(widths, total)) say(table, line);
  return rows;
}

}  // namespace

int verify_command(Arguments arguments) {
  OptionTable table("verify", "proves plans symbolically and checks small ones (up to 8 ranks) against fp64",
                    "periplus verify --ranks 1-16,64 --strategy all --layout all");
  VerifyOptions options;
  add_options(table, options);
  table.parse(arguments);
  if (answered(table)) return kOk;
  const std::vector<VerifyRun> runs = runs_of(options, table);
  for (const VerifyRun& run : runs) parse_ranks(run.ranks);  // before anything takes time
  const std::optional<Device> device = device_of(options, table);

  VerifyEntry total;
  total.how.name = "total";
  total.ranks = runs.size() > 1 ? "all" : options.ranks;
  const nlohmann::json rows = verify_all(table, runs, device, total);
  print_result(table, {{"ok", total.tally.ok()},
                       {"plans", total.tally.plans},
                       {"refused", total.tally.refused},
                       {"failures", total.tally.failures},
                       {"seconds", total.tally.seconds},
                       {"rows", rows}});
  return total.tally.ok() ? kOk : kFailedCheck;
}

}  // namespace periplus::launch
