#include "parallel/plan/verify_states.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "parallel/plan/ops.h"
#include "parallel/units.h"
#include "runtime/error.h"

namespace periplus::plan {
namespace {

using kernels::Transition;
using kernels::UnitFold;
using kernels::UnitRun;

struct Failure {
  std::string what;
};

template <class... Args>
void require(bool holds, fmt::format_string<Args...> what, Args&&... args) {
  if (!holds) throw Failure{fmt::format(what, std::forward<Args>(args)...)};
}

/// What one head of one row of a slot holds.
struct Cell {
  enum class Kind : std::uint8_t { nothing, element, transition, added, state };
  Kind kind = Kind::nothing;
  bool backward = false;  ///< N of the gradients' scan, not M. Transitions are those of either.
  std::int32_t head = -1;
  std::int64_t begin = 0, end = 0;  ///< Units: its own, or those that were folded. None: zero, of any head and pass.
};
using Cells = std::vector<Cell>;

std::string text_of(const Cell& cell) {
  if (cell.kind == Cell::Kind::nothing) return "nothing";
  if (cell.kind == Cell::Kind::state && cell.begin == cell.end) return "the zero state";
  constexpr std::array<std::string_view, 5> names{"", "element", "transition", "addition", "state"};
  return fmt::format("the {}{} of units {}:{} of head {}", cell.backward ? "gradient's " : "", names[static_cast<std::size_t>(cell.kind)],
                     cell.begin, cell.end, cell.head);
}

constexpr std::array<std::string_view, 6> kTokenInputs{"q", "k", "v", "log_decay", "beta", "dout"};
constexpr std::array<std::string_view, 6> kTokenOutputs{"out", "dq", "dk", "dv", "dlog_decay", "dbeta"};
bool is_one_of(std::span<const std::string_view> names, std::string_view name) { return std::ranges::find(names, name) != names.end(); }

/// One rank.
struct Played {
  std::vector<Cells> slots;  ///< Row after row; empty for slots of tokens.
  std::vector<UnitRun> runs;
  std::vector<UnitFold> incoming, outgoing;
  std::vector<bool> computed;  ///< By run and head.
  std::size_t next = 0;
  bool sent = false;  ///< The messages of the exchange at hand.
};

class StatePlayer {
 public:
  explicit StatePlayer(const Plan& plan)
      : plan_(plan), claim_(plan.claim), units_(plan.claim.layout), ranks_(plan.programs.size()), mail_(ranks_.size() * ranks_.size()) {}

  void play() {
    for (rank_ = 0; rank_ < std::ssize(ranks_); ++rank_) bind();
    // The messages of a pair are met in the order in which they were sent, because phases rise on both ends.
    for (bool moved = true; moved;) {
      moved = false;
      for (rank_ = 0; rank_ < std::ssize(ranks_); ++rank_) {
        while (self().next < program().steps.size() && play_step(program().steps[self().next])) moved = true, ++self().next;
      }
    }
    for (rank_ = 0; rank_ < std::ssize(ranks_); ++rank_) check_results();
  }

  std::string where() const {
    const Played& rank = ranks_[static_cast<std::size_t>(rank_)];
    return rank.next < program().steps.size() ? fmt::format("rank {} step {}: ", rank_, rank.next) : fmt::format("rank {}: ", rank_);
  }

 private:
  const Program& program() const { return plan_.programs[static_cast<std::size_t>(rank_)]; }
  Played& self() { return ranks_[static_cast<std::size_t>(rank_)]; }

  // --- slots ---

