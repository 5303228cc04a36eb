// periplus bench attention: one distributed attention on P ranks against one process with P threads.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <omp.h>

#include "launch/attention_options.h"
#include "launch/attention_run.h"
#include "launch/bench/alone.h"
#include "launch/bench/statistics.h"
#include "launch/bench/suites.h"
#include "launch/ranks.h"
#include "launch/rows.h"
#include "parallel/balanced_layout.h"
#include "runtime/error.h"

namespace periplus::launch::bench {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  AttentionOptions how;
  std::string layout = "zigzag", machine, dtype = "bf16";
  std::int64_t tokens = 16384;
  int heads = 8, kv_heads = 2, head_size = 128, samples = 7;
  RankOptions ranks{.alone = 2};
};

void add_options(OptionTable& table, Options& options) {
  add_strategy_options(table, options.how, options.layout);
  add_machine_option(table, options.machine);
  table.add({.flag = "tokens", .target = &options.tokens, .value = "N", .help = "Tokens of the one causal document.", .least = 1});
  table.add({.flag = "heads", .target = &options.heads, .value = "N", .help = "Query heads.", .least = 1});
  table.add({.flag = "kv-heads", .target = &options.kv_heads, .value = "N", .help = "Key/value heads; divides heads.", .least = 1});
  table.add({.flag = "head-size", .target = &options.head_size, .value = "N", .help = "Width of a head.", .least = 1});
  table.add({.flag = "dtype", .target = &options.dtype, .value = "TYPE", .help = "Type of q, k, v:", .choices = {"bf16", "f16", "f32"}});
  table.add({.flag = "samples", .target = &options.samples, .value = "N", .help = "Pairs of measurements; the median counts.", .least = 1});
  add_rank_options(table, options.ranks);
}

AttentionProblem make_problem(const Options& options, int ranks) {
  const std::vector<std::int64_t> borders{0, options.tokens};
  const Mask mask({}, borders);
  AttentionProblem problem{.layout = make_layout(layout_kind_from_string(options.layout), ranks, mask), .mask = mask};
  problem.q_heads = options.heads, problem.kv_heads = options.kv_heads, problem.head_size = options.head_size;
  problem.dtype = dtype_from_string(options.dtype);
  return problem;
}

Tensor random_tensor(std::int64_t rows, int heads, int width, DType dtype, std::uint64_t seed, const Memory& memory) {
  std::mt19937 random(static_cast<std::uint32_t>(seed));
  std::normal_distribution<float> normal;
  const Tensor wide({rows, heads, width}, DType::f32, memory);
  for (float& x : wide.view().span<float>()) x = normal(random);
  Tensor tensor(wide.shape(), dtype, memory);
  copy(wide, tensor);
  return tensor;
}

/// One rank's attention, planned once and run many times.
class Run {
 public:
  Run(const AttentionProblem& problem, const AttentionOptions& how, const GlobalAttention& global, const comm::Communicator& communicator,
      const Memory& memory)
      : attention_(problem, how, communicator, memory) {
    const auto rows = [&](const ConstTensorView& whole) { return take_rows(whole, problem.layout, communicator.rank(), memory); };
    q_ = rows(global.q), k_ = rows(global.k), v_ = rows(global.v), dout_ = rows(global.dout);
    out_ = Tensor(dout_.shape(), problem.dtype, memory);
    lse_ = Tensor({dout_.shape()[0], problem.q_heads, 1}, accumulator_of(problem.dtype), memory);
    dq_ = Tensor(q_.shape(), problem.dtype, memory), dk_ = Tensor(k_.shape(), problem.dtype, memory);
    dv_ = Tensor(v_.shape(), problem.dtype, memory);
  }
  void forward_and_backward() {
    const AttentionInputs inputs{q_, k_, v_};
    const AttentionOutputs outputs{out_, lse_};
    attention_.forward(inputs, outputs);
    attention_.backward(inputs, outputs, {dout_}, {dq_, dk_, dv_});
  }
  const Tensor& out() const { return out_; }
  const Tensor& dk() const { return dk_; }

 private:
  DistributedAttention attention_;
  Tensor q_, k_, v_, dout_, out_, lse_, dq_, dk_, dv_;
};

