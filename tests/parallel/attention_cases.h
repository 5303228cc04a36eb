#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/attention.h"

namespace periplus::test {

/// One distributed attention to compare with a single-rank fp64 run of kernels/reference.
struct AttentionCase {
  LayoutKind layout = LayoutKind::zigzag;
  std::vector<std::int64_t> cu_seqlens{0, 64};
  MaskSpec mask;
  int q_heads = 2, kv_heads = 1, head_size = 4, value_size = 3;
  bool sink = false, lse_gradient = false, contiguous_kv = true;
  double logits = 1;  ///< Queries are multiplied by this.
  std::uint64_t seed = 1;
  AttentionOptions options = {};
};
AttentionProblem problem_of(const AttentionCase& c, DType dtype, int ranks);
/// Why the strategy of the case refuses it on so many ranks; empty if it does not.
std::string refusal(const AttentionCase& c, int ranks);
std::string to_string(const AttentionCase& c);

/// The global problem: random inputs, and results of one rank in fp64.
struct AttentionOracle {
  Tensor q, k, v, dout, dlse, sink;
  Tensor out, lse, dq, dk, dv, dsink;
  double largest_score = 0;
};
AttentionOracle make_oracle(const AttentionCase& c, const Memory& memory);

/// Largest differences on this rank, relative to max(1, largest element of the oracle's tensor).
struct AttentionErrors {
  double forward = 0, backward = 0;
};
/// Runs the case on all ranks of the communicator in `dtype`; collective.
AttentionErrors run_case(const AttentionCase& c, const AttentionOracle& oracle, DType dtype, const comm::Communicator& communicator);

/// What a rank computed, as bytes: out, lse, dq, dk, dv.
std::vector<char> run_for_bytes(const AttentionCase& c, const AttentionOracle& oracle, DType dtype, const comm::Communicator& communicator);

/// Every case of the sweep: layouts, lengths, GQA, documents, windows, sinks, lse gradients, extreme logits.
std::vector<AttentionCase> sweep(int ranks);
/// A sample of at most so many cases that the options' strategy accepts, with head counts of all kinds.
std::vector<AttentionCase> sample(int ranks, const AttentionOptions& options, std::size_t most);

/// Every strategy of the table, and its options where they change the plan.
std::vector<AttentionOptions> variants();
std::string name_of(const AttentionOptions& options);

}  // namespace periplus::test
