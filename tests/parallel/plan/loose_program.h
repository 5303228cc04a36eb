#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <iterator>
#include <utility>
#include <vector>

#include "parallel/plan/ops.h"
#include "parallel/plan/order.h"
#include "parallel/plan/plan.h"

// Programs taken apart, so that tests can change them, and what follows from a program told in the plainest way.
namespace periplus::plan::test {

/// A step with its own lists, so that steps can be moved, dropped and changed.
struct LooseStep {
  Step step;
  std::vector<Access> accesses;
  std::vector<Band> bands;
  std::vector<Message> sends, receives;
  std::vector<StepId> after;
};
using LooseSteps = std::vector<LooseStep>;

inline LooseSteps loosen(const Program& program) {
  LooseSteps steps;
  const auto list = [](auto span) { return std::vector(span.begin(), span.end()); };
  for (const Step& s : program.steps) {
    steps.push_back({s, list(program.accesses_of(s)), list(program.bands_of(s)), list(program.sends_of(s)), list(program.receives_of(s)),
                     list(program.after_of(s))});
  }
  return steps;
}

inline void tighten(Program& program, const LooseSteps& steps) {
  const auto pour = [](auto& pool, const auto& items) {
    const Range range{static_cast<std::uint32_t>(pool.size()), static_cast<std::uint32_t>(items.size())};
    pool.insert(pool.end(), items.begin(), items.end());
    return range;
  };
  program.steps.clear(), program.accesses.clear(), program.bands.clear();
  program.sends.clear(), program.receives.clear(), program.after.clear();
  for (const LooseStep& loose : steps) {
    Step step = loose.step;
    step.accesses = pour(program.accesses, loose.accesses);
    step.bands = pour(program.bands, loose.bands);
    step.sends = pour(program.sends, loose.sends);
    step.receives = pour(program.receives, loose.receives);
    step.after = pour(program.after, loose.after);
    program.steps.push_back(step);
  }
}

/// Renumbers `after` by new_id, which gives -1 for a step that is gone.
inline void renumber(LooseSteps& steps, const std::function<StepId(StepId)>& new_id) {
  for (LooseStep& s : steps) {
    for (StepId& id : s.after) id = new_id(id);
    std::erase(s.after, -1);
  }
}

inline bool is_attend(const LooseStep& s) { return s.step.op == Op::attend || s.step.op == Op::attend_backward; }

inline std::vector<Access> touched(const LooseStep& s) {
  std::vector<Access> all;
  std::copy_if(s.accesses.begin(), s.accesses.end(), std::back_inserter(all), [](const Access& a) { return a.view.present(); });
  for (const Message& m : s.sends) all.push_back({m.view, Mode::read});
  for (const Message& m : s.receives) all.push_back({m.view, Mode::write});
  return all;
}

inline bool share_workspace(const Slot& x, const Slot& y) {
  return x.role == Role::scratch && y.role == Role::scratch && x.offset < y.offset + y.bytes() && y.offset < x.offset + x.bytes();
}

/// Whether the order of two steps can change what they leave behind: shared bytes that one of them changes, but for two
/// additions to one sum.
inline bool order_matters(const Program& program, const LooseStep& a, const LooseStep& b) {
  for (const Access& x : touched(a)) {
    for (const Access& y : touched(b)) {
      const bool harmless = x.mode == y.mode && x.mode != Mode::write;
      const bool meet =
          x.view.slot == y.view.slot ? overlap(x.view, y.view) : share_workspace(program.slot_of(x.view), program.slot_of(y.view));
      if (meet && !harmless) return true;
    }
  }
  return false;
}

/// reaches[i][j]: step i has finished before j starts, by queues and `after`. A plain transitive closure.
inline std::vector<std::vector<char>> happens_before(const LooseSteps& steps) {
  std::vector<std::vector<char>> before(steps.size(), std::vector<char>(steps.size(), 0));
  std::array<int, kQueues> tail = no_steps();
  for (std::size_t j = 0; j < steps.size(); ++j) {
    std::vector<StepId> direct = steps[j].after;
    int& last = tail[static_cast<std::size_t>(queue_of(steps[j].step))];
    direct.push_back(last);
    last = static_cast<int>(j);
    for (const StepId d : direct) {
      if (d < 0) continue;
      before[static_cast<std::size_t>(d)][j] = 1;
      for (std::size_t i = 0; i < j; ++i) before[i][j] = static_cast<char>(before[i][j] | before[i][static_cast<std::size_t>(d)]);
    }
  }
  return before;
}

/// One attend per KV head instead of one for all: a valid plan in which head ranges mean something.
inline void split_by_kv_head(Program& program) {
  LooseSteps split;
  std::vector<StepId> last_part;
  for (const LooseStep& s : loosen(program)) {
    const std::int64_t parts = is_attend(s) ? s.accesses[attend_operand::k].view.heads : 1;
    for (std::int64_t g = 0; g < parts; ++g) {
      LooseStep part = s;
      // The queue orders the parts behind the first, and waiting for the last is waiting for all.
      if (g > 0) part.after.clear();
      for (StepId& id : part.after) id = last_part[static_cast<std::size_t>(id)];
      for (Access& a : part.accesses) {
        if (parts > 1) a.view.heads /= parts, a.view.head0 += g * a.view.heads;
      }
      split.push_back(part);
    }
    last_part.push_back(static_cast<StepId>(split.size()) - 1);
  }
  tighten(program, split);
}

}  // namespace periplus::plan::test
