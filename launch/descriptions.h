#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/planner/description.h"

namespace periplus::launch {

/// A distribution of document lengths.
struct LengthDistribution {
  std::string name;
  std::vector<double> shares, lengths;  ///< Quantiles; between them the share of longer documents is a power of the length.
  std::vector<double> uniform;          ///< Or: least and most length.

  /// `share` of all documents are shorter; in [0, 1).
  double length_at(double share) const;
};

/// From a TOML file, or one that is built in by its name: those of examples/models, examples/machines and examples/lengths.
/// Errors: InvalidArgument that names the file, key and value, or lists the names.
planner::Model load_model(const std::string& name_or_file);
planner::Machine load_machine(const std::string& name_or_file);
LengthDistribution load_lengths(const std::string& name_or_file);

/// A file that was built in.
struct BuiltInFile {
  std::string_view folder, name, text;
};
const std::vector<BuiltInFile>& built_in_files();

}  // namespace periplus::launch
