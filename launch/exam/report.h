#pragma once

#include <string>

#include "launch/options.h"

namespace periplus::launch::exam {

/// Runs the rows that `only` lists ("all", or ids separated by commas) and prints a line each; with --json a JSON line each,
/// and a summary. `picture`: a folder for exam.svg and, with S1 and S23, flexsp.svg and lasp2.svg; empty: none. Returns an exit code: a row
/// that misses is a result, not a failure.
int run_exam(const OptionTable& table, const std::string& only, const std::string& picture);

}  // namespace periplus::launch::exam
