#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "runtime/cuda/device.h"
#include "runtime/tensor.h"

/// Attention problems in the memory of a CUDA device, and times of what runs there.
namespace periplus::launch::bench {

struct GpuCase {
  std::int64_t query_rows = 0, key_rows = 0, heads = 16, kv_heads = 16, width = 128;
  std::vector<Band> bands;
};
GpuCase gpu_causal_case(std::int64_t rows, std::int64_t heads, std::int64_t width);

/// bf16 operands, normally distributed, and f32 results.
class GpuProblem {
 public:
  GpuProblem(const GpuCase& problem, int device);

  void forward(kernels::Update update, StreamView stream) const;
  /// Needs lse and delta, as after check().
  void backward(kernels::Update update, StreamView stream) const;
  double forward_flop() const;
  double backward_flop() const { return 2.5 * forward_flop(); }
  /// Runs forward and, if asked, delta and backward, and compares rows and keys of all kinds of places with the same in f64.
  /// Empty, or one sentence that says what is wrong.
  std::string check(bool with_backward, StreamView stream) const;

  GpuCase problem;
  Tensor q, k, v, dout;
  Tensor out, lse, delta, dq, dk, dv;

 private:
  kernels::AttentionBlock block() const;
};

/// Normally distributed bf16 or f32 of some millions of values, repeated.
Tensor gpu_random(const Extents& shape, DType dtype, std::uint64_t seed, int device);

/// Seconds of `work` on the device by events; the host does not wait inside. `repeats` calls, divided.
double gpu_seconds(const std::function<void(StreamView)>& work, const Stream& stream, int repeats = 1);

}  // namespace periplus::launch::bench
