#pragma once

#include <cstdint>
#include <string>

#include "kernels/linear_attention.h"
#include "parallel/linear_attention.h"
#include "runtime/tensor.h"

/// Operands and results of one linear attention or delta rule for timing and for checking.
namespace periplus::launch::bench {

struct LinearCase {
  DType dtype = DType::bf16;
  Decay decay = Decay::scalar;
  bool delta_rule = false;
  std::int64_t rows = 0, heads = 1, width = 128;
};
/// "scalar decay", "delta rule, no decay"
std::string to_text(const LinearCase& problem);

class LinearData {
 public:
  /// Normally distributed operands, the same for the same case: keys of length about 1, beta between 0 and 1, decays that forget
  /// half within ten to a thousand tokens.
  explicit LinearData(const LinearCase& problem);
  /// The same operands in f64.
  static LinearData exact(const LinearData& other);

  /// Both passes over one run that takes in a state and leaves one.
  void forward() const;
  void backward() const;

  LinearCase problem;
  Tensor q, k, v, log_decay, beta, incoming, dout, doutgoing;
  Tensor out, dq, dk, dv, dlog_decay, dbeta;

 private:
  LinearData(const LinearCase& problem, DType dtype);
  kernels::LinearBlock block() const;
  kernels::UnitRun run_;
};

/// Runs both passes and compares with the same in f64. Empty, or one sentence that says what is wrong.
std::string find_wrong_result(const LinearData& data);

}  // namespace periplus::launch::bench
