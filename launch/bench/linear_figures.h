#pragma once

#include <vector>

#include "launch/bench/kernel_figures.h"

namespace periplus::launch::bench {

/// Kernels of linear attention and the delta rule on one core.
std::vector<Figure> linear_kernel_figures();
/// Strategies on 8 ranks of threads, with links and kernels that take modelled times.
std::vector<Figure> linear_strategy_figures();

}  // namespace periplus::launch::bench
