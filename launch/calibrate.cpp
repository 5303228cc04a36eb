#include "launch/calibrate.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <random>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include "kernels/matmul.h"
#include "kernels/transformer.h"
#include "launch/bench/attention_data.h"
#include "launch/bench/statistics.h"
#include "launch/cores.h"
#include "launch/cpu_seconds.h"

namespace periplus::launch {
namespace {

using Clock = std::chrono::steady_clock;

double wall_seconds() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }
constexpr std::int64_t kRows = 1024;  // of a tile in training

class Calibration {
 public:
  Calibration(const CalibrationOptions& options, const comm::Communicator& communicator)
      : options_(options), communicator_(communicator), part_of_a_core_(part_of_a_core(communicator)) {}

  simulate::Machine run() {
    simulate::Machine machine;
    machine.name = "calibrated";
    machine.devices = machine.devices_per_node = communicator_.size();
    machine.memory_bytes = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE)) / communicator_.size();
    simulate::Kernels& kernels = machine.kernels;
    kernels.matmul_flops_per_second = matmul_rate();
    // By the clock, so that other programs may lower it below what kernels reach of a core's own time.
    machine.peak_flops_per_second = std::max(mean(kernels::measure_matmul_peak(options_.dtype)), kernels.matmul_flops_per_second);
    kernels.memory_bytes_per_second = element_rate();
    kernels.launch_seconds = launch_seconds();
    for (const std::int64_t length : options_.lengths) add_attention(kernels, length);
    measure_links(machine);
    return machine;
  }

 private:
  /// A call of a kernel while all ranks work, and share cores where these are fewer.
  double seconds(const std::function<void()>& work) { return seconds_by(cpu_seconds, work) / part_of_a_core_; }

  /// The ranks' mean of their medians; all of them work at once, as they share caches and more in a run.
  double seconds_by(double (*now)(), const std::function<void()>& work) {
    work();
    std::vector<double> samples;
    for (int i = 0; i < options_.samples; ++i) {
      communicator_.barrier(stream_);
      const double begin = now();
      work();
      samples.push_back(now() - begin);
    }
    return mean(bench::median(std::move(samples)));
  }

  double mean(double value) {
    std::array<double, 1> sum = {value};
    communicator_.all_reduce(TensorView(reinterpret_cast<std::byte*>(sum.data()), DType::f64, {1}), comm::Reduce::sum, stream_);
    return sum[0] / communicator_.size();
  }

  Tensor random(const Extents& shape, DType dtype) {
    Tensor wide(shape, DType::f32, memory_);
    std::normal_distribution<float> normal;
    for (float& x : wide.view().span<float>()) x = normal(random_);
    if (dtype == DType::f32) return wide;
    Tensor tensor(wide.shape(), dtype, memory_);
    copy(wide, tensor);
    return tensor;
  }

  /// The feed-forward matrices of a layer, forward and backward in the order of training: with what lies in caches there.
  double matmul_rate() {
    const std::int64_t h = options_.hidden, f = options_.ffn;
    const DType dtype = options_.dtype;
    const Tensor x = random({kRows, h}, dtype), w_gate = random({f, h}, dtype), w_up = random({f, h}, dtype),
                 w_down = random({h, f}, dtype);
    const Tensor dw_gate = random({f, h}, DType::f32), dw_up = random({f, h}, DType::f32), dw_down = random({h, f}, DType::f32);
    const Tensor gate({kRows, f}, dtype, memory_), up({kRows, f}, dtype, memory_), product = random({kRows, f}, dtype);
    const Tensor dproduct({kRows, f}, dtype, memory_), y({kRows, h}, dtype, memory_), sum({kRows, h}, DType::f32, memory_);
    constexpr kernels::MatmulOptions kForward{.transpose_b = true};
    constexpr kernels::MatmulOptions kOfWeight{.transpose_a = true, .update = kernels::Update::accumulate};
    const double took = seconds([&] {
      kernels::matmul(x, w_gate, gate, kForward, stream_);
      kernels::matmul(x, w_up, up, kForward, stream_);
      kernels::matmul(product, w_down, y, kForward, stream_);
      kernels::matmul(x, product, dw_down, kOfWeight, stream_);
      kernels::matmul(x, w_down, dproduct, {}, stream_);
      kernels::matmul(gate, x, dw_gate, kOfWeight, stream_);
      kernels::matmul(up, x, dw_up, kOfWeight, stream_);
      kernels::matmul(gate, w_gate, sum, {}, stream_);
      kernels::matmul(up, w_up, sum, {.update = kernels::Update::accumulate}, stream_);
    });
    return 18.0 * kRows * static_cast<double>(h * f) / took;
  }

  /// Norms, sums, SwiGLU and RoPE of a layer: forward, again in backward, and their gradients. simulate_iteration counts 10 hidden, 2 q,
  /// 2 kv and 6 ffn elements a token, and as many for each of four such passes.
  double element_rate() {
    const std::int64_t h = options_.hidden, f = options_.ffn, q = options_.heads * options_.head_size;
    const DType dtype = options_.dtype;
    const Tensor x = random({kRows, h}, dtype), gamma = random({h}, dtype), gate = random({kRows, f}, dtype),
                 up = random({kRows, f}, dtype);
    const Tensor turned = random({kRows, options_.heads, options_.head_size}, dtype), sum = random({kRows, h}, DType::f32);
    const Tensor y({kRows, h}, dtype, memory_), dx({kRows, h}, dtype, memory_), product({kRows, f}, dtype, memory_);
    const Tensor dgate({kRows, f}, dtype, memory_), dup({kRows, f}, dtype, memory_), rstd({kRows}, DType::f32, memory_);
    const Tensor dgamma({h}, DType::f32, memory_);
    std::vector<std::int64_t> positions(kRows);
    for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int64_t>(i);
    const std::vector<double> frequencies = kernels::rope_frequencies(10000, options_.head_size);
    const auto turn = [&](kernels::RopeDirection direction) {
      kernels::rope(turned, positions, frequencies, kernels::RopeStyle::half, direction, stream_);
    };
    const double forward = seconds([&] {
      for (int i = 0; i < 2; ++i) {
        kernels::rms_norm(x, gamma, 1e-5, y, rstd, stream_);
        kernels::add_in_place(x, y, stream_);
        turn(kernels::RopeDirection::forward);
      }
      kernels::swiglu(gate, up, product, stream_);
    });
    const double backward = seconds([&] {
      kernels::swiglu_backward(product, gate, up, dgate, dup, stream_);
      for (int i = 0; i < 2; ++i) {
        if (dtype != DType::f32) copy(sum, y);  // sums of gradients are made in f32
        kernels::rms_norm_backward(y, x, gamma, rstd, dx, kernels::Update::accumulate, dgamma, stream_);
        turn(kernels::RopeDirection::backward);
      }
      kernels::rms_norm(x, gamma, 1e-5, y, rstd, stream_);
    });
    const double elements = static_cast<double>(kRows * (10 * h + 4 * q + 6 * f));
    return 4 * elements * static_cast<double>(size_of(dtype)) / (2 * forward + backward);
  }

  double launch_seconds() {
    const bench::AttentionData tiny(bench::causal_case(options_.dtype, 8, 1, options_.head_size));
    constexpr int kCalls = 100;
    return seconds([&] {
             for (int i = 0; i < kCalls; ++i) tiny.forward();
           }) /
           kCalls;
  }

  void add_attention(simulate::Kernels& kernels, std::int64_t length) {
    bench::AttentionCase causal = bench::causal_case(options_.dtype, length, options_.heads, options_.head_size), full = causal;
    full.bands = {{.q0 = 0, .q1 = length, .k0 = 0, .k1 = length}};
    for (const bench::AttentionCase& problem : {causal, full}) {
      const bench::AttentionData data(problem);
      const double forward = seconds([&] { data.forward(); });
      data.compute_delta();
      const double backward = seconds([&] { data.backward(); });
      const bool masked = bench::pairs(problem) < bench::pairs(full);
      (masked ? kernels.forward.causal_flops_per_second : kernels.forward.full_flops_per_second)
          .push_back(bench::forward_flop(problem) / (forward - std::min(forward / 2, kernels.launch_seconds)));
      (masked ? kernels.backward.causal_flops_per_second : kernels.backward.full_flops_per_second)
          .push_back(bench::backward_flop(problem) / (backward - std::min(backward / 2, kernels.launch_seconds)));
    }
    kernels.forward.lengths.push_back(static_cast<double>(length));
    kernels.backward.lengths.push_back(static_cast<double>(length));
  }

  /// Ranks 0 and 1 exchange a few bytes, then much.
  void measure_links(simulate::Machine& machine) {
    comm::Pacing& link = machine.links.inside;
    link = {.bytes_per_second = machine.kernels.memory_bytes_per_second, .latency_seconds = 0};
    if (communicator_.size() > 1) {
      constexpr std::size_t kMany = std::size_t{4} << 20;
      link.latency_seconds = exchange_seconds(8);
      link.bytes_per_second = static_cast<double>(kMany) / std::max(1e-9, exchange_seconds(kMany) - link.latency_seconds);
    }
    machine.links.between = link;
    machine.node_bytes_per_second = link.bytes_per_second;
  }

  double exchange_seconds(std::size_t bytes) {
    std::vector<std::byte> out(bytes), in(bytes);
    const int rank = communicator_.rank();
    constexpr int kCalls = 20;
    const double took = seconds_by(wall_seconds, [&] {
      for (int i = 0; i < kCalls && rank < 2; ++i) {
        const comm::Send send{1 - rank, out.data(), bytes};
        const comm::Receive receive{1 - rank, in.data(), bytes};
        communicator_.exchange({&send, 1}, {&receive, 1}, {"calibrate"}, stream_).wait();
      }
    });
    // Ranks beyond the first two have not waited.
    return took * communicator_.size() / 2 / kCalls;
  }

  const CalibrationOptions& options_;
  const comm::Communicator& communicator_;
  const double part_of_a_core_;
  Memory memory_;
  Stream stream_;
  std::mt19937 random_{1};
};

