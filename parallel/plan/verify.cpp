#include "parallel/plan/verify.h"

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "parallel/plan/order.h"
#include "parallel/plan/verify_form.h"
#include "parallel/plan/verify_provenance.h"
#include "parallel/plan/verify_states.h"

namespace periplus::plan {
namespace {

constexpr std::size_t kMostFailures = 8, kFewAccesses = 8;

/// Everything a step touches, messages included.
void collect_accesses(const Program& program, const Step& step, std::vector<Access>& accesses) {
  accesses.clear();
  for (const Access& access : program.accesses_of(step)) {
    if (access.view.present()) accesses.emplace_back(access.view, access.mode);
  }
  for (const Message& message : program.sends_of(step)) accesses.emplace_back(message.view, Mode::read);
  for (const Message& message : program.receives_of(step)) accesses.emplace_back(message.view, Mode::write);
}

/// Part 2. A message as one of its ends sees it.
struct Letter {
  std::int32_t phase;
  std::int32_t order;  ///< k-th of its pair and phase
  std::int32_t lane;
  std::int64_t bytes;
  DType dtype;
  StepId step;
  auto key() const { return std::pair(phase, order); }
  auto content() const { return std::tuple(lane, bytes, dtype); }
};

/// All messages as their senders or receivers see them, by ordered pair of ranks; those of a pair by rising phase and order,
/// because phases rise along programs.
class Letters {
 public:
  Letters(const Plan& plan, bool sent) : ranks_(plan.programs.size()), first_(ranks_ * ranks_ + 1, 0) {
    for_messages(plan, sent, [&](std::size_t pair, const Program&, StepId, const Message&) { ++first_[pair + 1]; });
    for (std::size_t pair = 1; pair < first_.size(); ++pair) first_[pair] += first_[pair - 1];
    letters_.resize(first_.back());
    std::vector<std::size_t> next(first_.begin(), first_.end() - 1);
    for_messages(plan, sent, [&](std::size_t pair, const Program& program, StepId id, const Message& m) {
      const Step& step = program.steps[static_cast<std::size_t>(id)];
      const bool follows = next[pair] > first_[pair] && letters_[next[pair] - 1].phase == step.phase;
      const std::int32_t order = follows ? letters_[next[pair] - 1].order + 1 : 0;
      letters_[next[pair]++] = {step.phase, order, step.lane, program.bytes_of(m.view), program.slot_of(m.view).dtype, id};
    });
  }
  std::span<const Letter> between(std::size_t from, std::size_t to) const {
    const std::size_t pair = from * ranks_ + to;
    return std::span(letters_).subspan(first_[pair], first_[pair + 1] - first_[pair]);
  }

 private:
  template <class Fn>
  void for_messages(const Plan& plan, bool sent, Fn&& fn) const {
    for (const Program& program : plan.programs) {
      for (std::size_t id = 0; id < program.steps.size(); ++id) {
        const Step& step = program.steps[id];
        for (const Message& m : sent ? program.sends_of(step) : program.receives_of(step)) {
          const auto self = static_cast<std::size_t>(program.rank), peer = static_cast<std::size_t>(m.peer);
          fn(sent ? self * ranks_ + peer : peer * ranks_ + self, program, static_cast<StepId>(id), m);
        }
      }
    }
  }
  std::size_t ranks_;
  std::vector<std::size_t> first_;  ///< Of each pair.
  std::vector<Letter> letters_;
};

void check_pair(std::size_t from, std::size_t to, std::span<const Letter> sent, std::span<const Letter> received, Verdict& verdict) {
  std::size_t s = 0, r = 0;
  while ((s < sent.size() || r < received.size()) && verdict.failures.size() < kMostFailures) {
    if (r == received.size() || (s < sent.size() && sent[s].key() < received[r].key())) {
      verdict.failures.push_back(fmt::format("rank {} step {}: sends {} bytes to rank {} in phase {}, which does not receive them", from,
                                             sent[s].step, sent[s].bytes, to, sent[s].phase));
      ++s;
    } else if (s == sent.size() || received[r].key() < sent[s].key()) {
      verdict.failures.push_back(fmt::format("rank {} step {}: receives {} bytes from rank {} in phase {}, which does not send them", to,
                                             received[r].step, received[r].bytes, from, received[r].phase));
      ++r;
    } else {
      if (sent[s].content() != received[r].content()) {
        verdict.failures.push_back(
            fmt::format("rank {} step {} sends {} bytes of {} on lane {} to rank {} step {}, which receives {} bytes of {} on lane {}",
                        from, sent[s].step, sent[s].bytes, to_string(sent[s].dtype), sent[s].lane, to, received[r].step, received[r].bytes,
                        to_string(received[r].dtype), received[r].lane));
      }
      verdict.bytes_sent += sent[s].bytes;
      ++verdict.messages;
      ++s, ++r;
    }
  }
}

void check_messages(const Plan& plan, Verdict& verdict) {
  const Letters sent(plan, true), received(plan, false);
  for (std::size_t from = 0; from < plan.programs.size(); ++from) {
    for (std::size_t to = 0; to < plan.programs.size(); ++to)
      check_pair(from, to, sent.between(from, to), received.between(from, to), verdict);
  }
}

/// Part 3, program by program: memory is kept from one to the next.
class RaceCheck {
 public:
  void run(const Program& program, std::vector<std::string>& failures) {
    program_ = &program;
    failures_ = &failures;
    orders_.clear();
    for (SlotUses& slot : slots_) slot.clear();
    if (slots_.size() < program.slots.size()) slots_.resize(program.slots.size());
    for (StepId id = 0; id < static_cast<StepId>(program.steps.size()); ++id) {
      const Step& step = program.steps[static_cast<std::size_t>(id)];
      orders_.begin(queue_of(step));
      for (const StepId other : program.after_of(step)) orders_.wait_for(other);
      collect_accesses(program, step, accesses_);
      check_step(id);
    }
    check_shared_bytes();
  }

