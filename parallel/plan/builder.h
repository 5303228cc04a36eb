#pragma once

#include <any>
#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "parallel/plan/pair_bands.h"
#include "parallel/plan/plan.h"
#include "parallel/plan/waits.h"

namespace periplus::plan {

class ProgramBuilder;

/// `count` scratch slots used in turn. The name bounds how far a program may run ahead: the n-th use waits until the
/// (n - count)-th is no longer read.
class RotatingScratch {
 public:
  /// A view of the next slot, `rows` high.
  View next(std::int64_t rows);

 private:
  friend class ProgramBuilder;
  explicit RotatingScratch(std::vector<View> views) : views_(std::move(views)) {}
  std::vector<View> views_;
  std::size_t turn_ = 0;
};

/// Writes the program of one rank, top to bottom. A strategy names what each step reads and writes and never says "wait":
/// dependencies follow from the accesses. Every rank must call `exchange` equally often, with the same lanes, so that
/// phases agree; an exchange that turns out empty on this rank costs nothing.
/// Empty views are welcome everywhere: their steps and messages are dropped. Steps that may run at the same time and
/// depend on different messages belong on different lanes: each lane is a queue.
class ProgramBuilder {
 public:
  explicit ProgramBuilder(Rank rank) { program_.rank = rank; }
  /// Begins the program of another rank, in the memory of a program that is no longer needed and with room for as much as the
  /// one built before had.
  void restart(Rank rank, Program&& memory = {});
  /// Forgets what does not hold for the programs of another plan.
  void begin_plan(const Claim& claim);
  /// What the programs of all ranks have in common: made for the first of them and kept for the others.
  template <class T, class Make>
  const T& in_common(const Make& make) {
    if (const T* const known = std::any_cast<T>(&common_)) return *known;
    return common_.emplace<T>(make());
  }
  /// What a strategy finds out about a layout and mask, from the first of its plans on; empty at first.
  template <class T>
  T& of_layout_and_mask() {
    T* const known = std::any_cast<T>(&of_claim_);
    return known != nullptr ? *known : of_claim_.emplace<T>();
  }
  /// The bands of (queries of one rank, keys of another) in local rows. Kept for all plans of the layout and mask.
  std::span<const Band> bands_between(const SequenceLayout& layout, const Mask& mask, int q_rank, int k_rank) {
    return pair_bands_.between(layout, mask, q_rank, k_rank);
  }
  Rank rank() const noexcept { return program_.rank; }

  /// Declares a slot, under a name of its own, and returns the view of all of it.
  View slot(std::string name, Role role, DType dtype, std::int64_t rows, std::int64_t heads, std::int64_t width, bool contiguous = true);
  View scratch(std::string name, DType dtype, std::int64_t rows, std::int64_t heads, std::int64_t width) {
    return slot(std::move(name), Role::scratch, dtype, rows, heads, width);
  }
  /// Slots name.0, name.1, ..., each able to hold `rows` rows.
  RotatingScratch rotating_scratch(std::string_view name, int count, DType dtype, std::int64_t rows, std::int64_t heads,
                                   std::int64_t width);
  /// Whether messages can be sent from a view: whole rows of a dense slot.
  bool is_sendable(const View& view) const {
    const Slot& slot = program_.slot_of(view);
    return slot.contiguous && view.heads == slot.heads;
  }
  /// `view` itself if messages can be sent from it, else a contiguous scratch copy called `name`, made by a copy step.
  View sendable(View view, std::string name);
  /// Room for so many bands of all attend steps together. Optional; spares the memory that growing would touch.
  void expect_bands(std::size_t count) { program_.bands.reserve(count); }
  DType dtype_of(const View& view) const { return program_.slot_of(view).dtype; }
  std::int64_t width_of(const View& view) const { return program_.slot_of(view).width; }

  struct AttendOperands {
    View q, k, v;
    View out, lse;  ///< state
  };
  /// With Mode::write the state is started; rows without bands become empty. With Mode::add and no bands nothing is emitted.
  void attend(Label label, const AttendOperands& on, std::span<const Band> bands, double scale, double softcap, Mode mode);

  struct AttendBackwardOperands {
    View q, k, v, dout, lse, delta;
    View dq, dk, dv;
  };
  /// dk and dv are always written, dq by `dq_mode`. Sums over several blocks are made with `add`, in the order that counts.
  void attend_backward(Label label, const AttendBackwardOperands& on, std::span<const Band> bands, double scale, double softcap,
                       Mode dq_mode);

