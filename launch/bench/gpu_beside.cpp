#include "launch/bench/gpu_beside.h"

#include <atomic>
#include <chrono>
#include <thread>

#include <fmt/format.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/occupy.h"
#include "launch/bench/gpu_problem.h"
#include "launch/bench/gpu_sides.h"
#include "launch/bench/statistics.h"
#include "runtime/cuda/device.h"

namespace periplus::launch::bench {
namespace {

/// Copies within device memory at a given pace while it lives.
class PacedCopies {
 public:
  PacedCopies(int device, double bytes_per_second)
      : source_(gpu_random({kBytes / 2}, DType::bf16, 21, device)),
        target_({kBytes / 2}, DType::bf16, Memory({DeviceKind::cuda, device})),
        stream_(cuda::make_stream(device, cuda::Priority::high)),
        thread_([this, bytes_per_second](const std::stop_token& stop) { run(stop, bytes_per_second); }) {}
  double rate() const {
    return static_cast<double>(copied_.load()) / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  static constexpr std::int64_t kBytes = std::int64_t{4} << 20;
  void run(const std::stop_token& stop, double bytes_per_second) {
    const std::chrono::duration<double> pause(static_cast<double>(kBytes) / bytes_per_second);
    auto next = std::chrono::steady_clock::now();
    while (!stop.stop_requested()) {
      cuda::copy_bytes(target_.view().bytes(), source_.view().bytes(), static_cast<std::size_t>(kBytes), stream_);
      copied_ += kBytes;
      next += std::chrono::duration_cast<std::chrono::steady_clock::duration>(pause);
      while (std::chrono::steady_clock::now() < next) {
      }
    }
    cuda::synchronize(stream_);
  }
  Tensor source_, target_;
  Stream stream_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::atomic<std::int64_t> copied_{0};
  std::jthread thread_;  // last: it uses the others
};

}  // namespace

std::vector<Line> measure_beside_copies(const GpuSampling& sampling) {
  constexpr double kPace = 370e9;
  const GpuProblem problem(gpu_causal_case(16384, 16, 128), sampling.device);
  const std::string name = "causal forward 16K beside copies at 370 GB/s / alone";
  return wrong_or(problem.check(false, sampling.stream), name, [&] {
    Samples samples;
    std::vector<double> rates;
    const GpuWork side = forward_side(problem);
    gpu_seconds(side.work, sampling.stream);
    for (int i = 0; i < sampling.samples; ++i) {
      samples.yardstick.push_back(gpu_seconds(side.work, sampling.stream, 4));
      const PacedCopies copies(sampling.device, kPace);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      samples.ours.push_back(gpu_seconds(side.work, sampling.stream, 4));
      rates.push_back(copies.rate());
    }
    Line line = time_line(name, samples, 1.03);
    line.more = {{"copied_gb_per_second", median(rates) * 1e-9}};
    return std::vector{line};
  });
}

std::vector<Line> measure_beside_kernels(const GpuSampling& sampling) {
  constexpr int kHeld = 8;
  const GpuProblem problem(gpu_causal_case(16384, 16, 128), sampling.device);
  const int all = cuda::known_properties(sampling.device).multiprocessors;
  const std::string name = fmt::format("causal forward 16K, {} of {} multiprocessors held / alone on the rest", kHeld, all);
  return wrong_or(problem.check(false, sampling.stream), name, [&] {
    kernels::cuda::set_reserved_multiprocessors(kHeld);
    Samples samples;
    const GpuWork side = forward_side(problem);
    gpu_seconds(side.work, sampling.stream);
    for (int i = 0; i < sampling.samples; ++i) {
      samples.yardstick.push_back(gpu_seconds(side.work, sampling.stream, 2));
      const kernels::cuda::Occupation held(sampling.device, kHeld);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      samples.ours.push_back(gpu_seconds(side.work, sampling.stream, 2));
    }
    kernels::cuda::set_reserved_multiprocessors(0);
    return std::vector{time_line(name, samples, 1.03)};
  });
}

}  // namespace periplus::launch::bench
