#pragma once

#include <string>
#include <vector>

#include "launch/bench/kernel_figures.h"
#include "launch/bench/sampling.h"
#include "launch/options.h"

namespace periplus::launch::bench {

/// Rows --only, --samples and --patience.
void add_sampling_options(OptionTable& table, std::string& only, Sampling& sampling);

/// Measures the figures, or those that `only` lists, and prints the machine and a line each. Returns the exit code: failed
/// if a figure misses its goal or is too noisy to tell.
int run_figures(const OptionTable& table, std::vector<Figure> figures, const std::string& only, Sampling& sampling);

}  // namespace periplus::launch::bench
