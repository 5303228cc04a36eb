#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "launch/commands.h"
#include "launch/options.h"
#include "parallel/layout.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor.h"

/// What the operations of `periplus apply` share.
namespace periplus::launch {

int apply_attention(Arguments arguments);
/// `operation` is linear_attention or delta_rule.
int apply_linear(const std::string& operation, Arguments arguments);

struct ApplyFiles {
  std::string input, output;
};
/// Rows --input and --output; the texts say which tensors there are.
void add_file_options(OptionTable& table, ApplyFiles& files, std::string operands, std::string results);
/// Errors: InvalidArgument if one is missing, or input or the folder of output does not exist.
void check_files(const ApplyFiles& files);

/// What a run took; over ranks the longest times and the sum of bytes.
struct ApplyFigures {
  double forward_seconds = 0, backward_seconds = 0, exposed_seconds = 0;
  double bytes_sent = 0;
};
/// Collective.
ApplyFigures over_ranks(const ApplyFigures& mine, const comm::Communicator& communicator);

/// Whole tensors on rank 0, in the order given; parts that are empty are left out. Collective.
std::vector<std::pair<std::string, Tensor>> gather_results(const std::vector<std::pair<std::string, ConstTensorView>>& parts,
                                                           const SequenceLayout& layout, const comm::Communicator& communicator);

/// The sentence for people and the object for programs; on rank 0.
struct ApplyReport {
  std::string operation;
  std::int64_t tokens = 0;
  std::string strategy, layout, what;  ///< what: mask, or decay
  std::string device = "cpu";
};
void print_report(const OptionTable& table, const ApplyReport& report, const ApplyFigures& figures, const ApplyFiles& files,
                  const comm::Communicator& communicator);

}  // namespace periplus::launch
