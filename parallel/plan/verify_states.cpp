#include "parallel/plan/verify_states.h"

#include <algorithm>
#include <initializer_list>

#include "parallel/plan/verify_states_ranks.h"
#include "runtime/error.h"

namespace periplus::plan {
namespace {

using namespace play;

class StatePlayer : PlayedRanks {
 public:
  using PlayedRanks::PlayedRanks;
  using PlayedRanks::where;

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

 private:
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
        const bool mirrored = is_mirrored(step, a);
        require_inputs(step, a, {{k, mirrored ? "q" : "k"}, {v, mirrored ? "dout" : "v"}}, log_decay, beta);
        play_states(step, a[0].view, a[elements].view, false, mirrored);
        break;
      }
      case Op::unit_states_backward: {
        using namespace unit_states_backward_operand;
        const bool mirrored = is_mirrored(step, a);
        mirrored ? require_unscaled(step) : require_scale(step);
        require_inputs(step, a, {{q, mirrored ? "k" : "q"}, {k, mirrored ? "q" : "k"}, {dout, mirrored ? "v" : "dout"}}, log_decay, beta);
        play_states(step, a[0].view, a[elements].view, true, !mirrored);
        break;
      }
      case Op::unit_apply: {
        using namespace unit_apply_operand;
        if (step.mirrored) {
          play_mirrored(step, a, nullptr, {{q, "q"}, {k, "k"}, {v, "v"}}, {{out, "mirrored out"}});
          break;
        }
        require_scale(step);
        require_inputs(step, a, {{q, "q"}, {k, "k"}, {v, "v"}}, log_decay, beta);
        play_apply(step, a[q].view, a[incoming].view, nullptr);
        put_results(step, a, {{out, "out"}});
        break;
      }
      case Op::unit_apply_backward: {
        using namespace unit_apply_backward_operand;
        const std::initializer_list<Named> inputs{{q, "q"}, {k, "k"}, {v, "v"}, {dout, "dout"}};
        if (step.mirrored) {
          play_mirrored(step, a, &a[doutgoing].view, inputs,
                        {{dq, "mirrored dq"}, {dk, "mirrored dk"}, {dv, "mirrored dv"}, {dlog_decay, "mirrored dlog_decay"}});
          break;
        }
        require_scale(step);
        require_inputs(step, a, inputs, log_decay, beta);
        play_apply(step, a[q].view, a[incoming].view, &a[doutgoing].view);
        put_results(step, a, {{dq, "dq"}, {dk, "dk"}, {dv, "dv"}, {dlog_decay, "dlog_decay"}, {dbeta, "dbeta"}});
        break;
      }
      case Op::mirror_decay: {
        using namespace mirror_decay_operand;
        require_plain(step);
        require(claim_.bidirectional, "a mirrored pass is not claimed");
        require_named(step, a, log_decay, "log_decay");
        hold(step, a[0].view, a[mirror_decay_operand::mirrored].view, "mirrored log_decay");
        break;
      }
      case Op::decay_states:
        require_plain(step);
        play_decay(step, a);
        break;
      case Op::add_mirrored: {
        using namespace add_mirrored_operand;
        play_sum(step, a, {{q, "q"}, {k, "k"}, {v, "v"}, {add_mirrored_operand::mirrored, "mirrored out"}, {out, "out"}});
        break;
      }
      case Op::add_mirrored_backward: {
        using namespace add_mirrored_backward_operand;
        play_sum(step, a,
                 {{q, "q"},
                  {k, "k"},
                  {v, "v"},
                  {dout, "dout"},
                  {mirrored_dq, "mirrored dq"},
                  {mirrored_dk, "mirrored dk"},
                  {mirrored_dv, "mirrored dv"},
                  {mirrored_dlog_decay, "mirrored dlog_decay"},
                  {dq, "dq"},
                  {dk, "dk"},
                  {dv, "dv"},
                  {dlog_decay, "dlog_decay"}});
        break;
      }
      case Op::extend_values: {
        using namespace extension_operand;
        require_plain(step);
        require(claim_.normalises, "a normaliser is not claimed");
        require_named(step, a, from, "v");
        hold(step, a[0].view, a[to].view, "v");
        break;
      }
      case Op::cut_values: {
        using namespace extension_operand;
        require_plain(step);
        require_held(step, a[0].view, a[from].view, "dv");
        require_named(step, a, to, "dv");
        advance(step, a[0].view, Done::normalised);
        break;
      }
      case Op::normalise: {
        using namespace normalise_operand;
        require_plain(step);
        require_held(step, a[0].view, a[extended].view, "out");
        require_named(step, a, out, "out"), require_named(step, a, normaliser, "normaliser");
        advance(step, a[0].view, Done::normalised);
        break;
      }
      case Op::normalise_backward: {
        using namespace normalise_backward_operand;
        require_plain(step);
        require(claim_.normalises, "a normaliser is not claimed");
        require_named(step, a, dout, "dout"), require_named(step, a, out, "out"), require_named(step, a, normaliser, "normaliser");
        hold(step, a[0].view, a[extended].view, "dout");
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
    copied_.clear();
    read(from, copied_);
    write(to, copied_);
  }

