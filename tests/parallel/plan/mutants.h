#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <iostream>
#include <map>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "parallel/plan/ops.h"
#include "parallel/plan/verify.h"
#include "tests/parallel/plan/loose_program.h"
#include "tests/parallel/plan/played_plan.h"

// Damages valid plans mechanically, one fault each, and counts how many verify() notices. Here are the faults that any plan can have.
namespace periplus::plan::test {

using Random = std::mt19937_64;

inline std::size_t below(Random& random, std::size_t n) { return n == 0 ? 0 : random() % n; }

/// The pairs of a step, with repeats: what a change of bands has to change to be a fault.
inline std::map<std::pair<std::int64_t, std::int64_t>, int> pairs_of(const std::vector<Band>& bands) {
  std::map<std::pair<std::int64_t, std::int64_t>, int> pairs;
  for (const Band& b : bands) {
    for (std::int64_t q = b.q0; q < b.q1; ++q) {
      for (std::int64_t k = b.k0; k < b.k1; ++k) {
        if (b.lo <= k - q && k - q <= b.hi) ++pairs[{q, k}];
      }
    }
  }
  return pairs;
}

/// A plan being damaged.
struct Victim {
  Plan plan;
  std::size_t rank = 0;
  Random& random;
  std::string what = {};  ///< What was done, for the survivors.

  Program& program() { return plan.programs[rank]; }
  std::size_t pick(std::size_t n) { return below(random, n); }
  int sign() { return pick(2) == 0 ? 1 : -1; }
  /// A random step for which the condition holds.
  std::optional<std::size_t> step(const LooseSteps& steps, const std::function<bool(const LooseStep&)>& wanted) {
    std::vector<std::size_t> found;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      if (wanted(steps[i])) found.push_back(i);
    }
    if (found.empty()) return std::nullopt;
    return found[pick(found.size())];
  }
};

enum class Outcome { fault, equivalent, none };  // equivalent: so its criterion says; none: there is nothing to damage
using Mutator = Outcome (*)(Victim&, LooseSteps&);

inline bool is_exchange(const LooseStep& s) { return s.step.op == Op::exchange; }

inline Message& any_message(Victim& v, LooseStep& s) {
  const std::size_t i = v.pick(s.sends.size() + s.receives.size());
  return i < s.sends.size() ? s.sends[i] : s.receives[i - s.sends.size()];
}

/// Whether a plan can do without a compute step: nobody works with what it writes (a strategy may pack a block that no
/// rank asks for), and what it adds to other sums is nothing (a mask may leave a sum empty).
inline bool is_idle(const Victim& v, const LooseStep& s, std::size_t step) {
  const auto empty = [&](std::size_t operand) { return PlayedPlan(v.plan).holds_empty_sums(v.rank, step, s.accesses[operand].view); };
  if (s.step.op == Op::add) return empty(transfer_operand::source);
  if (s.step.op == Op::merge) return empty(merge_operand::part_out);
  const bool adds = std::ranges::any_of(s.accesses, [](const Access& a) { return a.mode == Mode::add; });
  const bool contributes = !pairs_of(s.bands).empty() || s.step.op == Op::unit_scan;
  return !(adds && contributes) && !PlayedPlan(v.plan).result_is_used(v.rank, step);
}

/// Swaps neighbours. Equivalent: steps of different queues, not both exchanges, neither waiting for the other (the three
/// queues stay as they were); or compute steps whose order does not matter, idle ones that share memory among them.
inline Outcome swap_neighbours(Victim& v, LooseSteps& steps) {
  if (steps.size() < 2) return Outcome::none;
  const std::size_t i = v.pick(steps.size() - 1);
  LooseStep &a = steps[i], &b = steps[i + 1];
  const bool waits = std::count(b.after.begin(), b.after.end(), static_cast<StepId>(i)) > 0;
  if (is_exchange(a) != is_exchange(b) && !waits) return Outcome::equivalent;
  if (!is_exchange(a) && !is_exchange(b) && (!order_matters(v.program(), a, b) || (is_idle(v, a, i) && is_idle(v, b, i + 1))))
    return Outcome::equivalent;
  v.what = fmt::format("steps {} and {} swapped", i, i + 1);
  std::swap(a, b);
  const auto id = static_cast<StepId>(i);
  renumber(steps, [id](StepId s) { return s == id ? id + 1 : s == id + 1 ? id : s; });
  return Outcome::fault;
}

