#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/transformer.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/pinned.h"
#include "runtime/tensor.h"

namespace periplus::train {

/// kernels::adamw where master weights and moments are in host memory, and gradient and working weights on a device: slices of the
/// gradient come and slices of the weights go, on streams of their own, beside the host's update of the slice between.
class HostAdamw {
 public:
  /// Elements of a slice: some 100 MB of page-locked memory for f32 and bf16.
  static constexpr std::int64_t kSlice = std::int64_t{8} << 20;

  /// slice: the most elements of one.
  HostAdamw(Device device, DType accumulator, DType storage, std::int64_t slice);
  HostAdamw(const HostAdamw&) = delete;
  HostAdamw& operator=(const HostAdamw&) = delete;
  /// Waits for what still moves.
  ~HostAdamw();

  /// Flat, of equal length, as kernels::adamw takes them.
  struct Run {
    TensorView master, m, v;  ///< In host memory.
    ConstTensorView gradient;
    TensorView working;
    double weight_decay;
  };
  /// The host updates what it can by itself when the gradient has come; the stream goes on behind the last weights.
  void update(std::span<const Run> runs, kernels::AdamwOptions options, StreamView stream);

 private:
  static constexpr std::size_t kBuffers = 2;
  struct Buffer {
    cuda::PinnedBuffer gradient, working;
    cuda::Event came, left;
  };

  DType accumulator_, storage_;
  std::int64_t slice_;
  Stream down_, up_;  // from the device, to it
  std::array<Buffer, kBuffers> buffers_;
  cuda::Event reached_;
};

}  // namespace periplus::train
