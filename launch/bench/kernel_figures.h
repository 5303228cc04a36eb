#pragma once

#include <functional>
#include <string>
#include <vector>

#include "launch/bench/report.h"
#include "launch/bench/sampling.h"

namespace periplus::launch::bench {

/// One figure of `bench kernels`; several may share an id, and accuracy returns several lines.
struct Figure {
  std::string id, name;
  std::function<std::vector<Line>(Sampling&)> measure;
};
std::vector<Figure> kernel_figures();

}  // namespace periplus::launch::bench
