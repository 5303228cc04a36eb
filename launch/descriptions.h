#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/planner/description.h"
#include "parallel/simulate/machine.h"
#include "parallel/simulate/shape.h"
#include "parallel/train/planner_costs.h"

namespace periplus::launch {

/// A distribution of document lengths.
struct LengthDistribution {
  std::string name;
  std::vector<double> shares, lengths;  ///< Quantiles; between them the share of longer documents is a power of the length.
  std::vector<double> uniform;          ///< Or: least and most length.

  /// `share` of all documents are shorter; in [0, 1).
  double length_at(double share) const;
};

/// From a TOML file, or one that is built in by its name: those of examples/models, machines, kernels and lengths. A file of a
/// model or machine has one schema for the planner and the simulator; each asks for the keys that it needs (docs/simulator.md).
/// Errors: InvalidArgument that names the file, key and value, or lists the names.
planner::Model load_model(const std::string& name_or_file);
planner::Machine load_machine(const std::string& name_or_file);
simulate::Shape load_shape(const std::string& name_or_file);
/// `kernels`: a name or file of examples/kernels in place of the kernels.base of the machine's file; empty: that. Other keys of
/// kernels in the machine's file go before either.
simulate::Machine load_simulated_machine(const std::string& name_or_file, const std::string& kernels = {});
/// The text of a machine's file; and what it says, with the simulator's kernels. `file`: for messages.
std::string machine_text(const std::string& name_or_file);
train::MachineDescription machine_from_text(const std::string& text, const std::string& file);
LengthDistribution load_lengths(const std::string& name_or_file);

/// A file that was built in.
struct BuiltInFile {
  std::string_view folder, name, text;
};
const std::vector<BuiltInFile>& built_in_files();

}  // namespace periplus::launch
