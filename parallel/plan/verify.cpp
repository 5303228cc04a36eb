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

constexpr std::size_t kMostFailures = 8;

/// Everything a step touches, messages included.
void collect_accesses(const Program& program, const Step& step, std::vector<Access>& accesses) {
  accesses.clear();
  for (const Access& access : program.accesses_of(step)) {
    if (access.view.present()) accesses.push_back(access);
  }
  for (const Message& message : program.sends_of(step)) accesses.push_back({message.view, Mode::read});
  for (const Message& message : program.receives_of(step)) accesses.push_back({message.view, Mode::write});
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

/// Part 3 for one program.
class RaceCheck {
 public:
  RaceCheck(const Program& program, std::vector<std::string>& failures)
      : program_(program), failures_(failures), slots_(program.slots.size()) {}

  void run() {
    for (StepId id = 0; id < static_cast<StepId>(program_.steps.size()); ++id) {
      const Step& step = program_.steps[static_cast<std::size_t>(id)];
      orders_.begin(queue_of(step));
      for (const StepId other : program_.after_of(step)) orders_.wait_for(other);
      collect_accesses(program_, step, accesses_);
      check_step(id, accesses_);
    }
    for (std::size_t a = 0; a < slots_.size(); ++a) {
      for (std::size_t b = a + 1; b < slots_.size(); ++b) check_shared_bytes(a, b);
    }
  }

 private:
  struct Use {
    StepId step;
    View view;
  };
  struct SlotUses {
    std::array<std::vector<Use>, kQueues> reads, writes;
    Lifetime lifetime;
  };

  /// The latest overlapping use in another queue decides: its queue finishes in order.
  void check_against(const std::array<std::vector<Use>, kQueues>& uses, StepId id, const View& view) {
    for (int queue = 0; queue < kQueues; ++queue) {
      if (queue == orders_.queue_of(id)) continue;
      for (auto use = uses[queue].rbegin(); use != uses[queue].rend(); ++use) {
        if (!overlap(use->view, view)) continue;
        if (!orders_.ordered(use->step, id)) {
          failures_.push_back(fmt::format("rank {} step {}: touches '{}' while step {} may still use it", program_.rank, id,
                                          program_.slot_of(view).name, use->step));
        }
        break;
      }
    }
  }

  void fail_shared(StepId id, const View& view) {
    failures_.push_back(
        fmt::format("rank {} step {}: two operands share rows of '{}' and one is written", program_.rank, id, program_.slot_of(view).name));
  }

  void check_operands(StepId id, const std::vector<Access>& accesses) {
    for (std::size_t i = 0; i < accesses.size(); ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        const bool harmless = accesses[i].mode == Mode::read && accesses[j].mode == Mode::read;
        if (!harmless && overlap(accesses[i].view, accesses[j].view)) fail_shared(id, accesses[i].view);
      }
    }
  }

  /// Messages have all heads of their slots and are many: by slot and row, each has to begin behind those before it.
  void check_messages_apart(StepId id, const std::vector<Access>& accesses) {
    by_row_.assign(accesses.begin(), accesses.end());
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

  void check_step(StepId id, const std::vector<Access>& accesses) {
    const int queue = orders_.queue_of(id);
    queue == 0 ? check_operands(id, accesses) : check_messages_apart(id, accesses);
    for (std::size_t i = 0; i < accesses.size(); ++i) {
      const auto& [view, mode] = accesses[i];
      SlotUses& slot = slots_[static_cast<std::size_t>(view.slot)];
      check_against(slot.writes, id, view);
      if (mode != Mode::read) check_against(slot.reads, id, view);
    }
    for (const auto& [view, mode] : accesses) {
      SlotUses& slot = slots_[static_cast<std::size_t>(view.slot)];
      (mode == Mode::read ? slot.reads : slot.writes)[static_cast<std::size_t>(queue)].push_back({id, view});
      slot.lifetime.use(queue, id);
    }
  }

  void check_shared_bytes(std::size_t a, std::size_t b) {
    const Slot &x = program_.slots[a], &y = program_.slots[b];
    if (x.role != Role::scratch || y.role != Role::scratch) return;
    if (x.offset >= y.offset + y.bytes() || y.offset >= x.offset + x.bytes()) return;
    if (!slots_[a].lifetime.apart(slots_[b].lifetime, orders_)) {
      failures_.push_back(
          fmt::format("rank {}: scratch '{}' and '{}' share workspace bytes but may be alive together", program_.rank, x.name, y.name));
    }
  }

  const Program& program_;
  std::vector<std::string>& failures_;
  std::vector<SlotUses> slots_;
  std::vector<Access> accesses_, by_row_;  // of the step at hand
  StepOrders orders_;
};

}  // namespace

Verdict verify(const Plan& plan) {
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
    if (verdict.failures.size() < kMostFailures) RaceCheck(program, verdict.failures).run();
  }
  if (!verdict.ok()) return verdict;
  if (std::string failure = plan.claim.computes == Computes::linear ? check_states(plan) : check_provenance(plan); !failure.empty())
    verdict.failures.push_back(std::move(failure));
  if (plan.claim.bytes_sent >= 0 && verdict.bytes_sent != plan.claim.bytes_sent) {
    verdict.failures.push_back(fmt::format("the plan sends {} bytes, its formula says {}", verdict.bytes_sent, plan.claim.bytes_sent));
  }
  return verdict;
}

}  // namespace periplus::plan
