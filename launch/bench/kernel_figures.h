#pragma once

#include <vector>

#include "launch/bench/figure_lines.h"
#include "launch/bench/sampling.h"

namespace periplus::launch::bench {

/// Of one or two cores; accuracy returns several lines.
using Figure = FigureOf<Sampling>;
std::vector<Figure> kernel_figures();

}  // namespace periplus::launch::bench
