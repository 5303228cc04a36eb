#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "parallel/plan/failure.h"
#include "parallel/plan/ops.h"
#include "parallel/plan/plan.h"
#include "parallel/units.h"

/// The ranks that verify_states.cpp plays a plan on: what their slots hold, as symbols, and the messages between them.
namespace periplus::plan::play {

using kernels::Transition;
using kernels::UnitFold;
using kernels::UnitRun;

/// What one head of one row of a slot holds.
struct Symbol {
  enum class Kind : std::uint8_t { nothing, element, transition, added, state };
  Kind kind = Kind::nothing;
  bool down = false;      ///< Of a scan down the units; transitions are those of either direction.
  bool gradient = false;  ///< Made of q and dout, not of k and v.
  bool decayed = false;   ///< By the first row of the unit that it came to.
  std::int32_t head = -1;
  std::int64_t begin = 0, end = 0;  ///< Units: its own, or those that were folded. None: zero, of any head and pass.
};
using Symbols = std::vector<Symbol>;

}  // namespace periplus::plan::play

/// Symbols are arguments of failures: their texts are made only for those.
template <>
struct fmt::formatter<periplus::plan::play::Symbol> {
  using Symbol = periplus::plan::play::Symbol;
  static constexpr auto parse(fmt::format_parse_context& context) { return context.begin(); }
  static auto format(const Symbol& cell, fmt::format_context& context) {
    if (cell.kind == Symbol::Kind::nothing) return fmt::format_to(context.out(), "nothing");
    if (cell.kind == Symbol::Kind::state && cell.begin == cell.end) return fmt::format_to(context.out(), "the zero state");
    constexpr std::array<std::string_view, 5> names{"", "element", "transition", "addition", "state"};
    return fmt::format_to(context.out(), "the {}{}{} of units {}:{} of head {}", cell.down ? "falling " : "",
                          cell.gradient ? "gradient's " : "", names[static_cast<std::size_t>(cell.kind)], cell.begin, cell.end, cell.head);
  }
};

namespace periplus::plan::play {

inline constexpr std::array<std::string_view, 8> kTokenInputs{"q", "k", "v", "log_decay", "beta", "dout", "out", "normaliser"};
inline constexpr std::array<std::string_view, 7> kTokenOutputs{"out", "dq", "dk", "dv", "dlog_decay", "dbeta", "normaliser"};
inline bool is_one_of(std::span<const std::string_view> names, std::string_view name) {
  return std::ranges::find(names, name) != names.end();
}

/// What a run and head of scratch for tokens holds: the operand that it stands for; of those that are the caller's tensors too, with the
/// column of the normaliser.
using Contents = std::vector<std::string_view>;

/// How far the results of a run and head have come.
enum Done : std::uint8_t { recurrence = 1, mirrored = 2, normalised = 4 };

/// One rank.
struct Played {
  std::vector<Symbols> slots;    ///< Row after row; empty for slots of tokens.
  std::vector<Contents> tokens;  ///< Of scratch for tokens: what each run and head holds.
  std::vector<UnitRun> runs;
  std::vector<UnitFold> incoming, outgoing;
  std::vector<std::uint8_t> done;  ///< By run and head: Done bits.
  std::size_t next = 0;
  bool sent = false;  ///< The messages of the exchange at hand.
};

class PlayedRanks {
 public:
  explicit PlayedRanks(const Plan& plan)
      : plan_(plan), claim_(plan.claim), units_(plan.claim.layout), ranks_(plan.programs.size()), mail_(ranks_.size() * ranks_.size()) {}

  std::string where() const {
    const Played& rank = ranks_[static_cast<std::size_t>(rank_)];
    return rank.next < program().steps.size() ? fmt::format("rank {} step {}: ", rank_, rank.next) : fmt::format("rank {}: ", rank_);
  }

 protected:
  const Program& program() const { return plan_.programs[static_cast<std::size_t>(rank_)]; }
  Played& self() { return ranks_[static_cast<std::size_t>(rank_)]; }

  // --- slots ---