 private:
  const Slot& slot_of(const View& view) const { return program_->slot_of(view); }

  void fail_shared(StepId id, const View& view) {
    failures_->push_back(
        fmt::format("rank {} step {}: two operands share rows of '{}' and one is written", program_->rank, id, slot_of(view).name));
  }

  void check_operands(StepId id) {
    for (std::size_t i = 0; i < accesses_.size(); ++i) {
      if (accesses_[i].mode == Mode::read) continue;
      for (std::size_t j = 0; j < accesses_.size(); ++j) {
        if (i != j && (accesses_[j].mode == Mode::read || j < i) && overlap(accesses_[i].view, accesses_[j].view))
          fail_shared(id, accesses_[i].view);
      }
    }
  }

  /// Messages have all heads of their slots and are many: by slot and row, each has to begin behind those before it.
  void check_messages_apart(StepId id) {
    by_row_.assign(accesses_.begin(), accesses_.end());
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

  void check_step(StepId id) {
    const int queue = orders_.queue_of(id);
    // Pair by pair where that is less than to sort.
    queue == 0 || accesses_.size() <= kFewAccesses ? check_operands(id) : check_messages_apart(id);
    for (const auto& [view, mode] : accesses_) {
      slots_[static_cast<std::size_t>(view.slot)].for_conflicts(view, mode, queue, [&](StepId other) {
        if (orders_.ordered(other, id)) return;
        failures_->push_back(
            fmt::format("rank {} step {}: touches '{}' while step {} may still use it", program_->rank, id, slot_of(view).name, other));
      });
    }
    for (const auto& [view, mode] : accesses_) slots_[static_cast<std::size_t>(view.slot)].remember(view, mode, id, queue);
  }

  /// Slots whose bytes meet are never alive together. By rising offset, those that may meet one are those that begin in it.
  void check_shared_bytes() {
    by_offset_.clear();
    for (std::size_t i = 0; i < program_->slots.size(); ++i) {
      if (program_->slots[i].role == Role::scratch && program_->slots[i].bytes() > 0) by_offset_.push_back(i);
    }
    const auto slot = [&](std::size_t place) -> const Slot& { return program_->slots[by_offset_[place]]; };
    std::ranges::sort(by_offset_, {}, [&](std::size_t i) { return program_->slots[i].offset; });
    for (std::size_t a = 0; a < by_offset_.size(); ++a) {
      const std::int64_t end = slot(a).offset + slot(a).bytes();
      for (std::size_t b = a + 1; b < by_offset_.size() && slot(b).offset < end; ++b) {
        if (slots_[by_offset_[a]].lifetime().apart(slots_[by_offset_[b]].lifetime(), orders_)) continue;
        failures_->push_back(fmt::format("rank {}: scratch '{}' and '{}' share workspace bytes but may be alive together", program_->rank,
                                         slot(a).name, slot(b).name));
      }
    }
  }

  std::vector<std::string>* failures_ = nullptr;
  const Program* program_ = nullptr;
  std::vector<SlotUses> slots_;            ///< May be more than the program has.
  std::vector<Access> accesses_, by_row_;  // of the step at hand
  std::vector<std::size_t> by_offset_;     ///< Scratch slots.
  StepOrders orders_;
};

}  // namespace

struct Verifier::State {
  RaceCheck races;
  ProvenanceMemory provenance;
};

Verifier::Verifier() : state_(std::make_unique<State>()) {}
Verifier::~Verifier() = default;

Verdict verify(const Plan& plan) { return Verifier().verify(plan); }

Verdict Verifier::verify(const Plan& plan) {
  Verdict verdict;
  const int ranks = static_cast<int>(plan.programs.size());
  ProperOrders proper_orders;
  if (ranks != plan.claim.layout.ranks())
    verdict.failures.push_back(fmt::format("{} programs for a layout of {} ranks", ranks, plan.claim.layout.ranks()));
  for (int r = 0; r < ranks && verdict.failures.size() < kMostFailures; ++r) {
    const Program& program = plan.programs[static_cast<std::size_t>(r)];
    if (program.rank != r) verdict.failures.push_back(fmt::format("program {} says it is of rank {}", r, program.rank));
    verdict.steps += static_cast<std::int64_t>(program.steps.size());
    check_form(program, ranks, proper_orders, verdict.failures);
  }
  if (!verdict.ok()) return verdict;
  check_messages(plan, verdict);
  for (const Program& program : plan.programs) {
    if (verdict.failures.size() < kMostFailures) state_->races.run(program, verdict.failures);
  }
  if (!verdict.ok()) return verdict;
  std::string failure = plan.claim.computes == Computes::linear ? check_states(plan) : check_provenance(plan, state_->provenance);
  if (!failure.empty()) verdict.failures.push_back(std::move(failure));
  if (plan.claim.bytes_sent >= 0 && verdict.bytes_sent != plan.claim.bytes_sent) {
    verdict.failures.push_back(fmt::format("the plan sends {} bytes, its formula says {}", verdict.bytes_sent, plan.claim.bytes_sent));
  }
  return verdict;
}

}  // namespace periplus::plan
