#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/reference/pairwise_attention.h"
#include "parallel/linear_attention.h"
#include "tests/parallel/global_tensors.h"

namespace periplus {

inline void PrintTo(const LinearAttentionOptions& options, std::ostream* out) {
  *out << options.strategy << " " << options.pieces << (options.keep_transitions ? " kept" : "");
}

namespace test {

using kernels::reference::PairwiseAttention;

/// One distributed linear attention to compare with kernels that see all of the sequence.
struct LinearCase {
  LayoutKind layout = LayoutKind::zigzag;
  std::vector<std::int64_t> cu_seqlens{0, 64};
  Decay decay = Decay::scalar;
  bool delta_rule = false, bidirectional = false, normalise = false;
  int heads = 3, head_size = 4, value_size = 3;
  double strength = 0.2;  ///< Mean of -log_decay.
  std::uint64_t seed = 1;
  LinearAttentionOptions options = {};
};
LinearAttentionProblem problem_of(const LinearCase& c, DType dtype, int ranks);
std::string to_string(const LinearCase& c);

/// Every strategy of the table, pieces where they change the plan, and kept transitions.
std::vector<LinearAttentionOptions> linear_variants();
inline constexpr auto name_of_linear_param = [](const auto& test) {
  return test.param.strategy + (test.param.pieces == 0 ? "" : "_pieces" + std::to_string(test.param.pieces)) +
         (test.param.keep_transitions ? "_kept" : "");
};
/// Every decay with and without the delta rule (if that is no must), in turn over layouts and documents of all kinds for so many ranks.
std::vector<LinearCase> linear_sweep(int ranks, const LinearAttentionOptions& options);

/// The same layouts and documents, bidirectional, with a normaliser, and both.
std::vector<LinearCase> extended_sweep(int ranks, const LinearAttentionOptions& options);

/// The global problem in f64: random inputs, and the results of kernels on all of it, or of all pairs of tokens (kernels/reference/).
/// Absent tensors are empty.
struct LinearOracle {
  Tensor q, k, v, log_decay, beta, dout;
  Tensor values;  ///< v, and a column of ones for the normaliser.
  Tensor out, dq, dk, dv, dlog_decay, dbeta;
};
PairwiseAttention pairwise(const LinearCase& c, const LinearOracle& oracle);
LinearOracle make_linear_oracle(const LinearCase& c, const Memory& memory);

/// Largest differences, relative to max(1, largest element of the oracle's tensor).
struct LinearErrors {
  double out = 0, incoming = 0, gradients = 0;
};

/// One rank's part of a case: inputs with gaps between rows, and results full of NaN. Collective.
class RankLinearAttention {
 public:
  RankLinearAttention(const LinearCase& c, const LinearOracle& oracle, DType dtype, const comm::Communicator& communicator);
  void forward();
  void backward();
  LinearErrors errors() const;
  /// This rank's results.
  std::vector<char> bytes() const;
  const DistributedLinearAttention& attention() const { return attention_; }

 private:
  struct LocalRows {
    Tensor storage;
    TensorView view;
  };
  LocalRows local_rows(ConstTensorView global, DType dtype) const;
  Tensor unwritten(const Extents& shape, DType dtype) const;
  double worst(const Tensor& mine, const Tensor& global) const;
  LinearAttentionInputs inputs() const;
  /// The states at the beginning of the rank's units.
  Tensor true_incoming() const;
  LinearAttentionOutputs outputs() const;

  const LinearOracle& oracle_;
  Memory memory_;
  comm::Communicator communicator_;
  LinearAttentionProblem problem_;
  LocalRows q_, k_, v_, log_decay_, beta_, dout_;
  Tensor out_, incoming_, following_, normaliser_, transitions_, dq_, dk_, dv_, dlog_decay_, dbeta_;
  DistributedLinearAttention attention_;
};

LinearErrors run_linear_case(const LinearCase& c, const LinearOracle& oracle, DType dtype, const comm::Communicator& communicator);

}  // namespace test
}  // namespace periplus
