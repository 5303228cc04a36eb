#include "parallel/execute/execute.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <exception>
#include <optional>
#include <thread>

#include <fmt/format.h>

#include "kernels/attention.h"
#include "kernels/cuda/attention.h"
#include "kernels/transfer.h"
#include "parallel/execute/device_queues.h"
#include "parallel/execute/recurrence.h"
#include "parallel/execute/resolve_slots.h"
#include "parallel/plan/ops.h"
#include "parallel/plan/trace_event.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::execute {
namespace {

using plan::Op;
using plan::Program;
using plan::Step;
using plan::StepId;
using plan::View;
namespace transfer_operand = plan::transfer_operand;
using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point begin, Clock::time_point end) { return std::chrono::duration<double>(end - begin).count(); }

bool on_cuda(const Context& context) { return context.stream.device().kind == DeviceKind::cuda; }

/// What was asked for is done or refused.
void check_context(const Context& context) {
  const auto refuse = [](std::string_view what) { throw InvalidArgument(fmt::format("execute: {}", what)); };
  if (!on_cuda(context)) {
    if (context.reserved_multiprocessors != 0) {
      refuse(fmt::format("{} multiprocessors are reserved, but a cpu stream has none; use 0", context.reserved_multiprocessors));
    }
    return;
  }
  const std::string device = to_string(context.stream.device());
  if (context.pace) refuse(fmt::format("a pace lets a CPU thread sleep and cannot slow the stream on {}; use a cpu stream", device));
  if (context.step_seconds != nullptr) {
    refuse(fmt::format("the host does not know when steps on {} run; leave step_seconds empty there and use a tracer", device));
  }
  if (context.reserved_multiprocessors < 0) {
    refuse(fmt::format("{} multiprocessors cannot be reserved; use 0 or more", context.reserved_multiprocessors));
  }
  if (const std::string why = context.communicator.refusal(context.stream.device()); !why.empty()) {
    refuse(fmt::format("the stream is on {}, but {}", device, why));
  }
}

/// While a program with exchanges is enqueued on a device.
class ReservedMultiprocessors {
 public:
  explicit ReservedMultiprocessors(int count) : before_(kernels::cuda::reserved_multiprocessors()) {
    kernels::cuda::set_reserved_multiprocessors(count);
  }
  ReservedMultiprocessors(const ReservedMultiprocessors&) = delete;
  ReservedMultiprocessors& operator=(const ReservedMultiprocessors&) = delete;
  ~ReservedMultiprocessors() { kernels::cuda::set_reserved_multiprocessors(before_); }

 private:
  int before_;
};

class Executor {
 public:
  Executor(const Program& program, const Bindings& bindings, const Context& context)
      : program_(program),
        context_(context),
        slots_(resolve_slots(program, bindings, context.workspace)),
        finished_(program.steps.size(), false),
        stream_(on_cuda(context) ? context.stream : Stream([this] { progress_from_kernel(); })) {
    for (std::size_t id = 0; id < program.steps.size(); ++id) {
      queues_[static_cast<std::size_t>(plan::queue_of(program.steps[id]))].push_back(static_cast<StepId>(id));
    }
    if (on_cuda(context)) device_.emplace(program, stream_);
    if (context.tracer != nullptr) context.tracer->anchor(stream_);
  }

  Statistics run() {
    const Clock::time_point start = Clock::now();
    if (context_.step_seconds != nullptr) context_.step_seconds->assign(program_.steps.size(), 0);
    while (!queues_[0].empty() || lanes_busy()) {
      advance_lanes();
      if (!queues_[0].empty() && ready(queues_[0].front())) {
        const StepId id = queues_[0].front();
        compute(id);
        finish(id);
      } else if (!queues_[0].empty() || lanes_busy()) {
        wait_for_message();
      }
    }
    if (device_) device_->join();
    statistics_.seconds = seconds_between(start, Clock::now());
    statistics_.bytes_sent = program_.bytes_sent();
    return statistics_;
  }

  void drain() noexcept {
    if (device_) device_->drain();
  }

 private:
  struct Lane {
    comm::Pending pending;
    bool active = false;
    TraceSpan span;
  };

