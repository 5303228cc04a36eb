#pragma once

#include <cstdio>
#include <optional>
#include <span>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "launch/options.h"

namespace periplus::launch {

using Arguments = std::span<const std::string>;

/// Each returns an exit code and throws for bad input and failures.
int train_command(Arguments arguments);
int apply_command(Arguments arguments);
int verify_command(Arguments arguments);
int plan_command(Arguments arguments);
int bench_command(Arguments arguments);
int simulate_command(Arguments arguments);
int estimate_command(Arguments arguments);
int calibrate_command(Arguments arguments);
int report_command(Arguments arguments);
int doctor_command(Arguments arguments);

/// What --help and --dump-config ask for instead of a run: prints it and returns true.
bool answered(const OptionTable& table);

/// Where people read: standard output, or standard error when standard output carries JSON.
void say(const OptionTable& table, const std::string& line);
nlohmann::json or_null(const std::optional<double>& number);
/// Prints the result if --json was given.
void print_result(const OptionTable& table, const nlohmann::json& result);

/// Splits "attention --layout zigzag" into the operation (attention, linear_attention, delta_rule; of plan also batch) and the rest; --help
/// may come first. Errors: InvalidArgument for another operation.
std::string take_operation(const std::string& command, Arguments& arguments);

}  // namespace periplus::launch
