#include "parallel/plan/verify_races.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace periplus::plan {
namespace {

/// fn(view, mode) for everything a step touches, messages included.
template <class Fn>
void for_accesses(const Program& program, const Step& step, Fn&& fn) {
  for (const Access& access : program.accesses_of(step)) {
    if (access.view.present()) fn(access.view, access.mode);
  }
  for (const Message& message : program.sends_of(step)) fn(message.view, Mode::read);
  for (const Message& message : program.receives_of(step)) fn(message.view, Mode::write);
}

}  // namespace

void RaceCheck::run(const Program& program, std::vector<std::string>& failures) {
  program_ = &program;
  failures_ = &failures;
  orders_.clear();
  find_lifetimes();
  for (StepId id = 0; id < static_cast<StepId>(program.steps.size()); ++id) {
    const Step& step = program.steps[static_cast<std::size_t>(id)];
    orders_.begin(plan::queue_of(step));
    for (const StepId other : program.after_of(step)) orders_.wait_for(other);
    check_step(id, accesses_of(step));
  }
  check_shared_bytes();
}

void RaceCheck::find_lifetimes() {
  if (slots_.size() < program_->slots.size()) slots_.resize(program_->slots.size());
  for (std::size_t i = 0; i < program_->slots.size(); ++i) {
    slots_[i].uses.clear();
    slots_[i].lifetime = {};
    slots_[i].written = false, slots_[i].written_in = -1;
  }
  for (std::size_t id = 0; id < program_->steps.size(); ++id) {
    const Step& step = program_->steps[id];
    const int queue = queue_of(step);
    for_accesses(*program_, step, [&](const View& view, Mode mode) {
      History& history = history_of(view);
      history.lifetime.use(queue, static_cast<StepId>(id));
      history.written |= mode != Mode::read;
    });
  }
  for (History& history : slots_) history.may_race = history.written && !history.lifetime.in_one_queue();
}

std::span<const Access> RaceCheck::accesses_of(const Step& step) {
  if (step.op != Op::exchange) return program_->accesses_of(step);
  messages_.clear();
  for_accesses(*program_, step, [&](const View& view, Mode mode) { messages_.emplace_back(view, mode); });
  return messages_;
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

/// Messages have all heads of their slots and are many: by slot and row, each has to begin behind those before it.
void RaceCheck::check_messages_apart(StepId id, std::span<const Access> messages) {
  for (const auto& [view, mode] : messages) {
    if (mode != Mode::read) history_of(view).written_in = id;
  }
  by_row_.clear();
  for (const Access& access : messages) {
    if (history_of(access.view).written_in == id) by_row_.push_back(access);
  }
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

void RaceCheck::check_step(StepId id, std::span<const Access> accesses) {
  constexpr std::size_t kFewAccesses = 8;
  const int queue = orders_.queue_of(id);
  // Pair by pair where that is less than to sort.
  queue == 0 || accesses.size() <= kFewAccesses ? check_operands(id, accesses) : check_messages_apart(id, accesses);
  if (queue == 0) return check_order(id, accesses);
  joined_.clear();
  for (const auto& [view, mode] : accesses) append_joined(joined_, view, mode);
  check_order(id, joined_);
}

void RaceCheck::check_order(StepId id, std::span<const Access> accesses) {
  const int queue = orders_.queue_of(id);
  const auto may_race = [this](const View& view) { return view.present() && history_of(view).may_race; };
  for (const auto& [view, mode] : accesses) {
    if (!may_race(view)) continue;
    history_of(view).uses.for_unordered(view, mode, id, orders_, [&, &slot = view](StepId other) {
      failures_->push_back(
          fmt::format("rank {} step {}: touches '{}' while step {} may still use it", program_->rank, id, slot_of(slot).name, other));
    });
  }
  for (const auto& [view, mode] : accesses) {
    if (may_race(view)) history_of(view).uses.remember(view, mode, id, queue);
  }
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