  void bind() {
    const int rank = static_cast<int>(rank_);
    Played& to = self();
    to.runs = units_.runs_of(rank), to.incoming = units_.incoming_of(rank), to.outgoing = units_.outgoing_of(rank);
    to.done.assign(to.runs.size() * static_cast<std::size_t>(claim_.q_heads), 0);
    to.slots.resize(program().slots.size());
    to.tokens.resize(program().slots.size());
    for (std::size_t i = 0; i < program().slots.size(); ++i) {
      const Slot& slot = program().slots[i];
      const bool of_tokens = slot.role != Role::scratch &&
                             (slot.role == Role::input ? is_one_of(kTokenInputs, slot.name) : is_one_of(kTokenOutputs, slot.name));
      const bool of_following = claim_.bidirectional && slot.name == "following";
      const bool of_units = (slot.name == "incoming" || of_following) && slot.role == (claim_.backward ? Role::input : Role::saved);
      const bool of_transitions =
          claim_.keeps_transitions && slot.name == "transitions" && slot.role == (claim_.backward ? Role::input : Role::saved);
      require(of_tokens || of_units || of_transitions || slot.role == Role::scratch, "'{}' is no slot that the claim knows", slot.name);
      if (slot.role != Role::scratch) {
        std::int64_t rows = of_tokens ? claim_.layout.rows_of(rank) : std::ssize(to.incoming);
        if (of_transitions) rows = slot.rows == 0 ? 0 : units_.count();  // none where nothing is gathered
        require(slot.rows == rows && slot.heads == claim_.q_heads, "'{}' has {} rows and {} heads, the claim says {} and {}", slot.name,
                slot.rows, slot.heads, rows, claim_.q_heads);
      }
      if (of_tokens || slot.role == Role::scratch) continue;
      to.slots[i].resize(static_cast<std::size_t>(slot.rows * slot.heads));
      if (slot.role != Role::input) continue;
      for (std::int64_t row = 0; row < slot.rows; ++row) {
        for (std::int64_t head = 0; head < slot.heads; ++head) {
          at({static_cast<SlotId>(i), 0, slot.rows, 0, slot.heads}, row, head) =
              of_transitions ? transition_of(row, head)
              : of_following ? state_of(to.outgoing[static_cast<std::size_t>(row)], true, false, head)
                             : state_of(to.incoming[static_cast<std::size_t>(row)], false, false, head);
        }
      }
    }
  }

  static Symbol state_of(const UnitFold& fold, bool down, bool gradient, std::int64_t head) {
    return {Symbol::Kind::state, down, gradient, false, static_cast<std::int32_t>(head), fold.begin, fold.end};
  }

  static Symbol transition_of(std::int64_t unit, std::int64_t head) {
    return {Symbol::Kind::transition, false, false, false, static_cast<std::int32_t>(head), unit, unit + 1};
  }

  Symbol& at(const View& view, std::int64_t row, std::int64_t head) {
    Symbols& cells = self().slots[static_cast<std::size_t>(view.slot)];
    const Slot& slot = program().slot_of(view);
    const bool free = slot.role == Role::scratch && self().tokens[static_cast<std::size_t>(view.slot)].empty();
    if (cells.empty() && free) cells.resize(static_cast<std::size_t>(slot.rows * slot.heads));
    require(!cells.empty(), "'{}' holds tokens, not states", slot.name);
    return cells[static_cast<std::size_t>((view.row0 + row) * slot.heads + view.head0 + head)];
  }

  void require_state(const View& view, std::int64_t row, std::int64_t head, const Symbol& wanted) {
    const Symbol& held = at(view, row, head);
    // Zero is zero of any head, but for who decayed it.
    const bool zero = held.begin == held.end && wanted.begin == wanted.end && (!wanted.decayed || held.head == wanted.head);
    const bool same = held.down == wanted.down && held.gradient == wanted.gradient && held.head == wanted.head &&
                      held.begin == wanted.begin && held.end == wanted.end;
    require(held.kind == Symbol::Kind::state && held.decayed == wanted.decayed && (zero || same),
            "'{}' row {} head {} holds {} where {} is needed", program().slot_of(view).name, view.row0 + row, view.head0 + head, held,
            wanted);
  }

  // --- messages ---

  /// Appends all of a view, which must be defined.
  void read(const View& view, Symbols& to) {
    for (std::int64_t row = 0; row < view.rows; ++row) {
      for (std::int64_t head = 0; head < view.heads; ++head) {
        to.push_back(at(view, row, head));
        require(to.back().kind != Symbol::Kind::nothing, "reads row {} of '{}', which was never written", view.row0 + row,
                program().slot_of(view).name);
      }
    }
  }

  void write(const View& view, std::span<const Symbol> cells) {
    for (std::size_t i = 0; i < cells.size(); ++i) {
      at(view, static_cast<std::int64_t>(i) / view.heads, static_cast<std::int64_t>(i) % view.heads) = cells[i];
    }
  }

  struct Letter {
    std::size_t first, count;  ///< In posted_.
    std::size_t next = 0;      ///< Of the same box, in letters_.
  };
  /// Letters on their way from one rank to another, chained in the order they were posted in.
  struct Box {
    std::size_t first = 0, last = 0, waiting = 0;
  };
  Box& box(std::int64_t from, std::int64_t to) {
    return mail_[static_cast<std::size_t>(from) * ranks_.size() + static_cast<std::size_t>(to)];
  }

  void post(std::span<const Message> sends) {
    const Message* before = nullptr;
    for (const Message& m : sends) {
      Letter letter{posted_.size(), 0};
      // What goes to all ranks is read once.
      if (before != nullptr && before->view == m.view) {
        letter = letters_.back();
      } else {
        read(m.view, posted_);
        letter.count = posted_.size() - letter.first;
      }
      Box& to = box(rank_, m.peer);
      std::size_t& place = to.waiting++ == 0 ? to.first : letters_[to.last].next;
      place = to.last = letters_.size();
      letters_.push_back(letter);
      before = &m;
    }
  }

