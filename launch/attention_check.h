#pragma once

#include <random>
#include <span>
#include <string>
#include <vector>

#include "parallel/attention.h"
#include "runtime/tensor.h"

namespace periplus::launch {

/// One kind of attention that `periplus verify` looks at.
struct VerificationCase {
  MaskSpec mask;
  int q_heads = 2, kv_heads = 1;
  bool sink = false;
  DType dtype = DType::f64;  ///< Of the plan; the comparison always runs in f64.
  bool contiguous_kv = true;
  std::string name() const;
};
std::vector<VerificationCase> verification_cases();

/// Document borders that are hard for `ranks` ranks: one long document, many with empty ones and single tokens among them
/// and, up to 16 ranks, one shorter than the rank count.
std::vector<std::vector<std::int64_t>> verification_documents(int ranks);

AttentionProblem verification_problem(LayoutKind layout, const VerificationCase& problem_case, std::span<const std::int64_t> borders,
                                      int ranks);

/// Largest absolute differences on any rank; scores are of order one.
struct NumericCheck {
  double forward_error = 0;
  double backward_error = 0;
  bool ok() const noexcept { return forward_error <= 1e-12 && backward_error <= 1e-11; }
};

/// f64, values between `least` and `most`.
Tensor uniform_tensor(const Extents& shape, double least, double most, std::mt19937_64& random, const Memory& memory);
/// Of two f64 tensors of one shape; infinite where only one is NaN.
double largest_difference(const Tensor& a, const Tensor& b);

/// Runs the problem, as f64, on thread ranks that share `device`, with fixed random data, and compares out, lse and all
/// gradients with one call of the reference kernels on the whole sequence.
NumericCheck compare_with_reference(const AttentionProblem& problem, const AttentionOptions& options, Device device);

}  // namespace periplus::launch
