#pragma once

#include "parallel/layout.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor.h"

namespace periplus::launch {

/// Rows of `whole` that `rank` owns, in its local order.
Tensor take_rows(ConstTensorView whole, const SequenceLayout& layout, int rank, const Memory& memory);
/// The inverse: writes the rows of `rank` into `whole`.
void put_rows(ConstTensorView local, const SequenceLayout& layout, int rank, TensorView whole);

/// The whole tensor on rank 0 from every rank's rows; empty elsewhere. Collective.
Tensor gather_rows(ConstTensorView local, const SequenceLayout& layout, const comm::Communicator& communicator, const Memory& memory);

}  // namespace periplus::launch