  void bind() {
    const int rank = static_cast<int>(rank_);
    Played& to = self();
    to.runs = units_.runs_of(rank), to.incoming = units_.incoming_of(rank), to.outgoing = units_.outgoing_of(rank);
    to.computed.assign(to.runs.size() * static_cast<std::size_t>(claim_.q_heads), false);
    to.slots.resize(program().slots.size());
    for (std::size_t i = 0; i < program().slots.size(); ++i) {
      const Slot& slot = program().slots[i];
      const bool of_tokens = is_one_of(slot.role == Role::input ? kTokenInputs : kTokenOutputs, slot.name) && slot.role != Role::scratch;
      const bool of_units = slot.name == "incoming" && slot.role == (claim_.backward ? Role::input : Role::saved);
      const bool of_transitions =
          claim_.keeps_transitions && slot.name == "transitions" && slot.role == (claim_.backward ? Role::input : Role::saved);
      require(of_tokens || of_units || of_transitions || slot.role == Role::scratch, "'{}' is no slot that the claim knows", slot.name);
      if (slot.role != Role::scratch) {
        std::int64_t rows = of_tokens ? claim_.layout.rows_of(rank) : std::ssize(to.incoming);
        if (of_transitions) rows = slot.rows == 0 ? 0 : units_.count();  // none where nothing is gathered
        require(slot.rows == rows && slot.heads == claim_.q_heads, "'{}' has {} rows and {} heads, the claim says {} and {}", slot.name,
                slot.rows, slot.heads, rows, claim_.q_heads);
      }
      if (of_tokens) continue;
      to.slots[i].resize(static_cast<std::size_t>(slot.rows * slot.heads));
      if (slot.role != Role::input) continue;
      for (std::int64_t row = 0; row < slot.rows; ++row) {
        for (std::int64_t head = 0; head < slot.heads; ++head) {
          at({static_cast<SlotId>(i), 0, slot.rows, 0, slot.heads}, row, head) =
              of_transitions ? transition_of(row, head) : state_of(to.incoming[static_cast<std::size_t>(row)], false, head);
        }
      }
    }
  }

  static Cell state_of(const UnitFold& fold, bool backward, std::int64_t head) {
    return {Cell::Kind::state, backward, static_cast<std::int32_t>(head), fold.begin, fold.end};
  }

  static Cell transition_of(std::int64_t unit, std::int64_t head) {
    return {Cell::Kind::transition, false, static_cast<std::int32_t>(head), unit, unit + 1};
  }

  Cell& at(const View& view, std::int64_t row, std::int64_t head) {
    Cells& cells = self().slots[static_cast<std::size_t>(view.slot)];
    const Slot& slot = program().slot_of(view);
    require(!cells.empty(), "'{}' holds tokens, not states", slot.name);
    return cells[static_cast<std::size_t>((view.row0 + row) * slot.heads + view.head0 + head)];
  }

  void require_state(const View& view, std::int64_t row, std::int64_t head, const Cell& wanted) {
    const Cell& held = at(view, row, head);
    const bool zero = held.begin == held.end && wanted.begin == wanted.end;
    const bool same = held.backward == wanted.backward && held.head == wanted.head && held.begin == wanted.begin && held.end == wanted.end;
    require(held.kind == Cell::Kind::state && (zero || same), "'{}' row {} head {} holds {} where {} is needed",
            program().slot_of(view).name, view.row0 + row, view.head0 + head, text_of(held), text_of(wanted));
  }

  // --- messages ---

  /// All of a view, which must be defined.
  Cells read(const View& view) {
    Cells cells;
    for (std::int64_t row = 0; row < view.rows; ++row) {
      for (std::int64_t head = 0; head < view.heads; ++head) {
        cells.push_back(at(view, row, head));
        require(cells.back().kind != Cell::Kind::nothing, "reads row {} of '{}', which was never written", view.row0 + row,
                program().slot_of(view).name);
      }
    }
    return cells;
  }

  void write(const View& view, const Cells& cells) {
    for (std::size_t i = 0; i < cells.size(); ++i) {
      at(view, static_cast<std::int64_t>(i) / view.heads, static_cast<std::int64_t>(i) % view.heads) = cells[i];
    }
  }

  struct Letter {
    Cells cells;
    std::int64_t heads, width;
  };
  struct Box {
    std::vector<Letter> letters;
    std::size_t taken = 0;
  };
  Box& box(std::int64_t from, std::int64_t to) {
    return mail_[static_cast<std::size_t>(from) * ranks_.size() + static_cast<std::size_t>(to)];
  }

  /// False while letters are missing.
  bool play_exchange(const Step& step) {
    if (!std::exchange(self().sent, true)) {
      for (const Message& m : program().sends_of(step))
        box(rank_, m.peer).letters.push_back({read(m.view), m.view.heads, program().slot_of(m.view).width});
    }
    std::vector<std::size_t> wanted(ranks_.size(), 0);
    for (const Message& m : program().receives_of(step)) {
      const Box& from = box(m.peer, rank_);
      if (from.taken + ++wanted[static_cast<std::size_t>(m.peer)] > from.letters.size()) return false;
    }
    for (const Message& m : program().receives_of(step)) {
      Box& from = box(m.peer, rank_);
      const Letter letter = std::exchange(from.letters[from.taken++], {});
      require(letter.heads == m.view.heads && letter.width == program().slot_of(m.view).width,
              "receives rows of {} heads and width {} into '{}' of {} and {}", letter.heads, letter.width, program().slot_of(m.view).name,
              m.view.heads, program().slot_of(m.view).width);
      write(m.view, letter.cells);
    }
    self().sent = false;
    return true;
  }

