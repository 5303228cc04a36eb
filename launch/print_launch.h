#pragma once

#include <span>
#include <string>

#include "launch/ranks.h"

namespace periplus::launch {

/// The command lines, under a comment each, that start `periplus COMMAND ARGUMENTS` as processes: with mpirun on this host
/// and on two, with srun and with torchrun. The arguments lose --ranks and --transport, which the launcher decides, and --print-launch.
/// Errors: InvalidArgument unless --ranks says how many processes.
std::string launch_lines(const std::string& command, std::span<const std::string> arguments, const RankOptions& options);

/// Prints them if --print-launch was given; returns whether it was.
bool launch_printed(const std::string& command, std::span<const std::string> arguments, const RankOptions& options);

}  // namespace periplus::launch
