#include "parallel/plan/waits.h"

#include <algorithm>
#include <utility>

#include "parallel/plan/arena.h"

namespace periplus::plan {

void Waits::write(Program& program, std::span<const Program> earlier) {
  if (earlier.empty()) known_.clear();
  if (auto* const alike = known_.find(program, earlier, false)) {
    const Program& other = earlier[static_cast<std::size_t>(alike->rank)];
    program.after = other.after;
    for (std::size_t i = 0; i < program.steps.size(); ++i) program.steps[i].after = other.steps[i].after;
    return place_scratch(program, alike->known);
  }
  Known& known = known_.add(program.rank).known;
  known.placements.clear(), known.apart.clear();
  order_steps(program, known.timeline);
  place_scratch(program, known);
}

void Waits::order_steps(Program& program, Timeline& timeline) {
  StepOrders& orders = timeline.orders;
  orders.clear();
  history_.clear(program.slots.size());
  // Inputs are only read.
  const auto may_conflict = [&](const View& view) { return view.present() && program.slot_of(view).role != Role::input; };
  for (StepId id = 0; id < static_cast<StepId>(program.steps.size()); ++id) {
    Step& step = program.steps[static_cast<std::size_t>(id)];
    const int queue = queue_of(step);
    orders.begin(queue);
    const std::span<const Access> distinct = history_.distinct(accesses_of(program, step), may_conflict);
    std::array<StepId, kQueues> conflicts = latest_conflicts(id, distinct, orders);
    step.after = {static_cast<std::uint32_t>(program.after.size()), 0};
    // Latest first: waiting for a later step may already cover an earlier one, never the other way round.
    for (auto latest = std::ranges::max_element(conflicts); *latest >= 0; latest = std::ranges::max_element(conflicts)) {
      const StepId other = std::exchange(*latest, -1);
      if (orders.ordered(other, id)) continue;
      program.after.push_back(other);
      ++step.after.count;
      orders.wait_for(other);
    }
    for (const Access& access : distinct) history_.of(access.view).remember(access.view, access.mode, id, queue);
  }
  timeline.lifetimes.clear();
  for (std::size_t slot = 0; slot < program.slots.size(); ++slot) timeline.lifetimes.push_back(history_.lifetime(slot));
}

std::span<const Access> Waits::accesses_of(const Program& program, const Step& step) {
  if (step.op != Op::exchange) return program.accesses_of(step);
  touched_.clear();
  for (const Message& m : program.sends_of(step)) append_joined(touched_, 0, m.view, Mode::read);
  for (const Message& m : program.receives_of(step)) append_joined(touched_, 0, m.view, Mode::write);
  return touched_;
}

std::array<StepId, kQueues> Waits::latest_conflicts(StepId step, std::span<const Access> accesses, const StepOrders& orders) const {
  std::array<StepId, kQueues> latest = no_steps();
  for (const Access& access : accesses) {
    history_.of(access.view).for_unordered(access.view, access.mode, step, orders, [&](StepId other) {
      StepId& last = latest[static_cast<std::size_t>(orders.queue_of(other))];
      last = std::max(last, other);
    });
  }
  return latest;
}

const Waits::Placement& Waits::place(Known& known) {
  const auto found = std::ranges::find(known.placements, bytes_, &Placement::bytes);
  if (found != known.placements.end()) return *found;
  const std::size_t count = scratch_.size();
  known.apart.resize(count * count, Apart::unknown);
  const auto apart = [&](int a, int b) {
    const auto i = static_cast<std::size_t>(a), j = static_cast<std::size_t>(b);
    Apart& of_both = known.apart[i * count + j];
    if (of_both == Apart::unknown) {
      const auto& [orders, lifetimes] = known.timeline;
      of_both = lifetimes[scratch_[i]].apart(lifetimes[scratch_[j]], orders) ? Apart::yes : Apart::no;
    }
    return of_both == Apart::yes;
  };
  Placement& placement = known.placements.emplace_back(bytes_, std::vector<std::int64_t>(count));
  placement.workspace_bytes = place_blocks(bytes_, apart, placement.offsets);
  return placement;
}

void Waits::place_scratch(Program& program, Known& known) {
  scratch_.clear(), bytes_.clear();
  for (std::size_t i = 0; i < program.slots.size(); ++i) {
    if (program.slots[i].role != Role::scratch) continue;
    if (!known.timeline.lifetimes[i].used()) program.slots[i].rows = 0;  // takes no memory
    scratch_.push_back(i);
    bytes_.push_back(program.slots[i].bytes());
  }
  const Placement& placement = place(known);
  program.workspace_bytes = placement.workspace_bytes;
  for (std::size_t i = 0; i < scratch_.size(); ++i) program.slots[scratch_[i]].offset = placement.offsets[i];
}

}  // namespace periplus::plan
