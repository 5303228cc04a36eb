#include "parallel/plan/verify_units_form.h"

#include <vector>

#include "parallel/plan/failure.h"
#include "parallel/plan/ops.h"

namespace periplus::plan {
namespace {

using kernels::Transition;

class UnitForm {
 public:
  UnitForm(const Program& program, const Step& step) : program_(program), step_(step), a_(program.accesses_of(step)) {}

  /// Does nothing for steps of other kinds.
  void check() const {
    switch (step_.op) {
      case Op::unit_states:
        return check_states();
      case Op::unit_states_backward:
        return check_states_backward();
      case Op::unit_scan:
        return check_scan();
      case Op::unit_apply:
        return check_apply();
      case Op::unit_apply_backward:
        return check_apply_backward();
      case Op::split_elements:
        return check_split();
      case Op::join_elements:
        return check_join();
      case Op::mirror_decay:
        return check_mirror_decay();
      case Op::decay_states:
        return check_decay_states();
      case Op::add_mirrored:
        return check_add_mirrored();
      case Op::add_mirrored_backward:
        return check_add_mirrored_backward();
      case Op::extend_values:
        return check_extension(extension_operand::to, 1);
      case Op::cut_values:
        return check_extension(extension_operand::to, -1);
      case Op::normalise:
        check_extension(normalise_operand::out, -1);
        return check_normaliser(normalise_operand::normaliser);
      case Op::normalise_backward:
        check_extension(normalise_backward_operand::out, 0);
        check_extension(normalise_backward_operand::extended, 1);
        return check_normaliser(normalise_backward_operand::normaliser);
      default:
        return;
    }
  }

 private:
  void check_scan() const {
    const View &elements = a_[unit_scan_operand::elements].view, &states = a_[unit_scan_operand::states].view;
    require(elements.heads == states.heads, "elements of {} heads for states of {}", elements.heads, states.heads);
    const std::int64_t state = width(unit_scan_operand::states), transition = width(unit_scan_operand::elements) - state;
    require(fits(transition, state), "elements with {} numbers more than a state of {} do not suit the transition", transition, state);
    std::vector<bool> made(static_cast<std::size_t>(states.rows), false);
    for (const kernels::UnitFold& fold : program_.folds_of(step_)) {
      require(fold.target >= 0 && fold.target < states.rows && fold.begin >= 0 && fold.begin <= fold.end && fold.end <= elements.rows,
              "fold {}:{} to {} leaves the views of {} elements and {} states", fold.begin, fold.end, fold.target, elements.rows,
              states.rows);
      const auto target = static_cast<std::size_t>(fold.target);
      require(!made[target], "two folds to state {}", fold.target);
      made[target] = true;
    }
    require(step_.folds.count == made.size(), "{} folds for {} states", step_.folds.count, made.size());
  }

  void check_states() const {
    using namespace unit_states_operand;
    tokens(v, width(v));
    decay_and_beta(log_decay, beta, width(k));
    units(elements, element_width(width(k), width(v)));
    check_runs(elements);
  }

  void check_states_backward() const {
    using namespace unit_states_backward_operand;
    tokens(k, width(q)), tokens(dout, width(dout));
    decay_and_beta(log_decay, beta, width(q));
    units(elements, element_width(width(q), width(dout)));
    check_runs(elements);
  }

  void check_apply() const {
    using namespace unit_apply_operand;
    check_inputs();
    tokens(out, width(v));
    check_runs(incoming);
  }

  void check_apply_backward() const {
    using namespace unit_apply_backward_operand;
    check_inputs();
    tokens(dout, width(v));
    units(doutgoing, width(q) * width(v));
    require(a_[doutgoing].view.rows == a_[incoming].view.rows, "incoming and doutgoing differ in shape");
    tokens(dq, width(q)), tokens(dk, width(k)), tokens(dv, width(v));
    gradient(log_decay, dlog_decay), gradient(beta, dbeta);
    check_runs(incoming);
  }

  void check_split() const {
    using namespace split_elements_operand;
    std::int64_t both = 0;
    for (const std::size_t part : {std::size_t{transitions}, std::size_t{added}}) {
      if (!present(part)) continue;
      same_shape(part);
      both += width(part);
    }
    require(present(transitions) && present(added) ? both == width(elements) : both < width(elements) && both > 0,
            "parts of {} numbers of elements of {}", both, width(elements));
  }

  void check_join() const {
    using namespace join_elements_operand;
    same_shape(added), same_shape(elements);
    require(width(transitions) + width(added) == width(elements), "elements of {} numbers of parts of {} and {}", width(elements),
            width(transitions), width(added));
  }

  void check_mirror_decay() const {
    tokens(mirror_decay_operand::mirrored, width(mirror_decay_operand::log_decay));
    check_rows();
  }

  void check_decay_states() const {
    using namespace decay_states_operand;
    require(a_[states].view.heads == a_[0].view.heads && width(states) % width(log_decay) == 0, "log_decay and states do not fit");
    check_runs(states);
  }

