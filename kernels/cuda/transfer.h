#pragma once

#include <cstdint>
#include <span>

#include "kernels/row_move.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

/// kernels/transfer.h on CUDA devices; arguments are already checked. A build without CUDA has the same functions in
/// kernels/no_cuda; there they throw BackendUnavailable.
namespace periplus::kernels::cuda {

void move_rows(ConstTensorView source, TensorView destination, std::span<const RowMove> moves, StreamView stream);
void add(ConstTensorView source, TensorView destination, StreamView stream);

}  // namespace periplus::kernels::cuda
