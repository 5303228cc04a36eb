#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "parallel/attention.h"
#include "parallel/execute/execute.h"
#include "parallel/layout.h"
#include "parallel/plan/plan.h"
#include "runtime/comm/communicator.h"
#include "runtime/tensor.h"
#include "runtime/trace.h"

namespace periplus {

/// What a distributed operator is once it is planned: this rank's forward and backward programs, and where they run.
class PlannedPasses {
 public:
  using MakeProgram = std::function<plan::Program(Pass pass, int rank)>;

  /// Collective: compares the digests of layout, problem and options with all ranks before anything is planned. `name` is the operator's,
  /// for messages.
  PlannedPasses(std::string_view name, const SequenceLayout& layout, const std::array<std::uint64_t, 2>& digests,
                comm::Communicator communicator, Memory memory, Tracer* tracer, Stream stream, const MakeProgram& make);

  void run(Pass pass, const execute::Bindings& bindings);
  const plan::Program& program(Pass pass) const { return programs_[pass == Pass::forward ? 0 : 1]; }
  const AttentionStatistics& statistics() const noexcept { return statistics_; }

 private:
  comm::Communicator communicator_;
  Memory memory_;
  Tracer* tracer_;
  Stream stream_;
  std::array<plan::Program, 2> programs_;  // forward, backward
  Tensor workspace_;
  AttentionStatistics statistics_;
};

/// An optional tensor and the flag of the problem that asks for it belong together; neither is ignored.
void require_given_as_planned(std::string_view op, const ConstTensorView& tensor, bool planned, std::string_view name,
                              std::string_view flag);

}  // namespace periplus
