#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/linear_attention.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

/// Token-parallel parts of linear mixers (algorithms.md 5.7, 5.10), forward and backward: what stands between projections and the
/// recurrence of linear_attention.h.
///
/// Shapes   N tokens, H heads, D or E channels of a head, C channels of all. [N,H,D] operands have contiguous width and any strides
///          of rows and heads; everything else is contiguous.
/// Types    Activations and weights share a storage type T in {bf16, f32, f64}; decays, factors, betas and the gradients of weights
///          are f32 (f64 for f64). Gradients of weights accumulate; those of activations overwrite unless said.
/// Effects  Bitwise independent of the number of threads. N = 0 is allowed everywhere. The gradients of x, a and b in decays and
///          betas may replace x, a and b.
/// Devices  All of it on CPU and CUDA streams (at most 64 taps there); results of the two differ by rounding.
namespace periplus::kernels {

/// log_decay = logsigmoid(x) / divisor, any shape.
/// Source   Yang et al. 2024 (gated linear attention), with divisor 16.
void logsigmoid_decay(ConstTensorView x, double divisor, TensorView log_decay, StreamView stream);
void logsigmoid_decay_backward(ConstTensorView dlog_decay, ConstTensorView x, double divisor, TensorView dx, StreamView stream);

/// step = softplus(a + dt_bias), log_decay = -exp(a_log) step. a [N,H]; a_log, dt_bias [H]; log_decay, step [N,H].
/// Source   Dao & Gu 2024 (Mamba-2); Yang et al. 2025 (Gated DeltaNet).
struct SoftplusDecay {
  ConstTensorView a, a_log, dt_bias;
};
void softplus_decay(const SoftplusDecay& inputs, TensorView log_decay, TensorView step, StreamView stream);
/// dstep: of what else reads the step, may be empty.
void softplus_decay_backward(const SoftplusDecay& inputs, ConstTensorView dlog_decay, ConstTensorView dstep, TensorView da,
                             TensorView da_log, TensorView ddt_bias, StreamView stream);

/// beta = ceiling sigmoid(b), any shape: how much of a value the delta rule writes. With ceiling 2 a transition may have negative
/// eigenvalues (Grazzi et al. 2025).
void sigmoid_beta(ConstTensorView b, double ceiling, TensorView beta, StreamView stream);
void sigmoid_beta_backward(ConstTensorView dbeta, ConstTensorView b, double ceiling, TensorView db, StreamView stream);

/// Logarithms of decays that are constants, one per head: 1 - 2^(-5-h) (Sun et al. 2023, RetNet), and exp(-2^(-8(h+1)/H) times a
/// factor that falls with the layer, from 1 to almost 0) (Qin et al. 2024, lightning attention).
std::vector<double> retention_log_decays(std::int64_t heads);
std::vector<double> lightning_log_decays(std::int64_t heads, std::int64_t layer, std::int64_t layers);

/// y = x / sqrt(sum_d x^2 + eps) per token and head. x, y, gradients [N,H,D].
void l2_norm(ConstTensorView x, double eps, TensorView y, StreamView stream);
void l2_norm_backward(ConstTensorView dy, ConstTensorView x, double eps, TensorView dx, StreamView stream);

/// y = factor x: x, y [N,H,E], factor [N,H].
void scale_heads(ConstTensorView x, ConstTensorView factor, TensorView y, StreamView stream);
void scale_heads_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView factor, TensorView dx, TensorView dfactor,
                          StreamView stream);

/// y += skip x: x, y [N,H,E], skip [H].
void add_skip(ConstTensorView x, ConstTensorView skip, TensorView y, StreamView stream);
/// dx accumulates too.
void add_skip_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView skip, TensorView dx, TensorView dskip, StreamView stream);

/// y [N,1,D] = sum over heads of x [N,H,D]: the gradient of an operand that all heads read.
void sum_heads(ConstTensorView x, TensorView y, StreamView stream);

/// Causal depthwise convolution, then SiLU: y[n,c] = silu(sum_w weight[c,w] x[n-(W-1)+w,c] + bias[c]), never across the beginning of
/// a document. Rows in no run are left alone.
///
/// Shapes   x, y [N,C]; weight [C,W], or [C,W+1] with the bias as last column; halo [U,W-1,C]: the W-1 tokens before each unit that
///          a run `enters`, zeros before the beginning of its document; not read for other units.
/// Cost     2 W C flop per token, three times as many backward, where the sums before SiLU are computed again.
struct ShortConvolution {
  ConstTensorView x, weight, halo;
  std::span<const UnitRun> runs = {};
};
void short_convolution(const ShortConvolution& inputs, TensorView y, StreamView stream);
/// dhalo [U,W-1,C], accumulator type: what the unit adds to the gradients of the tokens before it; zero for units that no run enters.
void short_convolution_backward(const ShortConvolution& inputs, ConstTensorView dy, TensorView dx, TensorView dhalo, TensorView dweight,
                                StreamView stream);

}  // namespace periplus::kernels