  // --- steps ---

  bool play_step(const Step& step) {
    const auto a = program().accesses_of(step);
    switch (step.op) {
      case Op::exchange:
        return play_exchange(step);
      case Op::copy:
        play_copy(step, a);
        break;
      case Op::unit_scan:
        play_scan(step, a);
        break;
      case Op::unit_states: {
        using namespace unit_states_operand;
        require_inputs(step, a, {k, v}, log_decay, beta);
        play_states(step, a[0].view, a[elements].view, false);
        break;
      }
      case Op::unit_states_backward: {
        using namespace unit_states_backward_operand;
        require_scale(step);
        require_inputs(step, a, {q, k, dout}, log_decay, beta);
        play_states(step, a[0].view, a[elements].view, true);
        break;
      }
      case Op::unit_apply: {
        using namespace unit_apply_operand;
        require_scale(step);
        require_inputs(step, a, {q, k, v}, log_decay, beta);
        require_outputs(step, a, {out});
        play_apply(step, a[q].view, a[incoming].view, nullptr);
        break;
      }
      case Op::unit_apply_backward: {
        using namespace unit_apply_backward_operand;
        require_scale(step);
        require_inputs(step, a, {q, k, v, dout}, log_decay, beta);
        require_outputs(step, a, {dq, dk, dv, dlog_decay, dbeta});
        play_apply(step, a[q].view, a[incoming].view, &a[doutgoing].view);
        break;
      }
      case Op::split_elements:
        play_split(a);
        break;
      case Op::join_elements:
        play_join(a);
        break;
      default:
        require(false, "{} is no step of linear attention", info(step.op).name);
    }
    return true;
  }

  void play_copy(const Step& step, std::span<const Access> a) {
    const View &from = a[transfer_operand::source].view, &to = a[transfer_operand::destination].view;
    require(step.moves.count == 0, "copies states into another order");
    require(program().slot_of(from).dtype == program().slot_of(to).dtype, "'{}' is of another type than '{}'", program().slot_of(to).name,
            program().slot_of(from).name);
    write(to, read(from));
  }

  void play_split(std::span<const Access> a) {
    using namespace split_elements_operand;
    const View& from = a[elements].view;
    for (std::int64_t row = 0; row < from.rows; ++row) {
      for (std::int64_t head = 0; head < from.heads; ++head) {
        const Cell whole = at(from, row, head);
        require(whole.kind == Cell::Kind::element, "splits {}", text_of(whole));
        Cell added_part = whole;
        added_part.kind = Cell::Kind::added;
        if (a[transitions].view.present()) at(a[transitions].view, row, head) = transition_of(whole.begin, whole.head);
        if (a[added].view.present()) at(a[added].view, row, head) = added_part;
      }
    }
  }

  void play_join(std::span<const Access> a) {
    using namespace join_elements_operand;
    const View& to = a[elements].view;
    for (std::int64_t row = 0; row < to.rows; ++row) {
      for (std::int64_t head = 0; head < to.heads; ++head) {
        const Cell transition = at(a[transitions].view, row, head), part = at(a[added].view, row, head);
        const bool fit = transition.kind == Cell::Kind::transition && part.kind == Cell::Kind::added && transition.begin == part.begin &&
                         transition.head == part.head;
        require(fit, "joins {} and {}", text_of(transition), text_of(part));
        at(to, row, head) = part;
        at(to, row, head).kind = Cell::Kind::element;
      }
    }
  }

