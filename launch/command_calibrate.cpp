// periplus calibrate: what the simulator needs to know of the machine that this runs on.
#include <algorithm>
#include <functional>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "launch/calibrate.h"
#include "launch/commands.h"
#include "launch/descriptions.h"
#include "launch/paths.h"
#include "launch/ranks.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus::launch {

int calibrate_command(Arguments arguments) {
  OptionTable table("calibrate", "measures kernels and links of this machine and writes its file for simulate and estimate",
                    "[mpirun -n 2] periplus calibrate [--ranks 2] --output machine.toml [options]");
  CalibrationOptions options;
  RankOptions ranks{.alone = 2};
  std::string output = "machine.toml", dtype = "bf16";
  table.add({.flag = "output", .target = &output, .value = "FILE", .help = "Where the machine's file goes, TOML."});
  table.add({.flag = "dtype", .target = &dtype, .value = "TYPE", .help = "Storage type of activations:", .choices = {"bf16", "f32"}});
  table.add({.flag = "hidden", .target = &options.hidden, .value = "N", .help = "Width of the model that will be simulated.", .least = 1});
  table.add({.flag = "ffn", .target = &options.ffn, .value = "N", .help = "And of its feed-forward part.", .least = 1});
  table.add({.flag = "heads", .target = &options.heads, .value = "N", .help = "Query heads.", .least = 1});
  table.add({.flag = "head-size", .target = &options.head_size, .value = "N", .help = "Width of a head; even.", .least = 2});
  table.add(
      {.flag = "lengths", .target = &options.lengths, .value = "A,B,...", .help = "Lengths of attention blocks, ascending.", .least = 1});
  table.add({.flag = "samples", .target = &options.samples, .value = "N", .help = "Of each figure; the median counts.", .least = 1});
  add_rank_options(table, ranks);
  table.parse(arguments);
  if (answered(table)) return kOk;
  options.dtype = dtype_from_string(dtype);
  if (std::ranges::adjacent_find(options.lengths, std::ranges::greater_equal()) != options.lengths.end())
    throw InvalidArgument(fmt::format("--lengths {}: they must ascend", fmt::join(options.lengths, ",")));
  if (options.head_size % 2 != 0)
    throw InvalidArgument(fmt::format("--head-size {} is odd; rotary positions turn pairs", options.head_size));
  check_output_file("output", output);
  if (!output.ends_with(".toml"))
    throw InvalidArgument(fmt::format("--output: '{}' must end with .toml, so that --machine finds it", output));
  return run_ranks(find_ranks(ranks), ranks, [&](const comm::Communicator& communicator) {
    const simulate::Machine machine = calibrate(options, communicator);
    if (communicator.rank() != 0) return kOk;
    const std::string text = to_toml(machine, options);
    write_file_atomically(output, text);
    load_simulated_machine(output);  // what cannot be read back must not be left unsaid
    say(table, text + fmt::format("\nwritten to {}; use it with --machine {}", output, output));
    print_result(table, {{"machine", output},
                         {"matmul_flops_per_second", machine.kernels.matmul_flops_per_second},
                         {"memory_bytes_per_second", machine.kernels.memory_bytes_per_second},
                         {"link_bytes_per_second", machine.links.inside.bytes_per_second},
                         {"link_latency_seconds", machine.links.inside.latency_seconds}});
    return kOk;
  });
}

}  // namespace periplus::launch
