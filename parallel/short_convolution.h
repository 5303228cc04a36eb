#pragma once

#include <cstdint>
#include <vector>

#include "kernels/mixer.h"
#include "kernels/row_move.h"
#include "parallel/layout.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor.h"

namespace periplus {

/// A short causal convolution over a packed sequence (kernels/mixer.h). Equal on all ranks.
struct ConvolutionProblem {
  SequenceLayout layout;
  std::int64_t channels = 1;
  std::int64_t width = 4;    ///< Tokens that one output reads, its own included.
  DType dtype = DType::f32;  ///< Storage type: f64, f32 or bf16.
  std::uint64_t digest() const;
};

/// The convolution over the ranks of a communicator. The width - 1 tokens before each unit come from wherever the layout put
/// them, in one exchange; backward, their gradients go home in one.
///
/// Ranks    Collective: all ranks, same order.
/// Cost     Sends at most (width - 1) channels numbers per unit, storage type forward, accumulator type backward.
class DistributedConvolution {
 public:
  /// Errors: InvalidArgument if the layout is of another number of ranks.
  DistributedConvolution(ConvolutionProblem problem, comm::Communicator communicator, const Memory& memory);

  const ConvolutionProblem& problem() const noexcept { return problem_; }
  /// Units of this rank: halo is [units, width - 1, channels].
  std::int64_t units() const noexcept { return units_; }
  /// x, y [rows, channels]; weight [channels, width], or one column more for a bias. Fills halo, which backward needs, and y.
  void forward(ConstTensorView x, ConstTensorView weight, TensorView halo, TensorView y, StreamView stream);
  /// y once more, from the halo of an earlier forward. Local.
  void forward_again(ConstTensorView x, ConstTensorView weight, ConstTensorView halo, TensorView y, StreamView stream) const;
  /// dx is overwritten, dweight (this rank's part of the sum) accumulates.
  void backward(ConstTensorView x, ConstTensorView weight, ConstTensorView halo, ConstTensorView dy, TensorView dx, TensorView dweight,
                StreamView stream);
  /// Host time spent waiting for messages since construction.
  double exposed_seconds() const noexcept { return exposed_seconds_; }

 private:
  /// How many rows this rank has for a peer's halos, and how many its own get from there, both in the order of the sequence.
  struct Peer {
    int rank;
    std::int64_t rows, halo_rows;
  };
  /// What both passes are given.
  void check(const ConstTensorView& x, const ConstTensorView& weight, const ConstTensorView& halo) const;
  void exchange(const Tensor& outbox, const Tensor& inbox, bool home, StreamView stream);

  ConvolutionProblem problem_;
  comm::Communicator communicator_;
  std::int64_t units_ = 0;
  std::vector<kernels::UnitRun> runs_;
  std::vector<Peer> peers_;
  std::vector<RowMove> to_box_;        ///< From x to rows_; a row may be in several halos.
  std::vector<RowMove> to_halo_;       ///< From halo_rows_ to row unit * (width - 1) + i of the halos.
  Tensor rows_, halo_rows_;            ///< Rows of all peers, storage type.
  Tensor drows_, dhalo_rows_, dhalo_;  ///< Accumulator type.
  double exposed_seconds_ = 0;
};

}  // namespace periplus
