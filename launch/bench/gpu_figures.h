#pragma once

#include <vector>

#include "launch/bench/figure_lines.h"
#include "runtime/device.h"

namespace periplus::launch::bench {

struct GpuSampling {
  int device = 0;
  int samples = 9;
  Stream stream = {};
};

using GpuFigure = FigureOf<const GpuSampling>;
std::vector<GpuFigure> gpu_figures();

/// TFLOP/s of cuBLAS for a large bf16 product of random data. BackendUnavailable without cuBLAS.
double gpu_product_rate(const GpuSampling& sampling);

}  // namespace periplus::launch::bench
