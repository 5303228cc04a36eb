#pragma once

#include <vector>

#include "launch/bench/gpu_figures.h"

/// Linear attention with a decay per head on one CUDA device, against copies of as many bytes as must be moved.
namespace periplus::launch::bench {

/// G7: outputs, gradients, and the states that ranks exchange.
std::vector<GpuFigure> gpu_linear_figures();

}  // namespace periplus::launch::bench
