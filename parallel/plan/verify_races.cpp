#include "parallel/plan/verify_races.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace periplus::plan {

void RaceCheck::run(std::span<const Program> programs, Rank rank, std::vector<std::string>& failures) {
  program_ = &programs[static_cast<std::size_t>(rank)];
  failures_ = &failures;
  if (const auto* const alike = known_.find(*program_, programs, true)) return check_shared_bytes(alike->known);
  const std::size_t before = failures.size();
  timeline_ = &known_.add(rank).known;
  check_all();
  if (failures.size() > before) known_.clear();
}

void RaceCheck::check_all() {
  constexpr std::size_t kFewAccesses = 8;
  StepOrders& orders = timeline_->orders;
  orders.clear();
  histories_.clear(program_->slots.size());
  find_lifetimes();
  for (StepId id = 0; id < static_cast<StepId>(program_->steps.size()); ++id) {
    const Step& step = program_->steps[static_cast<std::size_t>(id)];
    orders.begin(plan::queue_of(step));
    for (const StepId other : program_->after_of(step)) orders.wait_for(other);
    const std::span<const Access> accesses = accesses_of(id);
    // Pair by pair where that is less than to sort.
    step.op != Op::exchange || accesses.size() <= kFewAccesses ? check_operands(id, accesses) : check_messages_apart(id, accesses);
    check_order(id, accesses);
  }
  check_shared_bytes(*timeline_);
}

void RaceCheck::find_lifetimes() {
  std::vector<Lifetime>& lifetimes = timeline_->lifetimes;
  slots_.assign(program_->slots.size(), {}), lifetimes.assign(program_->slots.size(), {});
  joined_.clear(), of_step_.clear();
  for (std::size_t id = 0; id < program_->steps.size(); ++id) {
    const Step& step = program_->steps[id];
    const auto begin = static_cast<std::uint32_t>(joined_.size());
    for (const Message& m : program_->sends_of(step)) append_joined(joined_, begin, m.view, Mode::read);
    for (const Message& m : program_->receives_of(step)) append_joined(joined_, begin, m.view, Mode::write);
    of_step_.push_back({begin, static_cast<std::uint32_t>(joined_.size()) - begin});
    const int queue = queue_of(step);
    for (const auto& [view, mode] : accesses_of(static_cast<StepId>(id))) {
      if (!view.present()) continue;
      const auto slot = static_cast<std::size_t>(view.slot);
      lifetimes[slot].use(queue, static_cast<StepId>(id));
      slots_[slot].written |= mode != Mode::read;
    }
  }
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) slots_[slot].may_race = slots_[slot].written && !lifetimes[slot].in_one_queue();
}

std::span<const Access> RaceCheck::accesses_of(StepId id) const {
  const Step& step = program_->steps[static_cast<std::size_t>(id)];
  return step.op != Op::exchange ? program_->accesses_of(step) : program_->of(joined_, of_step_[static_cast<std::size_t>(id)]);
}

void RaceCheck::fail_shared(StepId id, const View& view) {
  failures_->push_back(
      fmt::format("rank {} step {}: two operands share rows of '{}' and one is written", program_->rank, id, slot_of(view).name));
}

void RaceCheck::check_operands(StepId id, std::span<const Access> accesses) {
  for (std::size_t i = 0; i < accesses.size(); ++i) {
    if (accesses[i].mode == Mode::read || !accesses[i].view.present()) continue;
    for (std::size_t j = 0; j < accesses.size(); ++j) {
      if (i != j && (accesses[j].mode == Mode::read || j < i) && overlap(accesses[i].view, accesses[j].view))
        fail_shared(id, accesses[i].view);
    }
  }
}

/// Messages have all heads of their slots: by slot and row, each has to begin behind those before it.
void RaceCheck::check_messages_apart(StepId id, std::span<const Access> messages) {
  by_row_.assign(messages.begin(), messages.end());
  std::ranges::sort(by_row_, {}, [](const Access& access) { return std::pair(access.view.slot, access.view.row0); });
  std::int64_t end = 0, written_end = 0;
  for (std::size_t i = 0; i < by_row_.size(); ++i) {
    const auto& [view, mode] = by_row_[i];
    if (i == 0 || by_row_[i - 1].view.slot != view.slot) end = written_end = 0;
    if (view.row0 < (mode == Mode::read ? written_end : end)) fail_shared(id, view);
    end = std::max(end, view.row0 + view.rows);
    if (mode != Mode::read) written_end = std::max(written_end, view.row0 + view.rows);
  }
}

void RaceCheck::check_order(StepId id, std::span<const Access> accesses) {
  const StepOrders& orders = timeline_->orders;
  const int queue = orders.queue_of(id);
  const auto may_race = [this](const View& view) { return view.present() && slots_[static_cast<std::size_t>(view.slot)].may_race; };
  const auto distinct = histories_.distinct(accesses, may_race);
  for (const auto& [view, mode] : distinct) {
    histories_.of(view).for_unordered(view, mode, id, orders, [&, &slot = view](StepId other) {
      failures_->push_back(
          fmt::format("rank {} step {}: touches '{}' while step {} may still use it", program_->rank, id, slot_of(slot).name, other));
    });
  }
  for (const auto& [view, mode] : distinct) histories_.of(view).remember(view, mode, id, queue);
}

/// Slots whose bytes meet are never alive together. By rising offset, those that may meet one are those that begin in it.
void RaceCheck::check_shared_bytes(const Timeline& timeline) {
  by_offset_.clear();
  for (std::size_t i = 0; i < program_->slots.size(); ++i) {
    if (program_->slots[i].role == Role::scratch && program_->slots[i].bytes() > 0) by_offset_.push_back(i);
  }
  const auto slot = [&](std::size_t place) -> const Slot& { return program_->slots[by_offset_[place]]; };
  std::ranges::sort(by_offset_, {}, [&](std::size_t i) { return program_->slots[i].offset; });
  for (std::size_t a = 0; a < by_offset_.size(); ++a) {
    const std::int64_t end = slot(a).offset + slot(a).bytes();
    for (std::size_t b = a + 1; b < by_offset_.size() && slot(b).offset < end; ++b) {
      if (timeline.lifetimes[by_offset_[a]].apart(timeline.lifetimes[by_offset_[b]], timeline.orders)) continue;
      failures_->push_back(fmt::format("rank {}: scratch '{}' and '{}' share workspace bytes but may be alive together", program_->rank,
                                       slot(a).name, slot(b).name));
    }
  }
}

}  // namespace periplus::plan