  void merge(Label label, View part_out, View part_lse, View out, View lse);
  void finish(Label label, View state_out, View state_lse, View sink, View out, View lse);
  struct DeltaOperands {
    View dout, out, lse, dlse, sink;
    View delta, dsink;
  };
  void delta(Label label, const DeltaOperands& on);
  void copy(Label label, View source, View destination);
  /// A new order of rows, for any number of copies to share, and the way back. The moves hold each row of source and destination once.
  std::pair<Range, Range> new_orders(std::span<const RowMove> moves);
  void copy(Label label, View source, View destination, Range order);
  void add(Label label, View source, View destination);

  /// What a recurrence reads of its own rows; log_decay and beta may be absent.
  struct UnitInputs {
    View q, k, v, log_decay = {}, beta = {};
    UnitInputs rows_at(std::int64_t first, std::int64_t count) const;
    UnitInputs heads_at(std::int64_t first, std::int64_t count) const;
  };
  /// Runs or folds for any number of steps to share.
  Range new_runs(std::span<const kernels::UnitRun> runs);
  Range new_folds(std::span<const kernels::UnitFold> folds);
  struct Recurrence {
    Range runs;
    kernels::Transition transition = kernels::Transition::identity;
    double scale = 1;
    bool mirrored = false;  ///< unit_apply* only.
  };
  /// See kernels/linear_attention.h. Rows and units of the runs count from those of the views.
  void unit_states(Label label, const UnitInputs& on, const Recurrence& how, View elements);
  void unit_states_backward(Label label, const UnitInputs& on, const Recurrence& how, View dout, View elements);
  void unit_scan(Label label, View elements, Range folds, kernels::Transition transition, bool reverse, View states, Mode mode);
  void unit_apply(Label label, const UnitInputs& on, const Recurrence& how, View incoming, View out);
  struct UnitGradients {
    View dq, dk, dv, dlog_decay = {}, dbeta = {};
    UnitGradients rows_at(std::int64_t first, std::int64_t count) const;
    UnitGradients heads_at(std::int64_t first, std::int64_t count) const;
  };
  void unit_apply_backward(Label label, const UnitInputs& on, const Recurrence& how, View incoming, View dout, View doutgoing,
                           const UnitGradients& gradients);
  /// The transitions of elements and what they add to a state, apart; either may be absent.
  void split_elements(Label label, View elements, View transitions, View added);
  void join_elements(Label label, View transitions, View added, View elements);
  /// See kernels/linear_tokens.h. The runs say which rows are whose.
  void mirror_decay(Label label, Range runs, View log_decay, View mirrored);
  void decay_states(Label label, Range runs, View log_decay, View states);
  void add_mirrored(Label label, const UnitInputs& on, const Recurrence& how, View mirrored, View out);
  void add_mirrored_backward(Label label, const UnitInputs& on, const Recurrence& how, View dout, const UnitGradients& mirrored,
                             const UnitGradients& gradients);
  void extend_values(Label label, Range runs, View values, View extended);
  void cut_values(Label label, Range runs, View extended, View values);
  void normalise(Label label, Range runs, double epsilon, View extended, View out, View normaliser);
  void normalise_backward(Label label, Range runs, View dout, View out, View normaliser, View extended);
  /// Messages to and from the rank itself and of zero rows are dropped.
  void exchange(Label label, int lane, std::span<const Message> sends, std::span<const Message> receives);

  /// Says what the steps wait for, places scratch slots in the workspace and returns the program. The builder is spent until
  /// `restart`. `earlier` are the programs of the plan that were built before, from rank 0 on: those that are alike have like waits.
  Program build(std::span<const Program> earlier = {});

 private:
  Step& begin_step(Op op, Label label);
  void emit(Op op, Label label, std::span<const Access> accesses, std::span<const Band> bands = {}, double scale = 1, double softcap = 0);
  void emit(Op op, Label label, std::span<const Access> accesses, const Recurrence& how);
  Range keep(std::span<const Band> bands);

  Program program_;
  std::any common_, of_claim_;
  PairBands pair_bands_;
  std::array<std::uint64_t, 2> claim_{};  ///< Digests of layout and mask that these are of.
  std::int32_t phase_ = 0;
  Waits waits_;
  Range last_bands_;                ///< In the pool.
  std::vector<std::string> names_;  ///< Of the slots of a program built before; up to now those of this one, unless they are new.
  bool names_are_new_ = false;
  /// How much the program built last had.
  struct Sizes {
    std::size_t slots = 0, steps = 0, accesses = 0, bands = 0, sends = 0, receives = 0, after = 0, moves = 0;
  };
  Sizes last_;
};

}  // namespace periplus::plan
