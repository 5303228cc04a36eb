#include "parallel/plan/verify_races.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace periplus::plan {

void RaceCheck::run(const Program& program, std::vector<std::string>& failures) {
  constexpr std::size_t kFewAccesses = 8;
  program_ = &program;
  failures_ = &failures;
  orders_.clear();
  histories_.clear(program.slots.size());
  find_lifetimes();
  for (StepId id = 0; id < static_cast<StepId>(program.steps.size()); ++id) {
    const Step& step = program.steps[static_cast<std::size_t>(id)];
    orders_.begin(plan::queue_of(step));
    for (const StepId other : program.after_of(step)) orders_.wait_for(other);
    const std::span<const Access> accesses = accesses_of(id);
    // Pair by pair where that is less than to sort.
    step.op != Op::exchange || accesses.size() <= kFewAccesses ? check_operands(id, accesses) : check_messages_apart(id, accesses);
    check_order(id, accesses);
  }
  check_shared_bytes();
}

void RaceCheck::find_lifetimes() {
  slots_.assign(std::max(slots_.size(), program_->slots.size()), {});
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
      known(view).lifetime.use(queue, static_cast<StepId>(id));
      known(view).written |= mode != Mode::read;
    }
  }
  for (Known& slot : slots_) slot.may_race = slot.written && !slot.lifetime.in_one_queue();
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
  const int queue = orders_.queue_of(id);
  const auto distinct = histories_.distinct(accesses, [this](const View& view) { return view.present() && known(view).may_race; });
  for (const auto& [view, mode] : distinct) {
    histories_.of(view).for_unordered(view, mode, id, orders_, [&, &slot = view](StepId other) {
      failures_->push_back(
          fmt::format("rank {} step {}: touches '{}' while step {} may still use it", program_->rank, id, slot_of(slot).name, other));
    });
  }
  for (const auto& [view, mode] : distinct) histories_.of(view).remember(view, mode, id, queue);
}

/// Slots whose bytes meet are never alive together. By rising offset, those that may meet one are those that begin in it.
void RaceCheck::check_shared_bytes() {
  by_offset_.clear();
  for (std::size_t i = 0; i < program_->slots.size(); ++i) {
    if (program_->slots[i].role == Role::scratch && program_->slots[i].bytes() > 0) by_offset_.push_back(i);
  }
  const auto slot = [&](std::size_t place) -> const Slot& { return program_->slots[by_offset_[place]]; };
  std::ranges::sort(by_offset_, {}, [&](std::size_t i) { return program_->slots[i].offset; });
  for (std::size_t a = 0; a < by_offset_.size(); ++a) {
    const std::int64_t end = slot(a).offset + slot(a).bytes();
    for (std::size_t b = a + 1; b < by_offset_.size() && slot(b).offset < end; ++b) {
      if (slots_[by_offset_[a]].lifetime.apart(slots_[by_offset_[b]].lifetime, orders_)) continue;
      failures_->push_back(fmt::format("rank {}: scratch '{}' and '{}' share workspace bytes but may be alive together", program_->rank,
                                       slot(a).name, slot(b).name));
    }
  }
}

}  // namespace periplus::plan
