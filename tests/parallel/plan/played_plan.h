#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "parallel/plan/ops.h"
#include "parallel/plan/plan.h"

// What the cells of a plan hold while it runs, cell by cell and in the plainest way: enough to say that a fault is none.
namespace periplus::plan::test {

/// Whether row `row` of the queries (or keys) of a step takes part in one of its pairs.
inline bool in_a_pair(std::span<const Band> bands, std::int64_t row, bool key) {
  return std::any_of(bands.begin(), bands.end(), [&](const Band& b) {
    if (key) return b.k0 <= row && row < b.k1 && std::max(b.q0, row - b.hi) <= std::min(b.q1 - 1, row - b.lo);
    return b.q0 <= row && row < b.q1 && std::max(b.k0, row + b.lo) <= std::min(b.k1 - 1, row + b.hi);
  });
}

/// Operands of attend and attend_backward whose rows are keys.
inline bool has_keys(std::size_t operand) {
  return operand == attend_operand::k || operand == attend_operand::v || operand > attend_backward_operand::dq;
}

class PlayedPlan {
 public:
  explicit PlayedPlan(const Plan& plan) : plan_(plan) {
    for (const Program& p : plan.programs) {
      cells_.emplace_back();
      for (const Slot& s : p.slots) cells_.back().emplace_back(static_cast<std::size_t>(s.rows * s.heads));
    }
  }

  /// Whether anybody works with what a message brings. A block may travel on past ranks that have no use for it.
  bool message_is_used(std::size_t rank, std::size_t step, std::size_t index) {
    play({.wrong_message = [&](std::size_t r, std::size_t s, std::size_t m) { return r == rank && s == step && m == index; }});
    return used_;
  }

  /// Whether anybody works with what a compute step writes.
  bool result_is_used(std::size_t rank, std::size_t step) {
    play({.after = [&](std::size_t r, std::size_t s) {
      if (r != rank || s != step) return;
      const Program& p = plan_.programs[r];
      for (const Access& a : p.accesses_of(p.steps[s])) {
        if (a.mode == Mode::write) for_cells(r, a.view, [](Cell& cell, std::int64_t, std::int64_t) { cell.wrong = true; });
      }
    }});
    return used_;
  }

  /// Whether a view holds sums that nothing has been added to, just before a step. Undefined cells are not such sums.
  bool holds_empty_sums(std::size_t rank, std::size_t step, const View& view) {
    bool empty = true;
    play({.before = [&](std::size_t r, std::size_t s) {
      if (r != rank || s != step) return;
      for_cells(rank, view, [&](Cell& cell, std::int64_t, std::int64_t) { empty = empty && cell.empty; });
    }});
    return empty;
  }

 private:
  struct Cell {
    bool empty = false, wrong = false;
  };
  struct Hooks {
    std::function<void(std::size_t rank, std::size_t step)> before = {}, after = {};
    std::function<bool(std::size_t rank, std::size_t step, std::size_t send)> wrong_message = {};
  };

  template <class Fn>
  void for_cells(std::size_t rank, const View& view, Fn&& fn) {
    if (!view.present()) return;
    const auto slot = static_cast<std::size_t>(view.slot);
    for (std::int64_t row = 0; row < view.rows; ++row) {
      for (std::int64_t head = 0; head < view.heads; ++head) {
        fn(cells_[rank][slot][static_cast<std::size_t>((view.row0 + row) * plan_.programs[rank].slots[slot].heads + view.head0 + head)],
           row, head);
      }
    }
  }
  std::vector<Cell> read(std::size_t rank, const View& view) {
    std::vector<Cell> cells;
    for_cells(rank, view, [&](Cell& cell, std::int64_t, std::int64_t) { cells.push_back(cell); });
    return cells;
  }
  void write(std::size_t rank, const View& view, const std::vector<Cell>& cells) {
    auto next = cells.begin();
    for_cells(rank, view, [&](Cell& cell, std::int64_t, std::int64_t) { cell = *next++; });
  }

  /// Phase by phase, which every valid plan allows.
  void play(const Hooks& hooks) {
    std::vector<std::size_t> next(plan_.programs.size(), 0);
    const auto compute = [&](std::size_t r) {
      const std::vector<Step>& steps = plan_.programs[r].steps;
      for (; next[r] < steps.size() && steps[next[r]].op != Op::exchange; ++next[r]) {
        if (hooks.before) hooks.before(r, next[r]);
        play_compute(r, steps[next[r]]);
        if (hooks.after) hooks.after(r, next[r]);
      }
    };
    for (int phase = 0; phase <= last_phase(); ++phase) {
      std::vector<std::pair<std::size_t, const Step*>> exchanges;
      std::map<std::tuple<std::size_t, std::size_t, std::size_t>, std::vector<Cell>> moving;  // from, to, which of the pair
      for (std::size_t r = 0; r < next.size(); ++r) {
        compute(r);
        const std::vector<Step>& steps = plan_.programs[r].steps;
        if (next[r] == steps.size() || steps[next[r]].phase != phase) continue;
        send(r, steps[next[r]], moving, [&](std::size_t m) { return hooks.wrong_message && hooks.wrong_message(r, next[r], m); });
        exchanges.emplace_back(r, &steps[next[r]++]);
      }
      for (const auto& [r, step] : exchanges) receive(r, *step, moving);
    }
    for (std::size_t r = 0; r < next.size(); ++r) {
      compute(r);
      for (std::size_t slot = 0; slot < cells_[r].size(); ++slot) {
        if (plan_.programs[r].slots[slot].role == Role::scratch) continue;
        for (const Cell& cell : cells_[r][slot]) used_ = used_ || cell.wrong;
      }
    }
  }