  void play_split(std::span<const Access> a) {
    using namespace split_elements_operand;
    const View& from = a[elements].view;
    for (std::int64_t row = 0; row < from.rows; ++row) {
      for (std::int64_t head = 0; head < from.heads; ++head) {
        const Cell whole = at(from, row, head);
        require(whole.kind == Cell::Kind::element, "splits {}", whole);
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
        require(fit, "joins {} and {}", transition, part);
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
        require(state.kind == Cell::Kind::state, "folds into {}", state);
        for (std::int64_t i = 0; i < fold.end - fold.begin; ++i) {
          fold_in(at(elements, step.reverse ? fold.end - 1 - i : fold.begin + i, head), step.reverse, state);
        }
      }
    }
  }

  static void fold_in(const Cell& element, bool reverse, Cell& state) {
    require(element.kind == Cell::Kind::element && element.down == reverse, "folds {} {}", element,
            reverse ? "down the units" : "up the units");
    if (state.begin == state.end) {
      state = element;
      state.kind = Cell::Kind::state;
      return;
    }
    const bool follows = state.down == reverse && state.gradient == element.gradient && !state.decayed && state.head == element.head &&
                         (reverse ? element.end == state.begin : element.begin == state.end);
    require(follows, "folds {} into {}", element, state);
    (reverse ? state.begin : state.end) = reverse ? element.begin : element.end;
  }

  void require_scale(const Step& step) {
    if (!scale_) scale_ = step.scale;
    require(*scale_ == step.scale, "scales q by {}, an earlier step by {}", step.scale, *scale_);
  }

  /// A step of the results of its runs and heads, each of which comes once, behind those before it.
  void advance(const Step& step, const View& base, Done to) {
    for_each_item(step, base, [&](std::size_t item) {
      std::uint8_t& done = self().done[item];
      const auto before = static_cast<std::uint8_t>(all_done() & (to - 1));
      require(done == before, "{} of a run and head comes {}", info(step.op).name, done < before ? "too early" : "twice");
      done |= to;
    });
  }
  std::uint8_t all_done() const {
    return static_cast<std::uint8_t>(Done::recurrence | (claim_.bidirectional ? Done::mirrored : 0) |
                                     (claim_.normalises ? Done::normalised : 0));
  }

  /// Elements of the mirrored pass: q and k change places, and so do v and dout.
  bool is_mirrored(const Step& step, std::span<const Access> a) const {
    return claim_.bidirectional && program().slot_of(a[0].view).name != info(step.op).operands[0].name;
  }
  static void require_plain(const Step& step) {
    require(step.transition == Transition::identity && step.scale == 1 && !step.mirrored, "{} takes no scale and no transition",
            info(step.op).name);
  }
  static void require_unscaled(const Step& step) { require(step.scale == 1, "a mirrored step scales by {}", step.scale); }

  /// Each row of the elements is of one unit, and the run that makes it is there.
  void play_states(const Step& step, const View& base, const View& elements, bool down, bool gradient) {
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
      row.made |= down ? run.enters : run.leaves;
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
      require(rows[i].unit >= 0, "element {} is of no unit", i);
      const auto unit = static_cast<std::size_t>(rows[i].unit);
      // No document enters: nobody asks for what would go down to the units before.
      const bool idle = down && self().incoming[unit].begin == self().incoming[unit].end;
      require(rows[i].made || idle, "the run that makes element {} is missing", i);
      const std::int64_t global = units_.of_rank(static_cast<int>(rank_))[unit];
      for (std::int64_t head = 0; head < elements.heads; ++head) {
        at(elements, static_cast<std::int64_t>(i), head) = {
            Cell::Kind::element, down, gradient, false, static_cast<std::int32_t>(base.head0 + head), global, global + 1};
      }
    }
  }

