#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "runtime/tensor.h"

/// Operands and results of one attention problem for timing and for checking.
namespace periplus::launch::bench {

struct AttentionCase {
  DType dtype = DType::bf16;
  std::int64_t query_rows = 0, key_rows = 0, heads = 1, width = 128;
  std::vector<Band> bands;
  double spread = 1;  ///< Standard deviation of the logits.
};
AttentionCase causal_case(DType dtype, std::int64_t rows, std::int64_t heads, std::int64_t width);
/// Allowed pairs of all heads.
double pairs(const AttentionCase& problem);
double forward_flop(const AttentionCase& problem);
double backward_flop(const AttentionCase& problem);

class AttentionData {
 public:
  /// Normally distributed operands, the same for the same case.
  explicit AttentionData(const AttentionCase& problem);
  /// The same operands in another type; results are not copied.
  AttentionData(const AttentionData& other, DType dtype);

  void forward() const;
  /// Keys in `parts` equal blocks, one after the other, on the running state.
  void forward_in_sequence(std::int64_t parts) const;
  void compute_delta() const;
  /// Needs lse and delta.
  void backward() const;

  AttentionCase problem;
  Tensor q, k, v, dout;
  Tensor out, lse, delta, dq, dk, dv;

 private:
  AttentionData(const AttentionCase& problem, DType dtype);
  double scale() const noexcept;
};

/// Runs `forward` and, if asked, the backward pass, and compares with the same in f64. Empty, or one sentence that says what
/// is wrong.
std::string find_wrong_result(const AttentionData& data, const std::function<void(const AttentionData&)>& forward, bool backward);

}  // namespace periplus::launch::bench
