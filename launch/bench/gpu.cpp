// periplus bench gpu: attention on one CUDA device against cuBLAS and against itself, linear attention against copies.
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "kernels/cuda/matmul.h"
#include "launch/bench/figure_lines.h"
#include "launch/bench/gpu_figures.h"
#include "launch/bench/suites.h"
#include "launch/ranks.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::launch::bench {
namespace {

void print_device(bool json, const GpuSampling& sampling) {
  const cuda::DeviceProperties device = cuda::properties(sampling.device);
  std::string why;
  const double rate = kernels::cuda::matmul_available(&why) ? gpu_product_rate(sampling) : 0;
  if (json) {
    nlohmann::ordered_json facts = {{"gpu", device.name}, {"driver", cuda::driver_version()}, {"toolkit", cuda::toolkit_version()}};
    facts["multiprocessors"] = device.multiprocessors;
    facts["cublas_tflops"] = rate > 0 ? nlohmann::ordered_json(std::round(rate)) : nlohmann::ordered_json(nullptr);
    return print_line(nlohmann::ordered_json{{"id", "machine"}, {"machine", facts}}.dump());
  }
  print_line(fmt::format("{}, capability {}.{}, {} multiprocessors, CUDA {}.{} by the driver; {}", device.name, device.major, device.minor,
                         device.multiprocessors, cuda::driver_version() / 1000, cuda::driver_version() % 1000 / 10,
                         rate > 0 ? fmt::format("cuBLAS 8192^3 bf16 of random data {:.0f} TFLOP/s", rate) : why));
}

}  // namespace

int bench_gpu(Arguments arguments) {
  OptionTable table("bench gpu", "attention on a CUDA device against cuBLAS, itself and copies; exit code 1 if a figure misses its goal",
                    "periplus bench gpu [--only G1,G4] [--samples 9] [--device 0]");
  std::string only;
  GpuSampling sampling;
  table.add({.flag = "only", .target = &only, .value = "IDS", .help = "Figures to measure, separated by commas; default: all."});
  table.add({.flag = "samples",
             .target = &sampling.samples,
             .value = "N",
             .help = "Samples of each figure; the median counts.",
             .least = 3,
             .most = 1000});
  table.add({.flag = "device", .target = &sampling.device, .value = "N", .help = "Which CUDA device.", .least = 0, .most = 1023});
  table.parse(arguments);
  if (answered(table)) return kOk;
  std::vector<GpuFigure> figures = gpu_figures();
  keep_chosen(figures, only);
  if (cuda::device_count() == 0) throw BackendUnavailable(cuda::unavailable_reason());
  sampling.stream = cuda::make_stream(sampling.device);
  print_device(table.json(), sampling);
  return print_figures(table.json(), figures, std::as_const(sampling)) ? kFailedCheck : kOk;
}

}  // namespace periplus::launch::bench