  void play_scan(const Step& step, std::span<const Access> a) {
    require_transition(step);
    const View &elements = a[unit_scan_operand::elements].view, &states = a[unit_scan_operand::states].view;
    for (const UnitFold& fold : program().folds_of(step)) {
      for (std::int64_t head = 0; head < states.heads; ++head) {
        Cell& state = at(states, fold.target, head);
        if (a[unit_scan_operand::states].mode == Mode::write) state = {Cell::Kind::state};
        require(state.kind == Cell::Kind::state, "folds into {}", text_of(state));
        for (std::int64_t i = 0; i < fold.end - fold.begin; ++i) {
          fold_in(at(elements, step.reverse ? fold.end - 1 - i : fold.begin + i, head), step.reverse, state);
        }
      }
    }
  }

  static void fold_in(const Cell& element, bool reverse, Cell& state) {
    require(element.kind == Cell::Kind::element && element.backward == reverse, "folds {} {}", text_of(element),
            reverse ? "down the units" : "up the units");
    if (state.begin == state.end) {
      state = element;
      state.kind = Cell::Kind::state;
      return;
    }
    const bool follows =
        state.backward == reverse && state.head == element.head && (reverse ? element.end == state.begin : element.begin == state.end);
    require(follows, "folds {} into {}", text_of(element), text_of(state));
    (reverse ? state.begin : state.end) = reverse ? element.begin : element.end;
  }

  void require_transition(const Step& step) const {
    require(step.transition == claim_.transition, "the transition of its elements is not the claim's");
  }
  void require_scale(const Step& step) {
    if (!scale_) scale_ = step.scale;
    require(*scale_ == step.scale, "scales q by {}, an earlier step by {}", step.scale, *scale_);
  }

  /// An operand of tokens is the slot of its name, with the rows and heads of the step.
  void require_in_place(const Step& step, std::span<const Access> a, std::size_t operand) const {
    const View &base = a[0].view, &view = a[operand].view;
    const std::string_view name = info(step.op).operands[operand].name;
    require(program().slot_of(view).name == name, "'{}' stands for {}", program().slot_of(view).name, name);
    require(program().slot_of(view).role != Role::scratch, "{} is scratch", name);
    require(view.row0 == base.row0 && view.head0 == base.head0, "{} begins at row {} head {} where {} begins at {} and {}", name, view.row0,
            view.head0, info(step.op).operands[0].name, base.row0, base.head0);
  }
  void require_inputs(const Step& step, std::span<const Access> a, std::initializer_list<std::size_t> operands, std::size_t log_decay,
                      std::size_t beta) const {
    require_transition(step);
    for (const std::size_t operand : operands) require_in_place(step, a, operand);
    require(a[log_decay].view.present() == claim_.decay, "decay takes part, but is not claimed, or the other way round");
    require(a[beta].view.present() == (claim_.transition == Transition::dense),
            "the delta rule takes part, but is not claimed, or the other way round");
    for (const std::size_t operand : {log_decay, beta}) {
      if (a[operand].view.present()) require_in_place(step, a, operand);
    }
  }
  void require_outputs(const Step& step, std::span<const Access> a, std::initializer_list<std::size_t> operands) const {
    for (const std::size_t operand : operands) {
      if (a[operand].view.present()) require_in_place(step, a, operand);
    }
  }

  /// The index among the rank's runs of one that a step has.
  std::size_t index_of(const View& base, const UnitRun& run) const {
    const std::vector<UnitRun>& runs = ranks_[static_cast<std::size_t>(rank_)].runs;
    const auto found = std::ranges::lower_bound(runs, base.row0 + run.row0, {}, &UnitRun::row0);
    const bool known = found != runs.end() && found->row0 == base.row0 + run.row0 && found->rows == run.rows &&
                       found->enters == run.enters && found->leaves == run.leaves;
    require(known, "its run of rows {}+{} is no run of the layout", base.row0 + run.row0, run.rows);
    return static_cast<std::size_t>(found - runs.begin());
  }