  template <class Moving, class IsWrong>
  void send(std::size_t r, const Step& step, Moving& moving, IsWrong&& is_wrong) {
    std::map<std::size_t, std::size_t> count;
    std::size_t index = 0;
    for (const Message& m : plan_.programs[r].sends_of(step)) {
      std::vector<Cell> cells = read(r, m.view);
      if (is_wrong(index++)) {
        for (Cell& cell : cells) cell.wrong = true;
      }
      const auto to = static_cast<std::size_t>(m.peer);
      moving[{r, to, count[to]++}] = std::move(cells);
    }
  }
  template <class Moving>
  void receive(std::size_t r, const Step& step, Moving& moving) {
    std::map<std::size_t, std::size_t> count;
    for (const Message& m : plan_.programs[r].receives_of(step)) {
      const auto from = static_cast<std::size_t>(m.peer);
      write(r, m.view, moving.at({from, r, count[from]++}));
    }
  }

  void play_compute(std::size_t r, const Step& s) {
    const auto accesses = plan_.programs[r].accesses_of(s);
    switch (s.op) {
      case Op::attend:
      case Op::attend_backward:
        return play_attend(r, s);
      case Op::copy:
        return play_copy(r, s);
      case Op::add:
        return play_sum(r, accesses[transfer_operand::source].view, accesses[transfer_operand::destination].view);
      case Op::merge:
        play_sum(r, accesses[merge_operand::part_out].view, accesses[merge_operand::out].view);
        return play_sum(r, accesses[merge_operand::part_lse].view, accesses[merge_operand::lse].view);
      case Op::unit_scan:
        return play_scan(r, s);
      default:
        for (const Access& a : accesses) {
          for_cells(r, a.view, [&](Cell& cell, std::int64_t, std::int64_t) {
            if (a.mode != Mode::write) used_ = used_ || cell.wrong;
            if (a.mode == Mode::write) cell = {};
          });
        }
    }
  }
  void play_copy(std::size_t r, const Step& s) {
    const auto accesses = plan_.programs[r].accesses_of(s);
    const View &source = accesses[transfer_operand::source].view, &destination = accesses[transfer_operand::destination].view;
    if (s.moves.count == 0) return write(r, destination, read(r, source));
    for (const RowMove& move : without_strides(plan_.programs[r].moves_of(s)))
      write(r, destination.rows_at(move.to, move.rows), read(r, source.rows_at(move.from, move.rows)));
  }
  void play_sum(std::size_t r, const View& part, const View& sum) {
    const std::vector<Cell> parts = read(r, part);
    auto next = parts.begin();
    for_cells(r, sum, [&](Cell& cell, std::int64_t, std::int64_t) {
      used_ = used_ || next->wrong || cell.wrong;
      cell.empty = cell.empty && next->empty;
      ++next;
    });
  }
  /// Elements that no fold mentions are not looked at.
  void play_scan(std::size_t r, const Step& s) {
    const auto accesses = plan_.programs[r].accesses_of(s);
    for (const kernels::UnitFold& fold : plan_.programs[r].folds_of(s)) {
      const View elements = accesses[unit_scan_operand::elements].view.rows_at(fold.begin, fold.end - fold.begin);
      for_cells(r, elements, [&](Cell& cell, std::int64_t, std::int64_t) { used_ = used_ || cell.wrong; });
    }
    for_cells(r, accesses[unit_scan_operand::states].view, [&](Cell& cell, std::int64_t, std::int64_t) {
      if (accesses[unit_scan_operand::states].mode == Mode::add) used_ = used_ || cell.wrong;
      cell = {};
    });
  }
  void play_attend(std::size_t r, const Step& s) {
    const auto accesses = plan_.programs[r].accesses_of(s);
    for (std::size_t operand = 0; operand < accesses.size(); ++operand) {
      const Access& a = accesses[operand];
      for_cells(r, a.view, [&](Cell& cell, std::int64_t row, std::int64_t) {
        const bool contributes = in_a_pair(plan_.programs[r].bands_of(s), row, has_keys(operand));
        if (a.mode != Mode::write) used_ = used_ || (cell.wrong && contributes);
        if (a.mode == Mode::write) cell = {.empty = !contributes};
        if (a.mode == Mode::add) cell.empty = cell.empty && !contributes;
      });
    }
  }
  int last_phase() const {
    int last = -1;
    for (const Program& p : plan_.programs) {
      for (const Step& s : p.steps) last = std::max(last, s.phase);
    }
    return last;
  }

  const Plan& plan_;
  std::vector<std::vector<std::vector<Cell>>> cells_;  // by rank, slot, row and head
  bool used_ = false;
};

}  // namespace periplus::plan::test
