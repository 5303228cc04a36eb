#pragma once

#include <vector>

#include "launch/bench/gpu_figures.h"
#include "launch/bench/report.h"

/// What attention loses beside other work on its GPU.
namespace periplus::launch::bench {

/// Copies within device memory, as virtual ranks exchange.
std::vector<Line> measure_beside_copies(const GpuSampling& sampling);
/// Kernels that hold multiprocessors, as NCCL's do, against attention alone on the rest.
std::vector<Line> measure_beside_kernels(const GpuSampling& sampling);

}  // namespace periplus::launch::bench
