// periplus apply attention: one distributed operator on tensors from a file, for comparison with other implementations.
#include <filesystem>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/attention_options.h"
#include "launch/commands.h"
#include "launch/print_launch.h"
#include "launch/progress.h"
#include "launch/ranks.h"
#include "launch/tensor_file.h"
#include "parallel/balanced_layout.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

struct ApplyOptions {
  std::string input, output;
  AttentionOptions how;
  std::string layout = "zigzag";
  MaskOptions mask;
  double scale = 0;
  RankOptions ranks;
};

void add_options(OptionTable& table, ApplyOptions& options) {
  table.add({.key = "files.input",
             .flag = "input",
             .target = &options.input,
             .value = "FILE",
             .help = "safetensors with q, k, v and, if wanted, grad_out, grad_lse, cu_seqlens, sink."});
  table.add({.key = "files.output",
             .flag = "output",
             .target = &options.output,
             .value = "FILE",
             .help = "Where out, lse and, with grad_out, the gradients go."});
  add_strategy_options(table, options.how, options.layout);
  add_mask_options(table, options.mask);
  table.add({.key = "attention.scale",
             .flag = "scale",
             .target = &options.scale,
             .value = "X",
             .help = "Factor of the scores; 0: 1/sqrt(head size).",
             .least = 0});
  add_rank_options(table, options.ranks, Devices::any);
  add_print_launch_option(table, options.ranks);
}

void check_files(const ApplyOptions& options) {
  if (options.input.empty()) throw InvalidArgument("--input FILE is missing");
  if (options.output.empty()) throw InvalidArgument("--output FILE is missing");
  if (!std::filesystem::exists(options.input)) throw InvalidArgument(fmt::format("--input: there is no file '{}'", options.input));
  const std::filesystem::path folder = std::filesystem::absolute(options.output).parent_path();
  if (!std::filesystem::is_directory(folder)) throw InvalidArgument(fmt::format("--output: there is no folder '{}'", folder.string()));
}

AttentionProblem make_problem(const ApplyOptions& options, const OptionTable& table, const AttentionFile& file, int ranks) {
  const Mask mask(mask_spec(options.mask, table), file.cu_seqlens());
  AttentionProblem problem{.layout = make_layout(layout_kind_from_string(options.layout), ranks, mask), .mask = mask};
  problem.q_heads = file.q_heads();
  problem.kv_heads = file.kv_heads();
  problem.head_size = file.head_size();
  problem.value_size = file.value_size();
  problem.dtype = file.dtype();
  problem.scale = options.scale;
  problem.sink = file.tensors().sink.dims() > 0;
  problem.lse_gradient = file.tensors().dlse.dims() > 0;
  return problem;
}

struct Figures {
  double forward_seconds, backward_seconds, exposed_seconds;
  double bytes_sent;  ///< Sum over ranks.
};

Figures figures_over_ranks(const LocalAttention& local, std::size_t bytes_sent, const comm::Communicator& communicator,
                           const Memory& memory) {
  const Stream stream;
  const Tensor longest({3}, DType::f64, memory), sent({1}, DType::f64, memory);
  const auto seconds = longest.view().span<double>();
  seconds[0] = local.forward_seconds;
  seconds[1] = local.backward_seconds;
  seconds[2] = local.exposed_seconds;
  sent.view().span<double>()[0] = static_cast<double>(bytes_sent);
  communicator.all_reduce(longest, comm::Reduce::max, stream);
  communicator.all_reduce(sent, comm::Reduce::sum, stream);
  return {seconds[0], seconds[1], seconds[2], sent.view().span<double>()[0]};
}

/// Rank 0 writes; the others only send their rows.
void write_results(const ApplyOptions& options, const AttentionProblem& problem, const LocalAttention& local,
                   const comm::Communicator& communicator, const Memory& memory) {
  std::vector<std::pair<std::string, Tensor>> results;
  const auto gather = [&](const char* name, const Tensor& part) {
    if (!part.empty()) results.emplace_back(name, gather_rows(part, problem.layout, communicator, memory));
  };
  gather("out", local.out);
  gather("lse", local.lse);
  gather("grad_q", local.dq);
  gather("grad_k", local.dk);
  gather("grad_v", local.dv);
  const bool sink_gradient = !local.dsink.empty();
  if (sink_gradient) communicator.all_reduce(local.dsink, comm::Reduce::sum, Stream());
  if (communicator.rank() != 0) return;
  NamedTensors named;
  for (const auto& [name, tensor] : results) {
    named.emplace_back(name, name == "lse" ? ConstTensorView(tensor.view().reshape({problem.layout.tokens(), problem.q_heads})) : tensor);
  }
  if (sink_gradient) named.emplace_back("grad_sink", local.dsink.view().reshape({problem.q_heads}));
  write_safetensors(options.output, named);
}

int apply_rank(const OptionTable& table, const ApplyOptions& options, const AttentionFile& file, const AttentionProblem& problem,
               const comm::Communicator& communicator, Device device) {
  const Memory memory;
  const std::size_t before = communicator.traffic().bytes_sent;
  const LocalAttention local = run_attention(problem, options.how, file.tensors(), communicator, Memory(device), stream_on(device));
  const Figures figures = figures_over_ranks(local, communicator.traffic().bytes_sent - before, communicator, memory);
  write_results(options, problem, local, communicator, memory);
  if (communicator.rank() != 0) return kOk;
  const bool on_host = device.kind == DeviceKind::cpu;
  say(table, fmt::format("attention: {} tokens, {} ranks ({}{}), {} {}, {}: forward {:.3f} s, backward {:.3f} s, {}{} sent; wrote {}",
                         problem.layout.tokens(), communicator.size(), communicator.transport_name(),
                         on_host ? "" : fmt::format(", {}", to_string(device)), options.how.strategy, options.layout,
                         to_text(problem.mask.spec()), figures.forward_seconds, figures.backward_seconds,
                         on_host ? fmt::format("exposed communication {:.3f} s, ", figures.exposed_seconds) : "",
                         bytes_text(figures.bytes_sent), options.output));
  print_result(table, {{"operation", "attention"},
                       {"tokens", problem.layout.tokens()},
                       {"ranks", communicator.size()},
                       {"transport", communicator.transport_name()},
                       {"device", to_string(device)},
                       {"strategy", options.how.strategy},
                       {"layout", options.layout},
                       {"forward_seconds", figures.forward_seconds},
                       {"backward_seconds", figures.backward_seconds},
                       {"exposed_comm_seconds", on_host ? nlohmann::json(figures.exposed_seconds) : nlohmann::json()},
                       {"bytes_sent", static_cast<std::int64_t>(figures.bytes_sent)},
                       {"output", options.output}});
  return kOk;
}

}  // namespace

int apply_command(Arguments arguments) {
  take_operation("apply", arguments);
  OptionTable table("apply attention", "softmax attention over ranks on tensors from a file",
                    "periplus apply attention --input a.safetensors --output b.safetensors --ranks 4 [options]");
  ApplyOptions options;
  add_options(table, options);
  table.parse(arguments);
  if (answered(table) || launch_printed("apply attention", arguments, options.ranks)) return kOk;
  const RankSource source = find_ranks(options.ranks);
  check_files(options);
  const AttentionFile file(options.input);
  const AttentionProblem problem = make_problem(options, table, file, source.ranks);
  resolve_auto(table, problem, options.how);
  return run_ranks(source, options.ranks, [&](const comm::Communicator& communicator, Device device) {
    return apply_rank(table, options, file, problem, communicator, device);
  });
}

}  // namespace periplus::launch
