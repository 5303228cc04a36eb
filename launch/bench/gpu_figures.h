#pragma once

#include <functional>
#include <string>
#include <vector>

#include "launch/bench/report.h"
#include "runtime/device.h"

namespace periplus::launch::bench {

struct GpuSampling {
  int device = 0;
  int samples = 9;
  Stream stream = {};
};

/// One figure of `bench gpu`.
struct GpuFigure {
  std::string id, name;
  std::function<std::vector<Line>(const GpuSampling&)> measure;
};
std::vector<GpuFigure> gpu_figures();

/// TFLOP/s of cuBLAS for a large bf16 product of random data. BackendUnavailable without cuBLAS.
double gpu_product_rate(const GpuSampling& sampling);

}  // namespace periplus::launch::bench
