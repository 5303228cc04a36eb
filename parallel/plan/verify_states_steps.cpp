#include "parallel/plan/verify_states_steps.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

namespace periplus::plan::play {
namespace {

void fold_in(const Symbol& element, bool reverse, Symbol& state) {
  require(element.kind == Symbol::Kind::element && element.down == reverse, "folds {} {}", element,
          reverse ? "down the units" : "up the units");
  if (state.begin == state.end) {
    state = element;
    state.kind = Symbol::Kind::state;
    return;
  }
  const bool follows = state.down == reverse && state.gradient == element.gradient && !state.decayed && state.head == element.head &&
                       (reverse ? element.end == state.begin : element.begin == state.end);
  require(follows, "folds {} into {}", element, state);
  (reverse ? state.begin : state.end) = reverse ? element.begin : element.end;
}

void require_plain(const Step& step) {
  require(step.transition == Transition::identity && step.scale == 1 && !step.mirrored, "{} takes no scale and no transition",
          info(step.op).name);
}
void require_unscaled(const Step& step) { require(step.scale == 1, "a mirrored step scales by {}", step.scale); }

}  // namespace

bool StateSteps::play_step(const Step& step) {
  using Play = void (StateSteps::*)(const Step&, Accesses);
  static constexpr std::array<std::pair<Op, Play>, 16> kPlays{{{Op::copy, &StateSteps::play_copy},
                                                               {Op::unit_states, &StateSteps::play_unit_states},
                                                               {Op::unit_states_backward, &StateSteps::play_unit_states_backward},
                                                               {Op::unit_scan, &StateSteps::play_scan},
                                                               {Op::unit_apply, &StateSteps::play_unit_apply},
                                                               {Op::unit_apply_backward, &StateSteps::play_unit_apply_backward},
                                                               {Op::split_elements, &StateSteps::play_split},
                                                               {Op::join_elements, &StateSteps::play_join},
                                                               {Op::mirror_decay, &StateSteps::play_mirror_decay},
                                                               {Op::decay_states, &StateSteps::play_decay_states},
                                                               {Op::add_mirrored, &StateSteps::play_add_mirrored},
                                                               {Op::add_mirrored_backward, &StateSteps::play_add_mirrored_backward},
                                                               {Op::extend_values, &StateSteps::play_extend_values},
                                                               {Op::cut_values, &StateSteps::play_cut_values},
                                                               {Op::normalise, &StateSteps::play_normalise},
                                                               {Op::normalise_backward, &StateSteps::play_normalise_backward}}};
  if (step.op == Op::exchange) return play_exchange(step);
  const auto play = std::ranges::find(kPlays, step.op, &std::pair<Op, Play>::first);
  require(play != kPlays.end(), "{} is no step of linear attention", info(step.op).name);
  (this->*play->second)(step, program().accesses_of(step));
  return true;
}

void StateSteps::play_copy(const Step& step, Accesses a) {
  const View &from = a[transfer_operand::source].view, &to = a[transfer_operand::destination].view;
  require(step.moves.count == 0, "copies states into another order");
  require(program().slot_of(from).dtype == program().slot_of(to).dtype, "'{}' is of another type than '{}'", program().slot_of(to).name,
          program().slot_of(from).name);
  copied_.clear();
  read(from, copied_);
  write(to, copied_);
}

void StateSteps::play_split(const Step&, Accesses a) {
  using namespace split_elements_operand;
  const View& from = a[elements].view;
  for (std::int64_t row = 0; row < from.rows; ++row) {
    for (std::int64_t head = 0; head < from.heads; ++head) {
      const Symbol whole = at(from, row, head);
      require(whole.kind == Symbol::Kind::element, "splits {}", whole);
      Symbol added_part = whole;
      added_part.kind = Symbol::Kind::added;
      if (a[transitions].view.present()) at(a[transitions].view, row, head) = transition_of(whole.begin, whole.head);
      if (a[added].view.present()) at(a[added].view, row, head) = added_part;
    }
  }
}

void StateSteps::play_join(const Step&, Accesses a) {
  using namespace join_elements_operand;
  const View& to = a[elements].view;
  for (std::int64_t row = 0; row < to.rows; ++row) {
    for (std::int64_t head = 0; head < to.heads; ++head) {
      const Symbol transition = at(a[transitions].view, row, head), part = at(a[added].view, row, head);
      const bool fit = transition.kind == Symbol::Kind::transition && part.kind == Symbol::Kind::added && transition.begin == part.begin &&
                       transition.head == part.head;
      require(fit, "joins {} and {}", transition, part);
      at(to, row, head) = part;
      at(to, row, head).kind = Symbol::Kind::element;
    }
  }
}

void StateSteps::play_scan(const Step& step, Accesses a) {
  require_transition(step);
  const View &elements = a[unit_scan_operand::elements].view, &states = a[unit_scan_operand::states].view;
  for (const UnitFold& fold : program().folds_of(step)) {
    for (std::int64_t head = 0; head < states.heads; ++head) {
      Symbol& state = at(states, fold.target, head);
      if (a[unit_scan_operand::states].mode == Mode::write) state = {Symbol::Kind::state};
      require(state.kind == Symbol::Kind::state, "folds into {}", state);
      for (std::int64_t i = 0; i < fold.end - fold.begin; ++i) {
        fold_in(at(elements, step.reverse ? fold.end - 1 - i : fold.begin + i, head), step.reverse, state);
      }
    }
  }
}

void StateSteps::play_unit_states(const Step& step, Accesses a) {
  using namespace unit_states_operand;
  const bool mirrored = is_mirrored(step, a);
  require_inputs(step, a, {{k, mirrored ? "q" : "k"}, {v, mirrored ? "dout" : "v"}}, log_decay, beta);
  play_states(step, a[0].view, a[elements].view, false, mirrored);
}

void StateSteps::play_unit_states_backward(const Step& step, Accesses a) {
  using namespace unit_states_backward_operand;
  const bool mirrored = is_mirrored(step, a);
  mirrored ? require_unscaled(step) : require_scale(step);
  require_inputs(step, a, {{q, mirrored ? "k" : "q"}, {k, mirrored ? "q" : "k"}, {dout, mirrored ? "v" : "dout"}}, log_decay, beta);
  play_states(step, a[0].view, a[elements].view, true, !mirrored);
}

void StateSteps::play_unit_apply(const Step& step, Accesses a) {
  using namespace unit_apply_operand;
  if (step.mirrored) return play_mirrored(step, a, nullptr, {{q, "q"}, {k, "k"}, {v, "v"}}, {{out, "mirrored out"}});
  require_scale(step);
  require_inputs(step, a, {{q, "q"}, {k, "k"}, {v, "v"}}, log_decay, beta);
  play_apply(step, a[q].view, a[incoming].view, nullptr);
  put_results(step, a, {{out, "out"}});
}

void StateSteps::play_unit_apply_backward(const Step& step, Accesses a) {
  using namespace unit_apply_backward_operand;
  const std::initializer_list<Named> inputs{{q, "q"}, {k, "k"}, {v, "v"}, {dout, "dout"}};
  if (step.mirrored) {
    return play_mirrored(step, a, &a[doutgoing].view, inputs,
                         {{dq, "mirrored dq"}, {dk, "mirrored dk"}, {dv, "mirrored dv"}, {dlog_decay, "mirrored dlog_decay"}});
  }
  require_scale(step);
  require_inputs(step, a, inputs, log_decay, beta);
  play_apply(step, a[q].view, a[incoming].view, &a[doutgoing].view);
  put_results(step, a, {{dq, "dq"}, {dk, "dk"}, {dv, "dv"}, {dlog_decay, "dlog_decay"}, {dbeta, "dbeta"}});
}

void StateSteps::play_mirror_decay(const Step& step, Accesses a) {
  using namespace mirror_decay_operand;
  require_plain(step);
  require(claim_.bidirectional, "a mirrored pass is not claimed");
  require_named(a, log_decay, "log_decay");
  hold(step, a[0].view, a[mirror_decay_operand::mirrored].view, "mirrored log_decay");
}

void StateSteps::play_add_mirrored(const Step& step, Accesses a) {
  using namespace add_mirrored_operand;
  play_sum(step, a, {{q, "q"}, {k, "k"}, {v, "v"}, {add_mirrored_operand::mirrored, "mirrored out"}, {out, "out"}});
}

void StateSteps::play_add_mirrored_backward(const Step& step, Accesses a) {
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
}

void StateSteps::play_extend_values(const Step& step, Accesses a) {
  using namespace extension_operand;
  require_plain(step);
  require(claim_.normalises, "a normaliser is not claimed");
  require_named(a, from, "v");
  hold(step, a[0].view, a[to].view, "v");
}

void StateSteps::play_cut_values(const Step& step, Accesses a) {
  using namespace extension_operand;
  require_plain(step);
  require_held(step, a[0].view, a[from].view, "dv");
  require_named(a, to, "dv");
  advance(step, a[0].view, Done::normalised);
}

void StateSteps::play_normalise(const Step& step, Accesses a) {
  using namespace normalise_operand;
  require_plain(step);
  require_held(step, a[0].view, a[extended].view, "out");
  require_named(a, out, "out"), require_named(a, normaliser, "normaliser");
  advance(step, a[0].view, Done::normalised);
}

void StateSteps::play_normalise_backward(const Step& step, Accesses a) {
  using namespace normalise_backward_operand;
  require_plain(step);
  require(claim_.normalises, "a normaliser is not claimed");
  require_named(a, dout, "dout"), require_named(a, out, "out"), require_named(a, normaliser, "normaliser");
  hold(step, a[0].view, a[extended].view, "dout");
}

void StateSteps::require_scale(const Step& step) {
  if (!scale_) scale_ = step.scale;
  require(*scale_ == step.scale, "scales q by {}, an earlier step by {}", step.scale, *scale_);
}

/// A step of the results of its runs and heads, each of which comes once, behind those before it.
void StateSteps::advance(const Step& step, const View& base, Done to) {
  for_each_item(step, base, [&](std::size_t item) {
    std::uint8_t& done = self().done[item];
    const auto before = static_cast<std::uint8_t>(all_done() & (to - 1));
    require(done == before, "{} of a run and head comes {}", info(step.op).name, done < before ? "too early" : "twice");
    done |= to;
  });
}

std::uint8_t StateSteps::all_done() const {
  return static_cast<std::uint8_t>(Done::recurrence | (claim_.bidirectional ? Done::mirrored : 0) |
                                   (claim_.normalises ? Done::normalised : 0));
}

/// Elements of the mirrored pass: q and k change places, and so do v and dout.
bool StateSteps::is_mirrored(const Step& step, Accesses a) const {
  return claim_.bidirectional && program().slot_of(a[0].view).name != info(step.op).operands[0].name;
}

/// Each row of the elements is of one unit, and the run that makes it is there.
void StateSteps::play_states(const Step& step, const View& base, const View& elements, bool down, bool gradient) {
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
          Symbol::Kind::element, down, gradient, false, static_cast<std::int32_t>(base.head0 + head), global, global + 1};
    }
  }
}

