#include "parallel/execute/rehearse.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include <sys/prctl.h>

#include "runtime/comm/thread_transport.h"

namespace periplus::execute {
namespace {

using Clock = std::chrono::steady_clock;

/// Values of up to a half, so that scores and weights stay finite. Sleeping kernels read none: zeros do.
Tensor made_up(const plan::Slot& slot, bool zeros, const Memory& memory) {
  const Extents shape{slot.rows, slot.heads, slot.width};
  if (zeros) return Tensor::zeros(shape, slot.dtype, memory);
  const Tensor wide(shape, DType::f32, memory);
  const bool decays = slot.name == "log_decay";  // positive ones would let states grow without bound
  std::uint32_t state = 1;
  for (float& x : wide.view().span<float>()) {
    state = state * 1664525U + 1013904223U;
    x = static_cast<float>(state >> 8) * 0x1p-24F - (decays ? 1.0F : 0.5F);
  }
  Tensor tensor(shape, slot.dtype, memory);
  copy(wide, tensor);
  return tensor;
}

}  // namespace

RehearsedProgram::RehearsedProgram(const plan::Program& program, bool asleep)
    : program_(program), workspace_(Tensor::zeros({program.workspace_bytes}, DType::u8, Memory())) {  // touched before any clock runs
  for (const plan::Slot& slot : program.slots) {
    if (slot.role == plan::Role::scratch) continue;
    tensors_.push_back(made_up(slot, asleep, Memory()));
    bindings_.output(slot.name, tensors_.back());
  }
}

Statistics RehearsedProgram::run(const Context& context) const {
  Context with_workspace = context;
  with_workspace.workspace = workspace_;
  return execute(program_, bindings_, with_workspace);
}

void sleep_precisely() { prctl(PR_SET_TIMERSLACK, 1UL); }

std::int64_t Rehearsal::total_bytes_sent() const { return std::accumulate(bytes_sent.begin(), bytes_sent.end(), std::int64_t{0}); }

Pace Rehearsal::measured(const plan::Plan& plan) const {
  return [this, &plan](const plan::Program& program, const plan::Step& step) {
    const auto rank = static_cast<std::size_t>(&program - plan.programs.data());
    return step_seconds[rank][static_cast<std::size_t>(&step - program.steps.data())];
  };
}

Rehearsal rehearse(const plan::Plan& plan, const std::optional<comm::Links>& links, const Pace& pace) {
  const std::size_t ranks = plan.programs.size();
  Rehearsal result{0, std::vector<Statistics>(ranks), std::vector<std::int64_t>(ranks), std::vector<std::vector<double>>(ranks), {}};
  const Clock::time_point epoch = Clock::now();
  for (std::size_t r = 0; r < ranks; ++r) result.traces.emplace_back(static_cast<int>(r), epoch);
  std::vector<Clock::time_point> begin(ranks), end(ranks);
  const auto run_rank = [&](const comm::Communicator& communicator) {
    sleep_precisely();
    const auto rank = static_cast<std::size_t>(communicator.rank());
    const RehearsedProgram program(plan.programs[rank], static_cast<bool>(pace));
    const Context context{
        .communicator = communicator, .tracer = &result.traces[rank], .pace = pace, .step_seconds = &result.step_seconds[rank]};
    communicator.barrier(Stream());
    const std::uint64_t before = communicator.traffic().bytes_sent;
    begin[rank] = Clock::now();
    result.ranks[rank] = program.run(context);
    end[rank] = Clock::now();
    result.bytes_sent[rank] = static_cast<std::int64_t>(communicator.traffic().bytes_sent - before);
  };
  comm::run_thread_ranks(static_cast<int>(ranks), run_rank, {.links = links});
  // A late starter was held up by the machine, not by the plan.
  result.seconds = std::chrono::duration<double>(std::ranges::max(end) - std::ranges::max(begin)).count();
  return result;
}

}  // namespace periplus::execute