inline Outcome wrong_peer(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, is_exchange);
  const auto ranks = static_cast<int>(v.plan.programs.size());
  if (!i || ranks < 3) return Outcome::none;
  Message& m = any_message(v, steps[*i]);
  const Rank old = m.peer;
  do m.peer = static_cast<Rank>(v.pick(static_cast<std::size_t>(ranks)));
  while (m.peer == old || m.peer == static_cast<Rank>(v.rank));
  v.what = fmt::format("step {} peer {} instead of {}", *i, m.peer, old);
  return Outcome::fault;
}

inline Outcome wrong_phase(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, is_exchange);
  if (!i) return Outcome::none;
  const int by = v.sign();
  steps[*i].step.phase += by;
  v.what = fmt::format("step {} phase moved by {}", *i, by);
  return Outcome::fault;
}

inline Outcome wrong_lane(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, is_exchange);
  if (!i) return Outcome::none;
  steps[*i].step.lane = static_cast<std::int8_t>((steps[*i].step.lane + 1) % kPlanLanes);
  v.what = fmt::format("step {} on another lane", *i);
  return Outcome::fault;
}

inline Outcome shorter_message(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, is_exchange);
  if (!i) return Outcome::none;
  --any_message(v, steps[*i]).view.rows;
  v.what = fmt::format("step {} message one row shorter", *i);
  return Outcome::fault;
}

/// What one slot receives has twice the heads and half the rows, in as many bytes.
inline Outcome wider_message(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) { return !s.receives.empty(); });
  if (!i) return Outcome::none;
  const SlotId id = steps[*i].receives[v.pick(steps[*i].receives.size())].view.slot;
  Slot& slot = v.program().slots[static_cast<std::size_t>(id)];
  const auto is_its = [&](const Message& m) { return m.view.slot == id; };
  const auto is_odd = [&](const Message& m) { return is_its(m) && m.view.rows % 2 != 0; };
  for (const LooseStep& s : steps) {
    if (std::ranges::any_of(s.sends, is_its) || std::ranges::any_of(s.receives, is_odd)) return Outcome::none;
  }
  if (slot.role != Role::scratch) return Outcome::none;
  slot.heads *= 2;
  slot.offset = v.program().workspace_bytes;
  v.program().workspace_bytes += (slot.bytes() + 255) / 256 * 256;
  for (LooseStep& s : steps) {
    for (Message& m : s.receives) {
      if (is_its(m)) m.view.rows /= 2, m.view.heads *= 2;
    }
  }
  v.what = fmt::format("'{}' receives rows of {} heads", slot.name, slot.heads);
  return Outcome::fault;
}

/// Equivalent: an element that no fold mentions.
inline Outcome shorter_operand(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) { return !is_exchange(s); });
  if (!i) return Outcome::none;
  const std::size_t operand = v.pick(steps[*i].accesses.size());
  View& view = steps[*i].accesses[operand].view;
  if (!view.present() || view.rows == 0) return Outcome::none;
  if (steps[*i].step.op == Op::unit_scan && operand == unit_scan_operand::elements) {
    const auto folds = v.program().folds_of(steps[*i].step);
    if (std::ranges::all_of(folds, [&](const kernels::UnitFold& fold) { return fold.end < view.rows; })) return Outcome::equivalent;
  }
  --view.rows;
  v.what = fmt::format("step {} {} operand {} one row shorter", *i, info(steps[*i].step.op).name, operand);
  return Outcome::fault;
}

