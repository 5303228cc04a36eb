#pragma once

#include "parallel/linear_attention.h"

namespace periplus::launch {

/// Tensors of the whole sequence, as every rank sees them, in host memory; optional ones are empty views.
struct GlobalLinear {
  ConstTensorView q, k, v;
  ConstTensorView log_decay, beta;  ///< Accumulator type.
  ConstTensorView dout;             ///< Without it there is no backward pass.
};

/// What one rank computed: its rows.
struct LocalLinear {
  Tensor out;
  Tensor dq, dk, dv, dlog_decay, dbeta;
  double forward_seconds = 0, backward_seconds = 0, exposed_seconds = 0, bytes_sent = 0;  ///< Bytes of the passes that ran.
};

/// Takes this rank's rows, plans and runs forward and, if dout is there, backward on the device of `memory` and `stream`; results are in
/// host memory. Collective.
LocalLinear run_linear(const LinearAttentionProblem& problem, const LinearAttentionOptions& options, const GlobalLinear& global,
                       const comm::Communicator& communicator, const Memory& memory, const Stream& stream);

}  // namespace periplus::launch
