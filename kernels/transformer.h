#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/update.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

/// Token-parallel parts of a Llama-shaped model (algorithms.md 10), forward and backward.
///
/// Shapes   N tokens, C channels, F hidden width of the feed-forward part, V vocabulary. All 2-d unless said, contiguous.
/// Types    Activations and working weights share a storage type T in {bf16, f32, f64}; statistics and weight gradients
///          are f32 (f64 for f64). Weight gradients always accumulate; activation gradients overwrite unless said.
/// Effects  Bitwise independent of the number of threads. N = 0 is allowed everywhere.
/// Devices  All of it on CPU and CUDA streams; results of the two differ by rounding.
namespace periplus::kernels {

/// y = x * rstd * gamma, rstd [N] = 1/sqrt(mean(x^2) + eps).
void rms_norm(ConstTensorView x, ConstTensorView gamma, double eps, TensorView y, TensorView rstd, StreamView stream);
/// dx per `update_dx`; it may be dy if it is overwritten. dgamma [C] += sum over tokens; the sum over ranks is the caller's.
void rms_norm_backward(ConstTensorView dy, ConstTensorView x, ConstTensorView gamma, ConstTensorView rstd, TensorView dx, Update update_dx,
                       TensorView dgamma, StreamView stream);

enum class RopeStyle { half, interleaved };  ///< Pairs (m, m+D/2) or (2m, 2m+1).
enum class RopeDirection { forward, backward };
/// theta^(-2m/D), m < D/2. Errors: InvalidArgument for an odd D, or unless theta > 0.
std::vector<double> rope_frequencies(double theta, std::int64_t width);
/// Rotates x [N,H,D] (any row and head strides) in place by positions[n] * frequencies[m]; backward rotates by the
/// negative angle. Positions come from the layout, never from row numbers. D must be even.
void rope(TensorView x, std::span<const std::int64_t> positions, std::span<const double> frequencies, RopeStyle style,
          RopeDirection direction, StreamView stream);

/// h = silu(gate) * up.
void swiglu(ConstTensorView gate, ConstTensorView up, TensorView h, StreamView stream);
/// dgate and dup may alias gate and up.
void swiglu_backward(ConstTensorView dh, ConstTensorView gate, ConstTensorView up, TensorView dgate, TensorView dup, StreamView stream);

/// x[n] = table[tokens[n]]. InvalidArgument naming position and token if one is outside [0, V).
void embedding(std::span<const std::int32_t> tokens, ConstTensorView table, TensorView x, StreamView stream);
/// dtable[tokens[n]] += dx[n], in token order for each row.
void embedding_backward(std::span<const std::int32_t> tokens, ConstTensorView dx, TensorView dtable, StreamView stream);

inline constexpr std::int32_t kIgnoreLabel = -1;

struct CrossEntropyResult {
  double loss_sum = 0;  ///< Sum over valid labels of -log p, natural log.
  std::int64_t valid_labels = 0;
};
struct CrossEntropyOptions {
  double gradient_scale = 1;     ///< Multiplies dx and dweight: 1 / (global number of valid labels).
  std::int64_t tile_rows = 256;  ///< Tokens whose logits exist at a time.
};
/// Output projection, softmax and loss in one pass that never holds N x V logits: per tile of rows z = x W^T, loss, then
/// dx = dz W (overwrites dx) and dweight [V,C] += dz^T x. With empty dx and dweight views only the loss is computed.
/// On a CUDA stream the host waits for the loss, and `memory` is of that device.
/// x [N,C], weight [V,C], labels [N] in [0,V) or kIgnoreLabel. Memory: tile_rows x V of T and of f32, from `memory`.
CrossEntropyResult cross_entropy(ConstTensorView x, ConstTensorView weight, std::span<const std::int32_t> labels,
                                 const CrossEntropyOptions& options, TensorView dx, TensorView dweight, const Memory& memory,
                                 StreamView stream);

struct AdamwOptions {
  double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0;
  std::int64_t step = 1;      ///< 1-based, for the bias correction.
  double gradient_scale = 1;  ///< Clipping factor, applied to the gradient first.
};
/// One update of a flat shard: master, m, v and gradient are f32 (f64 for f64), same length; decoupled weight decay.
/// `working` receives master in the storage type.
void adamw(TensorView master, TensorView m, TensorView v, ConstTensorView gradient, TensorView working, const AdamwOptions& options,
           StreamView stream);

/// Sum of squares in f64, in an order that depends only on the length. On a CUDA stream the host waits for it.
double sum_of_squares(ConstTensorView x, StreamView stream);

/// y += x, same dtype and shape.
void add_in_place(ConstTensorView x, TensorView y, StreamView stream);

}  // namespace periplus::kernels
