// periplus apply: one distributed operator on tensors from a file, for comparison with other implementations.
#include "launch/apply.h"

#include <filesystem>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/bytes_text.h"
#include "launch/paths.h"
#include "launch/rows.h"
#include "runtime/error.h"

namespace periplus::launch {

void add_file_options(OptionTable& table, ApplyFiles& files, std::string operands, std::string results) {
  table.add(
      {.key = "files.input", .flag = "input", .target = &files.input, .value = "FILE", .help = "safetensors with " + std::move(operands)});
  table.add(
      {.key = "files.output", .flag = "output", .target = &files.output, .value = "FILE", .help = "Where " + std::move(results) + " go."});
}

void check_files(const ApplyFiles& files) {
  if (files.input.empty()) throw InvalidArgument("--input FILE is missing");
  if (files.output.empty()) throw InvalidArgument("--output FILE is missing");
  check_input_file("input", files.input);
  check_output_file("output", files.output);
  std::error_code ignored;
  if (std::filesystem::equivalent(files.input, files.output, ignored))
    throw InvalidArgument(fmt::format("--output: '{}' is also --input, which it would replace; name another file", files.output));
}

ApplyFigures over_ranks(const ApplyFigures& mine, const comm::Communicator& communicator) {
  const Stream stream;
  const Memory memory;
  const Tensor longest({3}, DType::f64, memory), sent({1}, DType::f64, memory);
  const auto seconds = longest.view().span<double>();
  seconds[0] = mine.forward_seconds;
  seconds[1] = mine.backward_seconds;
  seconds[2] = mine.exposed_seconds;
  sent.view().span<double>()[0] = mine.bytes_sent;
  communicator.all_reduce(longest, comm::Reduce::max, stream);
  communicator.all_reduce(sent, comm::Reduce::sum, stream);
  return {seconds[0], seconds[1], seconds[2], sent.view().span<double>()[0]};
}

std::vector<std::pair<std::string, Tensor>> gather_results(const std::vector<std::pair<std::string, ConstTensorView>>& parts,
                                                           const SequenceLayout& layout, const comm::Communicator& communicator) {
  std::vector<std::pair<std::string, Tensor>> results;
  for (const auto& [name, part] : parts) {
    if (part.dims() > 0) results.emplace_back(name, gather_rows(part, layout, communicator, Memory()));
  }
  return results;
}

void print_report(const OptionTable& table, const ApplyReport& report, const ApplyFigures& figures, const ApplyFiles& files,
                  const comm::Communicator& communicator) {
  const bool on_host = report.device == "cpu";
  say(table, fmt::format("{}: {} tokens, {} ranks ({}{}), {} {}, {}: forward {:.3f} s, backward {:.3f} s, {}{} sent; wrote {}",
                         report.operation, report.tokens, communicator.size(), communicator.transport_name(),
                         on_host ? "" : ", " + report.device, report.strategy, report.layout, report.what, figures.forward_seconds,
                         figures.backward_seconds, on_host ? fmt::format("exposed communication {:.3f} s, ", figures.exposed_seconds) : "",
                         bytes_text(figures.bytes_sent), files.output));
  print_result(table, {{"operation", report.operation},
                       {"tokens", report.tokens},
                       {"ranks", communicator.size()},
                       {"transport", communicator.transport_name()},
                       {"device", report.device},
                       {"strategy", report.strategy},
                       {"layout", report.layout},
                       {"forward_seconds", figures.forward_seconds},
                       {"backward_seconds", figures.backward_seconds},
                       {"exposed_comm_seconds", on_host ? nlohmann::json(figures.exposed_seconds) : nlohmann::json()},
                       {"bytes_sent", static_cast<std::int64_t>(figures.bytes_sent)},
                       {"output", files.output}});
}

int apply_command(Arguments arguments) {
  const std::string operation = take_operation("apply", arguments);
  return operation == "attention" ? apply_attention(arguments) : apply_linear(operation, arguments);
}

}  // namespace periplus::launch
