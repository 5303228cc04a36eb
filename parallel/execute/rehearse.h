#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "parallel/execute/execute.h"
#include "runtime/comm/pacing.h"

namespace periplus::execute {

/// A program with made-up tensors for all that it is called with, ready to run any number of times.
class RehearsedProgram {
 public:
  /// asleep: kernels will be, so that no value matters. The program outlives this.
  RehearsedProgram(const plan::Program& program, bool asleep);
  /// `context` without a workspace; kernels sleep if it has a pace, and compute if not.
  Statistics run(const Context& context) const;

 private:
  const plan::Program& program_;
  std::vector<Tensor> tensors_;
  Bindings bindings_;
  Tensor workspace_;
};

/// Sleeps of this thread end when they should, and not up to 50 us later.
void sleep_precisely();

/// What one run of a whole plan took.
struct Rehearsal {
  double seconds = 0;  ///< From when all ranks have started to the end of the last.
  std::vector<Statistics> ranks;
  std::vector<std::int64_t> bytes_sent;           ///< By rank, as the transport counted them.
  std::vector<std::vector<double>> step_seconds;  ///< By rank and step; 0 for exchanges.
  std::vector<Tracer> traces;                     ///< By rank, on one time scale.

  std::int64_t total_bytes_sent() const;
  /// The compute times measured, for simulate(). Valid while the rehearsal and the plan live.
  Pace measured(const plan::Plan& plan) const;
};

/// Runs a plan on threads of this process, on made-up tensors: over links of the given speed (nothing: as fast as memory),
/// and with kernels asleep for the time that `pace` says (empty: real ones). Asleep, more ranks than cores do no harm.
Rehearsal rehearse(const plan::Plan& plan, const std::optional<comm::Links>& links, const Pace& pace);

}  // namespace periplus::execute