  /// False while letters are missing.
  bool play_exchange(const Step& step) {
    if (!std::exchange(self().sent, true)) post(program().sends_of(step));
    wanted_.assign(ranks_.size(), 0);
    for (const Message& m : program().receives_of(step)) {
      if (++wanted_[static_cast<std::size_t>(m.peer)] > box(m.peer, rank_).waiting) return false;
    }
    for (const Message& m : program().receives_of(step)) {
      Box& from = box(m.peer, rank_);
      const Letter& letter = letters_[from.first];
      from.first = letter.next, --from.waiting;
      write(m.view, std::span<const Symbol>(posted_).subspan(letter.first, letter.count));
    }
    self().sent = false;
    return true;
  }

  // --- operands of tokens: the caller's, known by name, or scratch, known by what was put there ---

  struct Named {
    std::size_t operand;
    std::string_view name;
  };

  bool in_scratch(std::string_view name) const {
    constexpr std::array<std::string_view, 4> extended{"v", "out", "dout", "dv"};
    return name.starts_with("mirrored") || (claim_.normalises && is_one_of(extended, name));
  }

  void require_place(const View& base, const View& view, std::string_view name) const {
    require(view.row0 == base.row0 && view.head0 == base.head0, "{} begins at row {} head {} where the step begins at {} and {}", name,
            view.row0, view.head0, base.row0, base.head0);
  }
  void require_named(std::span<const Access> a, std::size_t operand, std::string_view name) const {
    const View& view = a[operand].view;
    require(program().slot_of(view).name == name, "'{}' stands for {}", program().slot_of(view).name, name);
    require(program().slot_of(view).role != Role::scratch, "{} is scratch", name);
    require_place(a[0].view, view, name);
  }

  /// fn(index of the run and head among those of the rank) for all of a step.
  template <class Fn>
  void for_each_item(const Step& step, const View& base, const Fn& fn) const {
    for (const UnitRun& run : program().runs_of(step)) {
      const std::size_t index = index_of(base, run);
      for (std::int64_t head = 0; head < base.heads; ++head) {
        fn(index * static_cast<std::size_t>(claim_.q_heads) + static_cast<std::size_t>(base.head0 + head));
      }
    }
  }
  Contents& contents(const View& base, const View& view, std::string_view name) {
    const Slot& slot = program().slot_of(view);
    const auto id = static_cast<std::size_t>(view.slot);
    require(slot.role == Role::scratch && self().slots[id].empty() && slot.rows == claim_.layout.rows_of(static_cast<int>(rank_)) &&
                slot.heads == claim_.q_heads,
            "'{}' is no scratch for {} of all rows and heads", slot.name, name);
    require_place(base, view, name);
    Contents& all = self().tokens[id];
    all.resize(self().done.size());
    return all;
  }
  void hold(const Step& step, const View& base, const View& view, std::string_view name) {
    Contents& all = contents(base, view, name);
    for_each_item(step, base, [&](std::size_t item) { all[item] = name; });
  }
  void require_held(const Step& step, const View& base, const View& view, std::string_view name) {
    const Contents& all = contents(base, view, name);
    for_each_item(step, base, [&](std::size_t item) {
      require(all[item] == name, "'{}' holds {} where {} is needed", program().slot_of(view).name,
              all[item].empty() ? "nothing" : all[item], name);
    });
  }

  void require_transition(const Step& step) const {
    require(step.transition == claim_.transition, "the transition of its elements is not the claim's");
  }
  void require_operand(const Step& step, std::span<const Access> a, const Named& it) {
    in_scratch(it.name) ? require_held(step, a[0].view, a[it.operand].view, it.name) : require_named(a, it.operand, it.name);
  }
  void require_inputs(const Step& step, std::span<const Access> a, std::initializer_list<Named> inputs, std::size_t log_decay,
                      std::size_t beta, std::string_view decay = "log_decay") {
    require_transition(step);
    for (const Named& it : inputs) require_operand(step, a, it);
    require(a[log_decay].view.present() == claim_.decay, "decay takes part, but is not claimed, or the other way round");
    require(a[beta].view.present() == (claim_.transition == Transition::dense),
            "the delta rule takes part, but is not claimed, or the other way round");
    if (claim_.decay) require_operand(step, a, {log_decay, decay});
    if (a[beta].view.present()) require_operand(step, a, {beta, "beta"});
  }
  void put_results(const Step& step, std::span<const Access> a, std::initializer_list<Named> results) {
    for (const Named& it : results) {
      if (!a[it.operand].view.present()) continue;
      in_scratch(it.name) ? hold(step, a[0].view, a[it.operand].view, it.name) : require_named(a, it.operand, it.name);
    }
  }

  bool begins_unit(std::size_t run) const {
    const std::vector<UnitRun>& runs = ranks_[static_cast<std::size_t>(rank_)].runs;
    return run == 0 || runs[run - 1].unit != runs[run].unit;
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

  const Plan& plan_;
  const Claim& claim_;
  Units units_;
  std::vector<Played> ranks_;
  std::vector<Box> mail_;  ///< By sender and receiver.
  std::vector<Letter> letters_;
  Symbols posted_;  ///< Of all letters.
  std::vector<std::size_t> wanted_;
  std::optional<double> scale_;
  std::int64_t rank_ = 0;
};

}  // namespace periplus::plan::play