  bool ready(StepId id) const {
    for (const StepId other : program_.after_of(step(id))) {
      if (!finished_[static_cast<std::size_t>(other)]) return false;
    }
    return true;
  }
  /// The step at the head of its queue is over; on a device, enqueued.
  void finish(StepId id) {
    queues_[static_cast<std::size_t>(plan::queue_of(step(id)))].pop_front();
    finished_[static_cast<std::size_t>(id)] = true;
    if (device_) device_->end(id);
  }
  const Step& step(StepId id) const { return program_.steps[static_cast<std::size_t>(id)]; }

  bool lanes_busy() const {
    for (int lane = 0; lane < plan::kPlanLanes; ++lane) {
      if (!queues_[1 + static_cast<std::size_t>(lane)].empty()) return true;
    }
    return false;
  }

  /// Retires finished exchanges and posts the next ones, until nothing changes.
  void advance_lanes() {
    bool changed = true;
    while (changed) {
      changed = false;
      for (int lane = 0; lane < plan::kPlanLanes; ++lane) changed |= advance_lane(lane);
    }
  }

  bool advance_lane(int index) {
    Lane& lane = lanes_[static_cast<std::size_t>(index)];
    std::deque<StepId>& queue = queues_[1 + static_cast<std::size_t>(index)];
    if (queue.empty()) return false;
    const StepId id = queue.front();
    if (!lane.active) {
      if (!ready(id)) return false;
      post(id, lane);
    }
    if (!lane.pending.done()) return false;
    record(id, lane.span);
    lane.active = false;
    finish(id);
    return true;
  }

  void post(StepId id, Lane& lane) {
    std::vector<comm::Send> sends;
    std::vector<comm::Receive> receives;
    for (const plan::Message& m : program_.sends_of(step(id))) {
      const TensorView tensor = resolve(m.view);
      sends.push_back({m.peer, tensor.bytes(), tensor.size_bytes()});
    }
    for (const plan::Message& m : program_.receives_of(step(id))) {
      const TensorView tensor = resolve(m.view);
      receives.push_back({m.peer, tensor.bytes(), tensor.size_bytes()});
    }
    if (device_) device_->begin(id);
    const StreamView stream = device_ ? device_->stream(plan::queue_of(step(id))) : stream_;
    lane.span = TraceSpan(context_.tracer, stream);
    lane.pending = context_.communicator.exchange(sends, receives, {step(id).label.text, static_cast<int>(id), step(id).lane}, stream);
    lane.active = true;
  }

  std::vector<comm::Pending*> exchanges_under_way() {
    std::vector<comm::Pending*> open;
    for (Lane& lane : lanes_) {
      if (lane.active) open.push_back(&lane.pending);
    }
    return open;
  }

  void wait_for_message() {
    const Clock::time_point begin = Clock::now();
    const std::vector<comm::Pending*> open = exchanges_under_way();
    if (open.empty())
      throw InternalError(fmt::format("execute: rank {} has steps left but nothing can start; verify the plan", program_.rank));
    comm::Pending::wait_any(open);
    if (!device_) statistics_.exposed_seconds += seconds_between(begin, Clock::now());
  }

