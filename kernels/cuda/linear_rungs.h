#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "kernels/cuda/linear_attention.h"

/// The implementations behind kernels/cuda/linear_attention.h, with the same arguments; all views are device memory.
namespace periplus::kernels::cuda {

/// Of heads, as far as CUDA kernels go.
inline constexpr int kMostWidth = 256;

/// One run for each unit, whose element it makes: that which `picks` wants, or none of its rows.
template <class Picks>
std::vector<UnitRun> run_of_units(const LinearShape& shape, std::span<const UnitRun> runs, const Picks& picks) {
  std::vector<UnitRun> of_units(static_cast<std::size_t>(shape.units));
  for (std::size_t unit = 0; unit < of_units.size(); ++unit) of_units[unit].unit = static_cast<std::int64_t>(unit);
  for (const UnitRun& run : runs) {
    if (picks(run)) of_units[static_cast<std::size_t>(run.unit)] = run;
  }
  return of_units;
}

namespace plain {
void unit_states(const LinearShape& shape, const LinearBlock& block, TensorView elements, StreamView stream);
void unit_states_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView dout, TensorView elements, StreamView stream);
void unit_scan(const ScanShape& shape, ConstTensorView elements, std::span<const UnitFold> folds, bool reverse, TensorView states,
               Update update, StreamView stream);
void unit_apply(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, TensorView out, StreamView stream);
void unit_apply_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, ConstTensorView dout,
                         ConstTensorView doutgoing, const LinearGradients& gradients, StreamView stream);
}  // namespace plain

namespace portable {
/// Whether it can take these operands and results of storage type, some of them perhaps empty.
bool supports(const LinearShape& shape, const LinearBlock& block, std::initializer_list<ConstTensorView> operands);
void unit_states(const LinearShape& shape, const LinearBlock& block, TensorView elements, StreamView stream);
void unit_states_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView dout, TensorView elements, StreamView stream);
void unit_apply(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, TensorView out, StreamView stream);
void unit_apply_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, ConstTensorView dout,
                         ConstTensorView doutgoing, const LinearGradients& gradients, StreamView stream);
}  // namespace portable

}  // namespace periplus::kernels::cuda