/// Drops a step; `after` entries that named it go with it. Equivalent: an idle step.
inline Outcome missing_step(Victim& v, LooseSteps& steps, bool exchange) {
  const auto i = v.step(steps, [&](const LooseStep& s) { return is_exchange(s) == exchange; });
  if (!i) return Outcome::none;
  if (!exchange && is_idle(v, steps[*i], *i)) return Outcome::equivalent;
  v.what = fmt::format("step {} {} dropped", *i, info(steps[*i].step.op).name);
  steps.erase(steps.begin() + static_cast<std::ptrdiff_t>(*i));
  const auto gone = static_cast<StepId>(*i);
  renumber(steps, [gone](StepId s) { return s == gone ? -1 : s > gone ? s - 1 : s; });
  return Outcome::fault;
}
inline Outcome missing_exchange(Victim& v, LooseSteps& steps) { return missing_step(v, steps, true); }
inline Outcome missing_compute(Victim& v, LooseSteps& steps) { return missing_step(v, steps, false); }

/// Equivalent: the order it stood for follows from the rest.
inline Outcome missing_dependency(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) { return !s.after.empty(); });
  if (!i) return Outcome::none;
  std::vector<StepId>& after = steps[*i].after;
  const std::size_t a = v.pick(after.size());
  const auto other = static_cast<std::size_t>(after[a]);
  v.what = fmt::format("step {} no longer waits for {}", *i, other);
  after.erase(after.begin() + static_cast<std::ptrdiff_t>(a));
  return happens_before(steps)[other][*i] ? Outcome::equivalent : Outcome::fault;
}

/// Equivalent: every slot that now shares bytes with the moved one is dead before its first use, or born after its last.
inline Outcome slot_reused_too_early(Victim& v, LooseSteps& steps) {
  std::vector<Slot>& slots = v.program().slots;
  std::vector<std::size_t> scratch;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i].role == Role::scratch && slots[i].bytes() > 0) scratch.push_back(i);
  }
  if (scratch.size() < 2) return Outcome::none;
  const std::size_t moved = scratch[v.pick(scratch.size())], onto = scratch[v.pick(scratch.size())];
  if (moved == onto || slots[moved].offset == slots[onto].offset) return Outcome::none;
  slots[moved].offset = slots[onto].offset;
  v.what = fmt::format("scratch '{}' at the place of '{}'", slots[moved].name, slots[onto].name);
  const auto before = happens_before(steps);
  const auto uses = [&](std::size_t slot) {
    std::vector<std::size_t> ids;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      for (const Access& a : touched(steps[i])) {
        if (a.view.slot == static_cast<SlotId>(slot)) ids.push_back(i);
      }
    }
    return ids;
  };
  const auto all_before = [&](const auto& first, const auto& second) {
    return std::all_of(first.begin(), first.end(), [&](std::size_t a) {
      return std::all_of(second.begin(), second.end(), [&](std::size_t b) { return before[a][b] != 0; });
    });
  };
  for (const std::size_t other : scratch) {
    if (other == moved || !share_workspace(slots[other], slots[moved])) continue;
    if (!all_before(uses(moved), uses(other)) && !all_before(uses(other), uses(moved))) return Outcome::fault;
  }
  return Outcome::equivalent;
}

/// Sends from another slot of the same shape. Equivalent: nobody works with what the message brings.
inline Outcome wrong_slot(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) { return !s.sends.empty(); });
  if (!i) return Outcome::none;
  const std::size_t index = v.pick(steps[*i].sends.size());
  View& view = steps[*i].sends[index].view;
  const std::vector<Slot>& slots = v.program().slots;
  const Slot& old = slots[static_cast<std::size_t>(view.slot)];
  std::vector<SlotId> others;
  for (std::size_t s = 0; s < slots.size(); ++s) {
    const bool alike = slots[s].rows >= view.row0 + view.rows && slots[s].heads == old.heads && slots[s].width == old.width &&
                       slots[s].dtype == old.dtype && slots[s].contiguous;
    if (alike && static_cast<SlotId>(s) != view.slot) others.push_back(static_cast<SlotId>(s));
  }
  if (others.empty()) return Outcome::none;
  if (!PlayedPlan(v.plan).message_is_used(v.rank, *i, index)) return Outcome::equivalent;
  view.slot = others[v.pick(others.size())];
  v.what = fmt::format("step {} sends '{}' instead of '{}'", *i, slots[static_cast<std::size_t>(view.slot)].name, old.name);
  return Outcome::fault;
}

