// periplus apply attention: softmax attention over ranks on tensors from a file.
#include <fmt/format.h>

#include "launch/apply.h"
#include "launch/attention_file.h"
#include "launch/attention_options.h"
#include "launch/print_launch.h"
#include "launch/ranks.h"

namespace periplus::launch {
namespace {

struct Options {
  ApplyFiles files;
  AttentionSettings settings;
  RankOptions ranks;
};

void add_options(OptionTable& table, Options& options) {
  add_file_options(table, options.files,
                   "q [tokens, heads, size], k [tokens, KV heads, size], v [tokens, KV heads, value size] and, if wanted, grad_out "
                   "[tokens, heads, value size], of one type: F64, F32, BF16 or F16; grad_lse [tokens, heads], sink [heads]: F32, or F64 "
                   "for F64; cu_seqlens [documents + 1]: I32 or I64, from 0 to all tokens.",
                   "out, lse and, with grad_out, grad_q, grad_k, grad_v and grad_sink");
  options.settings.add_to(table);
  add_rank_options(table, options.ranks, Devices::any);
  add_print_launch_option(table, options.ranks);
}

AttentionProblem make_problem(const Options& options, const OptionTable& table, const AttentionFile& file, int ranks) {
  AttentionProblem problem = options.settings.problem(table, file.cu_seqlens(), ranks);
  problem.q_heads = file.q_heads();
  problem.kv_heads = file.kv_heads();
  problem.head_size = file.head_size();
  problem.value_size = file.value_size();
  problem.dtype = file.dtype();
  problem.sink = file.tensors().sink.dims() > 0;
  problem.lse_gradient = file.tensors().dlse.dims() > 0;
  return problem;
}

/// Rank 0 writes; the others only send their rows.
void write_results(const Options& options, const AttentionProblem& problem, const LocalAttention& local,
                   const comm::Communicator& communicator) {
  const auto results = gather_results({{"out", local.out.view()},
                                       {"lse", local.lse.view()},
                                       {"grad_q", local.dq.view()},
                                       {"grad_k", local.dk.view()},
                                       {"grad_v", local.dv.view()}},
                                      problem.layout, communicator);
  const bool sink_gradient = !local.dsink.empty();
  if (sink_gradient) communicator.all_reduce(local.dsink, comm::Reduce::sum, Stream());
  if (communicator.rank() != 0) return;
  NamedTensors named;
  for (const auto& [name, tensor] : results) {
    named.emplace_back(name, name == "lse" ? ConstTensorView(tensor.view().reshape({problem.layout.tokens(), problem.q_heads})) : tensor);
  }
  if (sink_gradient) named.emplace_back("grad_sink", local.dsink.view().reshape({problem.q_heads}));
  write_safetensors(options.files.output, named);
}

int apply_rank(const OptionTable& table, const Options& options, const AttentionFile& file, const AttentionProblem& problem,
               const comm::Communicator& communicator, Device device) {
  const LocalAttention local =
      run_attention(problem, options.settings.how, file.tensors(), communicator, Memory(device), stream_on(device));
  const ApplyFigures figures =
      over_ranks({local.forward_seconds, local.backward_seconds, local.exposed_seconds, local.bytes_sent}, communicator);
  write_results(options, problem, local, communicator);
  if (communicator.rank() != 0) return kOk;
  print_report(table,
               {"attention", problem.layout.tokens(), options.settings.how.strategy, options.settings.layout, to_text(problem.mask.spec()),
                to_string(device)},
               figures, options.files, communicator);
  return kOk;
}

}  // namespace

int apply_attention(Arguments arguments) {
  OptionTable table("apply attention", "softmax attention over ranks on tensors from a file",
                    "periplus apply attention --input a.safetensors --output b.safetensors --ranks 4 [options]");
  Options options;
  add_options(table, options);
  table.parse(arguments);
  if (answered(table) || launch_printed("apply attention", arguments, options.ranks)) return kOk;
  const RankSource source = find_ranks(options.ranks);
  check_files(options.files);
  const AttentionFile file(options.files.input);
  const AttentionProblem problem = make_problem(options, table, file, source.ranks);
  resolve_auto(table, options.settings.machine, problem, options.settings.how, source.rank);
  return run_ranks(source, options.ranks, [&](const comm::Communicator& communicator, Device device) {
    return apply_rank(table, options, file, problem, communicator, device);
  });
}

}  // namespace periplus::launch