double seconds_of(Run& run) {
  const Clock::time_point begin = Clock::now();
  run.forward_and_backward();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// Relative RMS difference of two tensors of one shape.
double difference(ConstTensorView a, ConstTensorView b, const Memory& memory) {
  const auto widened = [&](ConstTensorView tensor) {
    Tensor wide(tensor.shape(), DType::f32, memory);
    copy(tensor, wide);
    return wide;
  };
  const Tensor x = widened(a), y = widened(b);
  double error = 0, size = 0;
  for (std::size_t i = 0; i < x.view().span<float>().size(); ++i) {
    const double u = x.view().span<float>()[i], v = y.view().span<float>()[i];
    error += (u - v) * (u - v), size += v * v;
  }
  return std::sqrt(error / std::max(size, 1e-300));
}

struct Result {
  std::vector<double> ranks, threads;  ///< seconds
  double largest_difference = 0;       ///< Of out and dk.
};

Result alternate(const OptionTable& table, const Options& options, int cores, const comm::Communicator& communicator) {
  const Memory memory;
  const Stream stream;
  const AttentionProblem many = make_problem(options, communicator.size()), one = make_problem(options, 1);
  const Tensor q = random_tensor(options.tokens, options.heads, options.head_size, many.dtype, 1, memory),
               k = random_tensor(options.tokens, options.kv_heads, options.head_size, many.dtype, 2, memory),
               v = random_tensor(options.tokens, options.kv_heads, options.head_size, many.dtype, 3, memory),
               dout = random_tensor(options.tokens, options.heads, options.head_size, many.dtype, 4, memory);
  const GlobalAttention global{q, k, v, {}, dout, {}};
  Run on_ranks(many, options.how, global, communicator, memory);
  Result result;
  std::optional<Run> on_threads;
  if (communicator.rank() == 0) on_threads.emplace(one, AttentionOptions{}, global, comm::Communicator(), memory);
  for (int sample = -1; sample < options.samples; ++sample) {  // the first of each side warms up
    omp_set_num_threads(std::max(1, cores / communicator.size()));
    communicator.barrier(stream);
    const Tensor slowest({1}, DType::f64, memory);
    slowest.view().span<double>()[0] = seconds_of(on_ranks);
    communicator.all_reduce(slowest, comm::Reduce::max, stream);
    alone(communicator, [&] {
      omp_set_num_threads(cores);
      const double seconds = seconds_of(*on_threads);
      if (sample < 0) return;
      result.ranks.push_back(slowest.view().span<double>()[0]);
      result.threads.push_back(seconds);
      say(table, fmt::format("sample {} of {}: {:.3f} s on ranks, {:.3f} s on threads, ratio {:.3f}", sample + 1, options.samples,
                             result.ranks.back(), seconds, seconds / result.ranks.back()));
    });
  }
  const Tensor out = gather_rows(on_ranks.out(), many.layout, communicator, memory),
               dk = gather_rows(on_ranks.dk(), many.layout, communicator, memory);
  if (communicator.rank() == 0)
    result.largest_difference = std::max(difference(out, on_threads->out(), memory), difference(dk, on_threads->dk(), memory));
  return result;
}

int report(const OptionTable& table, const Options& options, const Result& result, int cores, const comm::Communicator& communicator) {
  constexpr double kGoal = 0.95, kTolerance = 0.02;  // bf16 rounds by 0.004; sums run in another order
  std::vector<double> ratios;
  for (std::size_t i = 0; i < result.ranks.size(); ++i) ratios.push_back(result.threads[i] / result.ranks[i]);
  const double ratio = median(ratios);
  const bool same = result.largest_difference <= kTolerance, pass = same && ratio >= kGoal;
  const std::string what =
      fmt::format("{} {}, {} ranks ({}), {} tokens, {}/{} heads of {}, {}", options.how.strategy, options.layout, communicator.size(),
                  communicator.transport_name(), options.tokens, options.heads, options.kv_heads, options.head_size, options.dtype);
  say(table, fmt::format("{}: {:.3f} s; one process with {} threads {:.3f} s; median ratio {:.3f} ({:.3f} to {:.3f}), goal {}; results "
                         "differ by {:.2g}{}",
                         what, median(result.ranks), cores, median(result.threads), ratio, std::ranges::min(ratios),
                         std::ranges::max(ratios), kGoal, result.largest_difference, same ? "" : ": too much"));
  print_result(table, {{"id", "C5"},
                       {"case", what},
                       {"value", median(result.ranks)},
                       {"yardstick", median(result.threads)},
                       {"ratio", ratio},
                       {"goal", kGoal},
                       {"pass", pass}});
  return pass ? kOk : kFailedCheck;
}

}  // namespace

int bench_attention(Arguments arguments) {
  OptionTable table("bench attention", "distributed attention, forward and backward: ranks against one process with as many threads",
                    "[mpirun --bind-to none -n 2] periplus bench attention --strategy ring --layout zigzag");
  Options options;
  add_options(table, options);
  table.parse(arguments);
  if (answered(table)) return kOk;
  if (options.heads % options.kv_heads != 0)
    throw InvalidArgument(fmt::format("--heads {} is not a multiple of --kv-heads {}", options.heads, options.kv_heads));
  const RankSource source = find_ranks(options.ranks);
  const int cores = omp_get_num_procs();
  if (source.processes() && cores < source.ranks) {
    throw InvalidArgument(
        fmt::format("this process may use {} of the cores that {} ranks need; start it with mpirun --bind-to none", cores, source.ranks));
  }
  resolve_auto(table, options.machine, make_problem(options, source.ranks), options.how, source.rank);
  return run_ranks(source, options.ranks, [&](const comm::Communicator& communicator) {
    const Result result = alternate(table, options, cores, communicator);
    return communicator.rank() == 0 ? report(table, options, result, cores, communicator) : static_cast<int>(kOk);
  });
}

}  // namespace periplus::launch::bench