/// One operand, or all that are written: then no form check helps. Equivalent: what was there is an empty sum.
inline Outcome wrong_mode(Victim& v, LooseSteps& steps) {
  const auto i = v.step(steps, [](const LooseStep& s) {
    return std::any_of(s.accesses.begin(), s.accesses.end(), [](const Access& a) { return a.mode != Mode::read; });
  });
  if (!i) return Outcome::none;
  std::vector<Access*> written;
  for (Access& a : steps[*i].accesses) {
    if (a.mode != Mode::read && a.view.present()) written.push_back(&a);
  }
  const bool all = v.pick(2) == 0;
  if (!all) written = {written[v.pick(written.size())]};
  const auto empty = [&](const Access* a) { return PlayedPlan(v.plan).holds_empty_sums(v.rank, *i, a->view); };
  if (std::ranges::all_of(written, empty)) return Outcome::equivalent;
  for (Access* a : written) a->mode = a->mode == Mode::add ? Mode::write : Mode::add;
  v.what = fmt::format("step {} {} mode flipped{}", *i, info(steps[*i].step.op).name, all ? " on all operands" : "");
  return Outcome::fault;
}

struct Kind {
  std::string_view name;
  Mutator mutate;
  bool every_strategy = true;  ///< Whether all strategies have something to damage in this way.
};

struct Base {
  std::string name;
  Plan plan;
};

/// Damages plans, one fault each, and counts.
class Mutants {
 public:
  /// Damages a plan in one way of a kind, if that is possible.
  void damage(const Base& base, const Kind& kind) {
    Victim victim{base.plan, below(random_, base.plan.programs.size()), random_};
    LooseSteps steps = loosen(victim.program());
    const Outcome outcome = kind.mutate(victim, steps);
    if (outcome == Outcome::none) return;
    if (outcome == Outcome::equivalent) {
      for (Count* count : {&counts_[kind.name], &all_}) ++count->equivalent;
      return;
    }
    tighten(victim.program(), steps);
    const bool killed = !verify(victim.plan).ok();
    if (!killed) std::cout << "survivor, " << kind.name << ": rank " << victim.rank << " " << victim.what << "; " << base.name << "\n";
    for (Count* count : {&counts_[kind.name], &all_}) ++count->made, count->killed += killed;
  }

  /// Three attempts of every kind on every plan, all of which must verify.
  void damage_all(const std::vector<Base>& bases, std::span<const Kind> kinds) {
    for (const Base& base : bases) {
      const Verdict verdict = verify(base.plan);
      ASSERT_TRUE(verdict.ok()) << base.name << ": " << verdict.failures.front();
      for (const Kind& kind : kinds) {
        for (int attempt = 0; attempt < 3; ++attempt) damage(base, kind);
      }
    }
  }

  /// 99 of 100 have to be killed; of each kind that applies always, some have to be made.
  void expect_killed(std::span<const Kind> kinds, int made_of_each, int made) {
    for (const Kind& kind : kinds) {
      const Count& count = counts_[kind.name];
      print(kind.name, count);
      EXPECT_GE(count.made, kind.every_strategy ? made_of_each : 0) << kind.name;
    }
    print("all", all_);
    EXPECT_GE(all_.made, made);
    EXPECT_GE(all_.killed, 0.99 * all_.made);
  }

 private:
  struct Count {
    int made = 0, killed = 0, equivalent = 0;
  };
  static void print(std::string_view name, const Count& count) {
    std::cout << fmt::format("{:<24} {:>4} made {:>4} killed, {:>4} equivalent\n", name, count.made, count.killed, count.equivalent);
  }

  Random random_{20240611};
  std::map<std::string_view, Count> counts_;
  Count all_;
};

}  // namespace periplus::plan::test