  /// Each row of the elements is of one unit, and the run that makes it is there.
  void play_states(const Step& step, const View& base, const View& elements, bool backward) {
    struct Row {
      std::int64_t unit = -1;
      bool made = false;
    };
    std::vector<Row> rows(static_cast<std::size_t>(elements.rows));
    for (const UnitRun& run : program().runs_of(step)) {
      const std::int64_t unit = self().runs[index_of(base, run)].unit;
      Row& row = rows[static_cast<std::size_t>(run.unit)];
      require(row.unit < 0 || row.unit == unit, "element {} is of two units", run.unit);
      row.unit = unit;
      row.made |= backward ? run.enters : run.leaves;
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
      require(rows[i].unit >= 0, "element {} is of no unit", i);
      const auto unit = static_cast<std::size_t>(rows[i].unit);
      // No document enters: nobody asks for the gradient of a state.
      const bool idle = backward && self().incoming[unit].begin == self().incoming[unit].end;
      require(rows[i].made || idle, "the run that makes element {} is missing", i);
      const std::int64_t global = units_.of_rank(static_cast<int>(rank_))[unit];
      for (std::int64_t head = 0; head < elements.heads; ++head) {
        at(elements, static_cast<std::int64_t>(i), head) = {Cell::Kind::element, backward, static_cast<std::int32_t>(base.head0 + head),
                                                            global, global + 1};
      }
    }
  }

  void play_apply(const Step& step, const View& base, const View& incoming, const View* doutgoing) {
    require(claim_.backward == (doutgoing != nullptr), "{} is of the other pass", info(step.op).name);
    require(program().slot_of(incoming).name == "incoming" && incoming.head0 == base.head0, "incoming is not '{}' head {}",
            program().slot_of(incoming).name, incoming.head0);
    read(incoming);
    for (const UnitRun& run : program().runs_of(step)) {
      const std::size_t index = index_of(base, run);
      const auto unit = static_cast<std::size_t>(self().runs[index].unit);
      require(incoming.row0 + run.unit == self().runs[index].unit, "its run of rows {}+{} takes the states of unit {} instead of {}",
              base.row0 + run.row0, run.rows, incoming.row0 + run.unit, unit);
      for (std::int64_t head = 0; head < base.heads; ++head) {
        const std::int64_t own_head = base.head0 + head;
        if (run.enters) require_state(incoming, run.unit, head, state_of(self().incoming[unit], false, own_head));
        if (run.leaves && doutgoing) require_state(*doutgoing, run.unit, head, state_of(self().outgoing[unit], true, own_head));
        auto computed = self().computed[index * static_cast<std::size_t>(claim_.q_heads) + static_cast<std::size_t>(own_head)];
        require(!computed, "rows {}+{} of head {} are computed twice", self().runs[index].row0, run.rows, own_head);
        computed = true;
      }
    }
  }

  void check_results() {
    require(self().next == program().steps.size(), "waits for a message that never comes");
    const auto heads = static_cast<std::size_t>(claim_.q_heads);
    const auto missing = std::ranges::find(self().computed, false);
    if (missing != self().computed.end()) {
      const auto index = static_cast<std::size_t>(missing - self().computed.begin());
      require(false, "rows {}+{} of head {} are never computed", self().runs[index / heads].row0, self().runs[index / heads].rows,
              index % heads);
    }
    if (claim_.backward) return;
    const SlotId id = program().find_slot("incoming");
    const View saved{id, 0, std::ssize(self().incoming), 0, claim_.q_heads};
    for (std::int64_t row = 0; row < saved.rows; ++row) {
      for (std::int64_t head = 0; head < saved.heads; ++head) {
        require_state(saved, row, head, state_of(self().incoming[static_cast<std::size_t>(row)], false, head));
      }
    }
    if (claim_.keeps_transitions) check_transitions();
  }

  void check_transitions() {
    const SlotId id = program().find_slot("transitions");
    const View saved{id, 0, program().slots[static_cast<std::size_t>(id)].rows, 0, claim_.q_heads};
    for (std::int64_t unit = 0; unit < saved.rows; ++unit) {
      for (std::int64_t head = 0; head < saved.heads; ++head) {
        const Cell& held = at(saved, unit, head);
        require(held.kind == Cell::Kind::transition && held.begin == unit && held.head == head, "'transitions' row {} head {} holds {}",
                unit, head, text_of(held));
      }
    }
  }

  const Plan& plan_;
  const Claim& claim_;
  Units units_;
  std::vector<Played> ranks_;
  std::vector<Box> mail_;  ///< By sender and receiver.
  std::optional<double> scale_;
  std::int64_t rank_ = 0;
};

}  // namespace

std::string check_states(const Plan& plan) {
  StatePlayer player(plan);
  try {
    player.play();
  } catch (const Failure& failure) {
    return player.where() + failure.what;
  } catch (const InvalidArgument& missing_slot) {
    return player.where() + missing_slot.what();
  }
  return {};
}

}  // namespace periplus::plan