  void check_add_mirrored() const {
    using namespace add_mirrored_operand;
    tokens(k, width(q)), tokens(v, width(v)), tokens(mirrored, width(v)), tokens(out, width(v));
    check_rows();
  }

  void check_add_mirrored_backward() const {
    using namespace add_mirrored_backward_operand;
    for (const std::size_t i : {std::size_t{k}, std::size_t{mirrored_dq}, std::size_t{mirrored_dk}, std::size_t{dq}, std::size_t{dk}}) {
      tokens(i, width(q));
    }
    for (const std::size_t i : {std::size_t{v}, std::size_t{dout}, std::size_t{mirrored_dv}, std::size_t{dv}}) tokens(i, width(v));
    gradient(mirrored_dlog_decay, dlog_decay);
    if (present(mirrored_dlog_decay)) tokens(mirrored_dlog_decay, width(dlog_decay));
    check_rows();
  }

  /// Operand `i` has one number more (less) than the first.
  void check_extension(std::size_t i, std::int64_t more) const {
    tokens(i, width(0) + more);
    check_rows();
  }

  void check_normaliser(std::size_t i) const { tokens(i, 1); }

  /// As operand 0, but for the width.
  void same_shape(std::size_t i) const {
    require(a_[i].view.rows == a_[0].view.rows && a_[i].view.heads == a_[0].view.heads, "{} and {} differ in shape", name(0), name(i));
  }
  std::string_view name(std::size_t i) const { return info(step_.op).operands[i].name; }
  std::int64_t width(std::size_t i) const { return program_.slot_of(a_[i].view).width; }
  bool present(std::size_t i) const { return a_[i].view.present(); }

  bool fits(std::int64_t transition, std::int64_t state) const {
    switch (step_.transition) {
      case Transition::identity:
        return transition == 0;
      case Transition::scalar:
        return transition == 1;
      case Transition::diagonal:
        return transition > 0 && state % transition == 0;
      case Transition::dense: {
        std::int64_t d = 1;
        while (d * d < transition) ++d;
        return d * d == transition && state % d == 0;
      }
    }
    return false;
  }
  std::int64_t element_width(std::int64_t d, std::int64_t e) const { return kernels::transition_width(step_.transition, d) + d * e; }

  /// Operand 0 has the rows and heads of all operands of tokens.
  void tokens(std::size_t i, std::int64_t wanted) const {
    require(a_[i].view.rows == a_[0].view.rows && a_[i].view.heads == a_[0].view.heads, "{} and {} differ in shape", name(0), name(i));
    require(width(i) == wanted, "{} is {} wide where {} is needed", name(i), width(i), wanted);
  }
  void units(std::size_t i, std::int64_t wanted) const {
    require(a_[i].view.heads == a_[0].view.heads, "{} and {} differ in heads", name(0), name(i));
    require(width(i) == wanted, "{} is {} wide where {} is needed", name(i), width(i), wanted);
  }
  void gradient(std::size_t of, std::size_t i) const {
    require(present(of) == present(i), "{} and {} are not both given", name(of), name(i));
    if (present(i)) tokens(i, width(of));
  }
  void decay_and_beta(std::size_t log_decay, std::size_t beta, std::int64_t d) const {
    Transition wanted = Transition::identity;
    if (present(log_decay)) {
      wanted = width(log_decay) == 1 ? Transition::scalar : Transition::diagonal;
      tokens(log_decay, width(log_decay) == 1 ? 1 : d);
    }
    if (present(beta)) {
      wanted = Transition::dense;
      tokens(beta, 1);
    }
    // With one channel a diagonal is a scalar.
    const bool same = step_.transition == wanted || (d == 1 && wanted == Transition::scalar && step_.transition == Transition::diagonal);
    require(same, "the transition is not that of its decay and beta");
  }
  void check_inputs() const {
    using namespace unit_apply_operand;  // unit_apply_backward begins with the same operands
    tokens(k, width(q)), tokens(v, width(v));
    decay_and_beta(log_decay, beta, width(q));
    units(incoming, width(q) * width(v));
  }

  void check_runs(std::size_t of_units) const {
    const std::int64_t unit_rows = a_[of_units].view.rows;
    for (const kernels::UnitRun& run : program_.runs_of(step_)) {
      require(run.unit >= 0 && run.unit < unit_rows, "a run of unit {} of {}", run.unit, unit_rows);
    }
    check_rows();
  }
  /// The runs hold each row of the views once.
  void check_rows() const {
    std::int64_t next = 0;
    for (const kernels::UnitRun& run : program_.runs_of(step_)) {
      require(run.row0 == next && run.rows > 0, "a run of {} rows at {} where {} is next", run.rows, run.row0, next);
      next += run.rows;
    }
    require(next == a_[0].view.rows, "runs of {} of {} rows", next, a_[0].view.rows);
  }

  const Program& program_;
  const Step& step_;
  std::span<const Access> a_;
};

}  // namespace

std::string unit_form_failure(const Program& program, const Step& step) {
  try {
    UnitForm(program, step).check();
  } catch (const Failure& failure) {
    return failure.what;
  }
  return {};
}

}  // namespace periplus::plan
