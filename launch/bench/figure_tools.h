#pragma once

#include <algorithm>
#include <vector>

#include <fmt/format.h>

#include "kernels/cpu_level.h"
#include "launch/bench/report.h"
#include "launch/bench/sampling.h"
#include "runtime/dtype.h"

/// From samples to lines, for the suites that time kernels.
namespace periplus::launch::bench {

inline bool on_amx() { return kernels::cpu_level() == kernels::CpuLevel::amx; }
/// The unit that computes products of `dtype` at the level in use.
inline Unit unit_of(DType dtype) {
  if (dtype != DType::bf16 || kernels::cpu_level() < kernels::CpuLevel::avx512_bf16) return Unit::fma;
  return on_amx() ? Unit::amx : Unit::dot;
}

/// Goals are for the kernels that a current CPU runs: bf16 on AMX, f32 on AVX-512.
inline void judge(Line& line, DType dtype, const Goal& goal) {
  if (dtype == DType::bf16 ? on_amx() : kernels::cpu_level() >= kernels::CpuLevel::avx512) {
    line.goal = goal;
  } else {
    line.note = fmt::format("no goal at level {}{}", to_string(kernels::cpu_level()), line.note.empty() ? "" : "; " + line.note);
  }
}

template <class RatioOf>
void fill(Line& line, const Selection& selection, const RatioOf& ratio_of) {
  std::vector<double> ratios;
  for (const Sample& sample : selection.kept) ratios.push_back(ratio_of(sample));
  line.ratio = median(ratios);
  line.ratio_min = *std::ranges::min_element(ratios);
  line.ratio_max = *std::ranges::max_element(ratios);
  line.kept = selection.kept.size();
  line.taken = selection.taken;
  line.noisy = selection.noisy;
}

template <class ValueOf>
double median_of(const Selection& selection, const ValueOf& value_of) {
  std::vector<double> values;
  for (const Sample& sample : selection.kept) values.push_back(value_of(sample));
  return median(values);
}

/// Fills a line from the times of two sides, in ms.
inline void fill_times(Line& line, const Selection& selection, std::size_t above, std::size_t below) {
  line.unit = "ms";
  fill(line, selection, [&](const Sample& sample) { return sample[above].seconds / sample[below].seconds; });
}
inline double milliseconds(const Selection& selection, std::size_t side) {
  return median_of(selection, [&](const Sample& sample) { return 1e3 * sample[side].seconds; });
}

}  // namespace periplus::launch::bench