  /// The hook runs inside parallel regions, where an exception would end the process: it is kept for later.
  void progress_from_kernel() noexcept {
    if (failure_) return;
    try {
      context_.communicator.progress();
      advance_lanes();
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  void compute(StepId id) {
    if (device_) {
      device_->begin(id);
      TraceSpan span(context_.tracer, stream_);
      run_kernel(step(id));
      return record(id, span);
    }
    const Clock::time_point begin = Clock::now();
    TraceSpan span(context_.tracer, stream_);
    if (context_.pace) {
      sleep_until(begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(context_.pace(program_, step(id)))));
    } else {
      run_kernel(step(id));
    }
    if (failure_) std::rethrow_exception(failure_);
    const double seconds = seconds_between(begin, Clock::now());
    statistics_.compute_seconds += seconds;
    if (context_.step_seconds != nullptr) (*context_.step_seconds)[static_cast<std::size_t>(id)] = seconds;
    record(id, span);
  }

  /// Messages move meanwhile, as from inside a kernel.
  void sleep_until(Clock::time_point end) {
    constexpr auto kWakeUp = std::chrono::microseconds(80);  // a sleep ends so much late
    while (Clock::now() < end - kWakeUp) {
      advance_lanes();
      const std::vector<comm::Pending*> open = exchanges_under_way();
      if (open.empty()) {
        std::this_thread::sleep_until(end - kWakeUp);
      } else {
        comm::Pending::wait_any_until(open, end - kWakeUp);
      }
    }
    while (Clock::now() < end) std::this_thread::yield();
  }

  TensorView resolve(const View& view) const {
    if (!view.present()) return {};
    return slots_[static_cast<std::size_t>(view.slot)].slice(0, view.row0, view.rows).slice(1, view.head0, view.heads);
  }

  void run_kernel(const Step& s) {
    const auto accesses = program_.accesses_of(s);
    std::array<TensorView, plan::kMostOperands> t;
    for (std::size_t i = 0; i < accesses.size(); ++i) t[i] = resolve(accesses[i].view);
    const auto update = [&](std::size_t i) {
      return accesses[i].mode == plan::Mode::add ? kernels::Update::accumulate : kernels::Update::overwrite;
    };
    const auto block = [&] { return kernels::AttentionBlock{t[0], t[1], t[2], program_.bands_of(s), s.scale, s.softcap}; };
    switch (s.op) {
      case Op::attend: {
        using namespace plan::attend_operand;
        return kernels::attend(block(), {t[out], t[lse]}, update(out), stream_);
      }
      case Op::attend_backward: {
        using namespace plan::attend_backward_operand;
        return kernels::attend_backward(block(), t[dout], t[lse], t[delta], {t[dq], t[dk], t[dv], update(dq), update(dk)}, stream_);
      }
      case Op::merge: {
        using namespace plan::merge_operand;
        return kernels::merge(t[part_out], t[part_lse], {t[out], t[lse]}, stream_);
      }
      case Op::finish: {
        using namespace plan::finish_operand;
        return kernels::finish(t[state_out], t[state_lse], t[sink], t[out], t[lse], stream_);
      }
      case Op::delta: {
        using namespace plan::delta_operand;
        return kernels::delta(t[dout], t[out], t[lse], t[dlse], t[sink], t[delta], t[dsink], stream_);
      }
      case Op::copy:
        if (s.moves.count > 0)
          return kernels::move_rows(t[transfer_operand::source], t[transfer_operand::destination], program_.moves_of(s), stream_);
        return kernels::copy(t[transfer_operand::source], t[transfer_operand::destination], stream_);
      case Op::add:
        return kernels::add(t[transfer_operand::source], t[transfer_operand::destination], stream_);
      default:
        return run_recurrence(program_, s, t, stream_);
    }
  }

  void record(StepId id, TraceSpan& span) {
    if (context_.tracer == nullptr) return;
    TraceEvent event = plan::trace_event(program_, id, 0, 0);
    for (TraceMessage& message : event.messages) message.peer = context_.communicator.outermost(message.peer);
    span.end(std::move(event));
  }

  const Program& program_;
  const Context& context_;
  std::vector<TensorView> slots_;
  std::vector<bool> finished_;
  std::array<std::deque<StepId>, plan::kQueues> queues_;
  std::array<Lane, plan::kPlanLanes> lanes_;
  Stream stream_;  // the compute queue
  std::optional<DeviceQueues> device_;
  std::exception_ptr failure_;
  Statistics statistics_;
};

}  // namespace

Statistics execute(const Program& program, const Bindings& bindings, const Context& context) {
  check_context(context);
  const bool exchanges = std::ranges::any_of(program.steps, [](const Step& step) { return step.op == Op::exchange; });
  std::optional<cuda::CurrentDevice> current;
  std::optional<ReservedMultiprocessors> reserved;
  if (on_cuda(context)) {
    current.emplace(context.stream.device().index);
    reserved.emplace(exchanges ? context.reserved_multiprocessors : 0);
  }
  Executor executor(program, bindings, context);  // wrong bindings are the caller's mistake and leave the group usable
  try {
    return executor.run();
  } catch (const std::exception& error) {
    // The peers are inside the same plan: without this they would wait for messages that never come, and a later plan
    // could receive this one's.
    context.communicator.abort(fmt::format("rank {}: {}", program.rank, error.what()));
    executor.drain();
    throw;
  }
}

}  // namespace periplus::execute
