#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/attention.h"
#include "tests/parallel/plan/plan_cases.h"

namespace periplus::test {

/// One distributed attention to compare with a single-rank fp64 run of kernels/reference.
struct AttentionCase {
  LayoutKind layout = LayoutKind::zigzag;
  std::vector<std::int64_t> cu_seqlens{0, 64};
  MaskSpec mask;
  int q_heads = 2, kv_heads = 1, head_size = 4, value_size = 3;
  bool sink = false, lse_gradient = false, contiguous_kv = true;
  double logits = 1;  ///< Queries are multiplied by this.
  double softcap = 0;
  std::uint64_t seed = 1;
  AttentionOptions options = {};
};
AttentionProblem problem_of(const AttentionCase& c, DType dtype, int ranks);
/// Why the strategy of the case refuses it on so many ranks; empty if it does not.
std::string refusal(const AttentionCase& c, int ranks);
std::string to_string(const AttentionCase& c);

/// Results at their global rows; dsink is the sum over ranks.
struct AttentionResults {
  Tensor out, lse, dq, dk, dv, dsink;
};
/// The global problem: random inputs, and results of one rank in fp64.
struct AttentionOracle : AttentionResults {
  Tensor q, k, v, dout, dlse, sink;
  double largest_score = 0;
};
AttentionOracle make_oracle(const AttentionCase& c, const Memory& memory);

/// Largest differences, relative to max(1, largest element of the oracle's tensor).
struct AttentionErrors {
  double forward = 0, backward = 0;
};
AttentionErrors differences(const AttentionResults& got, const AttentionResults& want);

/// One rank's part of a case: inputs, and results full of NaN, so that a cell nobody writes is seen. Collective.
/// With a stream of a device it runs there; results are on the host after backward(), so it runs once then.
class RankAttention {
 public:
  RankAttention(const AttentionCase& c, const AttentionOracle& oracle, DType dtype, const comm::Communicator& communicator,
                const Stream& stream = {});
  void forward();
  void backward();
  /// This rank's results against the oracle's, which must still be there. Collective: dsink is summed.
  AttentionErrors errors();
  /// This rank's results.
  std::vector<char> bytes() const;
  /// Writes this rank's rows of the results into global f64 tensors; rank 0 its dsink, once errors() has summed it.
  void store(AttentionResults& global) const;

 private:
  struct LocalRows {
    Tensor storage;
    TensorView view;
  };
  LocalRows local_rows(ConstTensorView global, DType dtype, bool gap) const;
  Tensor unwritten(ConstTensorView like, DType dtype) const;
  double worst(const Tensor& mine, ConstTensorView global) const;
  AttentionInputs inputs() const;
  /// Where the case runs.
  Tensor placed(Tensor host) const;

  const AttentionOracle& oracle_;
  Stream stream_;
  Memory memory_;         // of the host
  Memory device_memory_;  // of the stream
  comm::Communicator communicator_;
  AttentionProblem problem_;
  LocalRows q_, k_, v_, dout_, dlse_;
  Tensor sink_, out_, lse_, dq_, dk_, dv_, dsink_;
  DistributedAttention attention_;
};

/// Runs the case on all ranks of the communicator in `dtype`; collective.
AttentionErrors run_case(const AttentionCase& c, const AttentionOracle& oracle, DType dtype, const comm::Communicator& communicator,
                         const Stream& stream = {});
/// What a rank computed, as bytes.
std::vector<char> run_for_bytes(const AttentionCase& c, const AttentionOracle& oracle, DType dtype, const comm::Communicator& communicator,
                                const Stream& stream = {});

/// Every case of the sweep: layouts, lengths, GQA, documents, windows, sinks, lse gradients, extreme logits.
std::vector<AttentionCase> sweep(int ranks);
/// A sample of at most so many cases that the options' strategy accepts, with head counts of all kinds.
std::vector<AttentionCase> sample(int ranks, const AttentionOptions& options, std::size_t most);

}  // namespace periplus::test