  /// The states that a run of the recurrence starts from, and the gradients that it starts from backward: in the rows of its unit.
  void require_states(const Step& step, const View& base, const View& from, std::string_view name, const View* gradients, bool mirrored) {
    require(claim_.backward == (gradients != nullptr), "{} is of the other pass", info(step.op).name);
    require(program().slot_of(from).name == name && from.head0 == base.head0, "{} is not '{}' head {}", name, program().slot_of(from).name,
            from.head0);
    copied_.clear();
    read(from, copied_);  // all of it is defined
    for (const UnitRun& run : program().runs_of(step)) {
      const std::size_t index = index_of(base, run);
      const auto unit = static_cast<std::size_t>(self().runs[index].unit);
      require(from.row0 + run.unit == static_cast<std::int64_t>(unit), "its run of rows {}+{} takes the states of unit {} instead of {}",
              base.row0 + run.row0, run.rows, from.row0 + run.unit, unit);
      for (std::int64_t head = 0; head < base.heads; ++head) {
        Cell before = state_of(self().incoming[unit], false, mirrored, base.head0 + head);
        const Cell behind = state_of(self().outgoing[unit], true, !mirrored, base.head0 + head);
        before.decayed = mirrored && claim_.decay;
        // Where nothing enters, nothing is there to be used.
        if (begins_unit(index) && (!mirrored || gradients != nullptr)) require_state(mirrored ? *gradients : from, run.unit, head, before);
        if (run.leaves && (mirrored || gradients != nullptr)) require_state(mirrored ? from : *gradients, run.unit, head, behind);
      }
    }
  }

  void play_apply(const Step& step, const View& base, const View& incoming, const View* doutgoing) {
    require_states(step, base, incoming, "incoming", doutgoing, false);
    advance(step, base, Done::recurrence);
  }

  /// Each state is decayed by the first row of its unit, once.
  void play_decay(const Step& step, std::span<const Access> a) {
    using namespace decay_states_operand;
    require(claim_.bidirectional && claim_.backward, "a mirrored pass back is not claimed");
    require_named(step, a, log_decay, "log_decay");
    const View &base = a[0].view, &to = a[states].view;
    for (const UnitRun& run : program().runs_of(step)) {
      const std::size_t index = index_of(base, run);
      const auto unit = static_cast<std::size_t>(self().runs[index].unit);
      if (!begins_unit(index)) continue;
      for (std::int64_t head = 0; head < to.heads; ++head) {
        require_state(to, run.unit, head, state_of(self().incoming[unit], false, true, base.head0 + head));
        at(to, run.unit, head).decayed = true;
        at(to, run.unit, head).head = static_cast<std::int32_t>(base.head0 + head);
      }
    }
  }

  /// Operands begin as those of unit_apply.
  void play_mirrored(const Step& step, std::span<const Access> a, const View* gradients, std::initializer_list<Named> inputs,
                     std::initializer_list<Named> results) {
    using namespace unit_apply_operand;
    require(claim_.bidirectional, "a mirrored pass is not claimed");
    require_unscaled(step);
    require_inputs(step, a, inputs, log_decay, beta, "mirrored log_decay");
    require_states(step, a[0].view, a[incoming].view, "following", gradients, true);
    put_results(step, a, results);
  }

  /// What the mirrored pass made is added to the results.
  void play_sum(const Step& step, std::span<const Access> a, std::initializer_list<Named> operands) {
    require_scale(step);
    require_transition(step);
    for (const Named& it : operands) {
      if (a[it.operand].view.present()) require_operand(step, a, it);
    }
    require((info(step.op).operands.size() == 5 || a[add_mirrored_backward_operand::dlog_decay].view.present() == claim_.decay),
            "decay takes part, but is not claimed, or the other way round");
    advance(step, a[0].view, Done::mirrored);
  }

  void check_results() {
    require(self().next == program().steps.size(), "waits for a message that never comes");
    const auto heads = static_cast<std::size_t>(claim_.q_heads);
    const auto missing = std::ranges::find_if(self().done, [&](std::uint8_t done) { return done != all_done(); });
    if (missing != self().done.end()) {
      const auto index = static_cast<std::size_t>(missing - self().done.begin());
      require(false, "rows {}+{} of head {} are never computed", self().runs[index / heads].row0, self().runs[index / heads].rows,
              index % heads);
    }
    if (claim_.backward) return;
    check_saved("incoming", self().incoming, false);
    if (claim_.bidirectional) check_saved("following", self().outgoing, true);
    if (claim_.keeps_transitions) check_transitions();
  }

  void check_saved(std::string_view name, const std::vector<UnitFold>& folds, bool down) {
    const View saved{program().find_slot(name), 0, std::ssize(folds), 0, claim_.q_heads};
    for (std::int64_t row = 0; row < saved.rows; ++row) {
      for (std::int64_t head = 0; head < saved.heads; ++head) {
        require_state(saved, row, head, state_of(folds[static_cast<std::size_t>(row)], down, false, head));
      }
    }
  }

  void check_transitions() {
    const SlotId id = program().find_slot("transitions");
    const View saved{id, 0, program().slots[static_cast<std::size_t>(id)].rows, 0, claim_.q_heads};
    for (std::int64_t unit = 0; unit < saved.rows; ++unit) {
      for (std::int64_t head = 0; head < saved.heads; ++head) {
        const Cell& held = at(saved, unit, head);
        require(held.kind == Cell::Kind::transition && held.begin == unit && held.head == head, "'transitions' row {} head {} holds {}",
                unit, head, held);
      }
    }
  }

  Cells copied_;
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