/// The states that a run of the recurrence starts from, and the gradients that it starts from backward: in the rows of its unit.
void StateSteps::require_states(const Step& step, const View& base, const View& from, std::string_view name, const View* gradients,
                                bool mirrored) {
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
      Symbol before = state_of(self().incoming[unit], false, mirrored, base.head0 + head);
      const Symbol behind = state_of(self().outgoing[unit], true, !mirrored, base.head0 + head);
      before.decayed = mirrored && claim_.decay;
      // Where nothing enters, nothing is there to be used.
      if (begins_unit(index) && (!mirrored || gradients != nullptr)) require_state(mirrored ? *gradients : from, run.unit, head, before);
      if (run.leaves && (mirrored || gradients != nullptr)) require_state(mirrored ? from : *gradients, run.unit, head, behind);
    }
  }
}

void StateSteps::play_apply(const Step& step, const View& base, const View& incoming, const View* doutgoing) {
  require_states(step, base, incoming, "incoming", doutgoing, false);
  advance(step, base, Done::recurrence);
}

/// Each state is decayed by the first row of its unit, once.
void StateSteps::play_decay_states(const Step& step, Accesses a) {
  require_plain(step);
  using namespace decay_states_operand;
  require(claim_.bidirectional && claim_.backward, "a mirrored pass back is not claimed");
  require_named(a, log_decay, "log_decay");
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
void StateSteps::play_mirrored(const Step& step, Accesses a, const View* gradients, std::initializer_list<Named> inputs,
                               std::initializer_list<Named> results) {
  using namespace unit_apply_operand;
  require(claim_.bidirectional, "a mirrored pass is not claimed");
  require_unscaled(step);
  require_inputs(step, a, inputs, log_decay, beta, "mirrored log_decay");
  require_states(step, a[0].view, a[incoming].view, "following", gradients, true);
  put_results(step, a, results);
}

/// What the mirrored pass made is added to the results.
void StateSteps::play_sum(const Step& step, Accesses a, std::initializer_list<Named> operands) {
  require_scale(step);
  require_transition(step);
  for (const Named& it : operands) {
    if (a[it.operand].view.present()) require_operand(step, a, it);
  }
  require((info(step.op).operands.size() == 5 || a[add_mirrored_backward_operand::dlog_decay].view.present() == claim_.decay),
          "decay takes part, but is not claimed, or the other way round");
  advance(step, a[0].view, Done::mirrored);
}

}  // namespace periplus::plan::play
