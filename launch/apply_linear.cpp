// periplus apply linear_attention and delta_rule: recurrences over ranks on tensors from a file.
#include <fmt/format.h>

#include "launch/apply.h"
#include "launch/attention_run.h"
#include "launch/linear_file.h"
#include "launch/linear_options.h"
#include "launch/print_launch.h"
#include "launch/ranks.h"

namespace periplus::launch {
namespace {

struct Options {
  ApplyFiles files;
  LinearSettings settings;
  RankOptions ranks;
};

void add_options(OptionTable& table, const std::string& operation, Options& options) {
  add_file_options(
      table, options.files,
      fmt::format("q, k [tokens, heads, size], v [tokens, heads, value size] and, if wanted, grad_out (shape of v), of one type: "
                  "F64, F32, BF16 or F16; {}log_decay [tokens, heads] or [tokens, heads, size], at most 0: that type, F32, or F64 for F64; "
                  "cu_seqlens [documents + 1]: I32 or I64, from 0 to all tokens.",
                  operation == "delta_rule" ? "beta [tokens, heads] and, if wanted, " : "if wanted "),
      "out and, with grad_out, the gradients (grad_q, ...)");
  options.settings.add_to(table, operation == "delta_rule");
  add_rank_options(table, options.ranks, Devices::any);
  add_print_launch_option(table, options.ranks);
}

LinearAttentionProblem make_problem(const Options& options, const LinearFile& file, int ranks) {
  LinearAttentionProblem problem = options.settings.problem(file.cu_seqlens(), ranks);
  problem.heads = file.heads();
  problem.head_size = file.head_size();
  problem.value_size = file.value_size();
  problem.dtype = file.dtype();
  problem.decay = file.decay();
  problem.delta_rule = file.tensors().beta.dims() > 0;
  return problem;
}

/// Rank 0 writes; the others only send their rows.
void write_results(const Options& options, const LinearAttentionProblem& problem, const LocalLinear& local,
                   const comm::Communicator& communicator) {
  const auto results = gather_results({{"out", local.out.view()},
                                       {"grad_q", local.dq.view()},
                                       {"grad_k", local.dk.view()},
                                       {"grad_v", local.dv.view()},
                                       {"grad_log_decay", local.dlog_decay.view()},
                                       {"grad_beta", local.dbeta.view()}},
                                      problem.layout, communicator);
  if (communicator.rank() != 0) return;
  const auto per_head = [&](const std::string& name) {
    return name == "grad_beta" || (name == "grad_log_decay" && problem.decay == Decay::scalar);
  };
  NamedTensors named;
  for (const auto& [name, tensor] : results) {
    named.emplace_back(name, per_head(name) ? ConstTensorView(tensor.view().reshape({problem.layout.tokens(), problem.heads})) : tensor);
  }
  write_safetensors(options.files.output, named);
}

int apply_rank(const OptionTable& table, const std::string& operation, const Options& options, const LinearFile& file,
               const LinearAttentionProblem& problem, const comm::Communicator& communicator, Device device) {
  const LocalLinear local = run_linear(problem, options.settings.how, file.tensors(), communicator, Memory(device), stream_on(device));
  const ApplyFigures figures =
      over_ranks({local.forward_seconds, local.backward_seconds, local.exposed_seconds, local.bytes_sent}, communicator);
  write_results(options, problem, local, communicator);
  if (communicator.rank() != 0) return kOk;
  print_report(table,
               {operation, problem.layout.tokens(), options.settings.how.strategy, options.settings.layout, to_text(problem.decay),
                to_string(device)},
               figures, options.files, communicator);
  return kOk;
}

}  // namespace

int apply_linear(const std::string& operation, Arguments arguments) {
  const std::string command = "apply " + operation;
  OptionTable table(
      command,
      operation == "delta_rule" ? "the delta rule over ranks on tensors from a file" : "linear attention over ranks on tensors from a file",
      fmt::format("periplus {} --input a.safetensors --output b.safetensors --ranks 4 [options]", command));
  Options options;
  add_options(table, operation, options);
  table.parse(arguments);
  if (answered(table) || launch_printed(command, arguments, options.ranks)) return kOk;
  const RankSource source = find_ranks(options.ranks);
  check_files(options.files);
  const LinearFile file(options.files.input, operation);
  const LinearAttentionProblem problem = make_problem(options, file, source.ranks);
  return run_ranks(source, options.ranks, [&](const comm::Communicator& communicator, Device device) {
    return apply_rank(table, operation, options, file, problem, communicator, device);
  });
}

}  // namespace periplus::launch