std::string list(const std::vector<double>& values) {
  std::vector<std::string> texts;
  for (const double value : values) texts.push_back(fmt::format("{:.4e}", value));
  return fmt::format("[{}]", fmt::join(texts, ", "));
}

}  // namespace

simulate::Machine calibrate(const CalibrationOptions& options, const comm::Communicator& communicator) {
  return Calibration(options, communicator).run();
}

std::string to_toml(const simulate::Machine& machine, const CalibrationOptions& options) {
  const simulate::Kernels& k = machine.kernels;
  return fmt::format(
      "# Measured by periplus calibrate: {} ranks at once, {}, hidden {}, feed-forward {}, {} heads of {}.\n"
      "[devices]\ncount = {}\nper_node = {}\nmemory_bytes = {:.4e}\npeak_flops_per_second = {:.4e}\n\n"
      "[links]\ndevice_bytes_per_second = {:.4e}\ndevice_hop_seconds = {:.3e}\nnode_bytes_per_second = {:.4e}  # one node: not measured\n"
      "stream_bytes_per_second = {:.4e}\nhop_seconds = {:.3e}\nring_efficiency = 1.0\n\n"
      "[kernels]\nmatmul_flops_per_second = {:.4e}\nmemory_bytes_per_second = {:.4e}\nlaunch_seconds = {:.3e}\n"
      "forward_lengths = {}\nforward_causal = {}\nforward_full = {}\nbackward_lengths = {}\nbackward_causal = {}\nbackward_full = {}\n",
      machine.devices, to_string(options.dtype), options.hidden, options.ffn, options.heads, options.head_size, machine.devices,
      machine.devices_per_node, machine.memory_bytes, machine.peak_flops_per_second, machine.links.inside.bytes_per_second,
      machine.links.inside.latency_seconds, machine.node_bytes_per_second, machine.links.between.bytes_per_second,
      machine.links.between.latency_seconds, k.matmul_flops_per_second, k.memory_bytes_per_second, k.launch_seconds,
      list(k.forward.lengths), list(k.forward.causal_flops_per_second), list(k.forward.full_flops_per_second), list(k.backward.lengths),
      list(k.backward.causal_flops_per_second), list(k.backward.full_flops_per_second));
}

}  // namespace periplus::launch
