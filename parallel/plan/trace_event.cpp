#include "parallel/plan/trace_event.h"

#include <fmt/format.h>

#include "parallel/plan/ops.h"

namespace periplus::plan {

TraceEvent trace_event(const Program& program, StepId id, double begin_us, double duration_us) {
  const Step& step = program.steps[static_cast<std::size_t>(id)];
  std::string name = fmt::format("{}: {}", info(step.op).name, step.label.text);
  if (step.label.index >= 0) name += fmt::format(" {}", step.label.index);
  TraceEvent event{std::move(name),     step.op == Op::exchange ? fmt::format("lane {}", step.lane) : "compute", begin_us, duration_us, id,
                   bytes(program, step)};
  for (const Message& m : program.sends_of(step)) event.messages.push_back({m.peer, true});
  for (const Message& m : program.receives_of(step)) event.messages.push_back({m.peer, false});
  return event;
}

}  // namespace periplus::plan
