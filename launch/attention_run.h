#pragma once

#include "parallel/attention.h"

namespace periplus::launch {

/// Tensors of the whole sequence, as every rank sees them; optional ones are empty views.
struct GlobalAttention {
  ConstTensorView q, k, v;
  ConstTensorView sink;  ///< [1, q_heads, 1], accumulator type
  ConstTensorView dout;  ///< Without it there is no backward pass.
  ConstTensorView dlse;  ///< [tokens, q_heads, 1], accumulator type
};

/// What one rank computed, in host memory: its rows; of dsink its part of the sum.
struct LocalAttention {
  Tensor out, lse;
  Tensor dq, dk, dv, dsink;
  double forward_seconds = 0;
  double backward_seconds = 0;
  double bytes_sent = 0;       ///< Of the passes that ran, by their plan: without what ranks agree about it.
  double exposed_seconds = 0;  ///< 0 on a device, where it is not measured.
};

/// The stream that a rank computes on: a CUDA device's own one for each call.
Stream stream_on(Device device);

/// Takes this rank's rows, plans and runs forward and, if dout is there, backward, on the device of `memory` and `stream`.
/// Collective.
LocalAttention run_attention(const AttentionProblem& problem, const AttentionOptions& options, const GlobalAttention& global,
                             const comm::Communicator& communicator, const Memory& memory, const Stream& stream = {});

}  // namespace periplus::launch
