#pragma once

#include <cstdint>
#include <vector>

#include "parallel/train/model/parameters.h"

namespace periplus::train {

/// Those of the elements from `first` on, or of the first `count` of them.
inline std::vector<double> start_values(const Parameter& parameter, std::uint64_t seed, std::int64_t first = 0, std::int64_t count = -1) {
  const std::int64_t elements = count < 0 ? parameter.elements - first : count;
  std::vector<double> values(static_cast<std::size_t>(elements));
  initial_values(parameter, seed, first, TensorView(reinterpret_cast<std::byte*>(values.data()), DType::f64, {elements}));
  return values;
}

}  // namespace periplus::train
