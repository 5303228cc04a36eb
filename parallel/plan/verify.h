#pragma once

#include <memory>
#include <string>
#include <vector>

#include "parallel/plan/plan.h"

namespace periplus::plan {

/// What was wrong, in sentences that name rank, step and the two facts that disagree. Empty: the plan is proven.
struct Verdict {
  std::vector<std::string> failures;
  std::int64_t steps = 0;
  std::int64_t messages = 0;
  std::int64_t bytes_sent = 0;
  bool ok() const noexcept { return failures.empty(); }
};

/// Proves a plan for every possible timing, trusting nothing the builder derived:
///  1. form: operands fit their op, views their slots, `after` points backward, phases rise, lanes exist;
///  2. messages: the k-th send a -> b of a phase meets the k-th receive, with equal lane, shape and dtype. With 1 this
///     excludes deadlock, for the execution model and for transports that need equal order on both ends;
///  3. races: any two accesses to the same bytes, one of them not a read, are ordered by queues and `after`;
///  4. provenance: every cell read is defined and is what its operand must be; each output row holds exactly the
///     contributions of the claim's mask, each (head, query, key) once, at its own global row; of linear attention, each
///     recurrence starts from the fold of exactly the units before it in its document (verify_states.h);
///  5. bytes sent equal the closed formula, where the claim has one.
/// Stops at the first kind of failure that makes the later checks meaningless. Cost: O(steps + bands + tokens) but for slots
/// cut into many pieces; 16 bytes of a token while softmax attention is played, 2 GB and 2 s for 128 M tokens.
Verdict verify(const Plan& plan);

/// Proves one plan after another, as `verify` does. Keeps memory from one to the next and, while layout and mask stay the
/// same, what it found out about their rows: plans of a problem should follow each other.
class Verifier {
 public:
  Verifier();
  ~Verifier();
  Verdict verify(const Plan& plan);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace periplus::plan
