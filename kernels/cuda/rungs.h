#pragma once

#include "kernels/cuda/attention.h"

/// The implementations behind kernels/cuda/attention.h, and what a call hands them. Each supports() says whether its rung can
/// run the call; all views are device memory.
namespace periplus::kernels::cuda {

struct ForwardCall {
  AttentionShape shape;
  AttentionBlock block;
  AttentionState state;
  Update update;
};

struct BackwardCall {
  AttentionShape shape;
  AttentionBlock block;
  ConstTensorView dout, lse, delta;
  AttentionGradients gradients;
};

namespace plain {
void attend(const ForwardCall& call, StreamView stream);
void attend_backward(const BackwardCall& call, StreamView stream);
}  // namespace plain

namespace portable {
bool supports(const ForwardCall& call);
bool supports(const BackwardCall& call);
void attend(const ForwardCall& call, StreamView stream);
void attend_backward(const BackwardCall& call, StreamView stream);
}  // namespace portable

namespace hopper {
bool supports(const ForwardCall& call);
bool supports(const BackwardCall& call);
void attend(const ForwardCall& call, StreamView stream);
void attend_backward(const BackwardCall& call, StreamView stream);
}  // namespace hopper

}  // namespace periplus::kernels::cuda
