#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/band.h"
#include "kernels/linear_attention.h"
#include "parallel/layout.h"
#include "parallel/mask.h"
#include "runtime/dtype.h"

/// A plan is data: what each rank computes and exchanges, in order, written down before anything runs. The same plan is
/// proven (verify.h), printed (print.h), timed (simulate/) and run (execute/).
///
/// Execution model, one for all of them. A rank has one compute queue and three exchange lanes, each in program order. A
/// step starts when it heads its queue and the steps in `after` have finished. An exchange starts and ends as a whole; a
/// message moves once both its exchanges have started. Exchanges have phases that rise strictly along a program, both
/// ends of a message share phase and lane, and `after` points backward: so no transport can deadlock.
namespace periplus::plan {

using Rank = int;
using SlotId = std::int32_t;
using StepId = std::int32_t;
inline constexpr SlotId kNoSlot = -1;
inline constexpr int kPlanLanes = 3;

/// Who owns a slot's memory: the caller (input: read only; output, saved: written) or the workspace (scratch).
enum class Role : std::uint8_t { input, output, saved, scratch };

/// Named buffer of one rank, [rows][heads][width].
struct Slot {
  std::string name;
  Role role = Role::scratch;
  DType dtype = DType::f32;
  std::int64_t rows = 0, heads = 0, width = 0;
  std::int64_t offset = 0;  ///< Scratch only: byte offset in the workspace, 256-byte aligned.
  bool contiguous = true;   ///< Bound slots: whether the caller will bind a dense tensor. Scratch always is.
  std::int64_t bytes() const noexcept { return rows * heads * width * static_cast<std::int64_t>(size_of(dtype)); }
};

/// Row range x head range of a slot. kNoSlot: an operand that is absent.
struct View {
  SlotId slot = kNoSlot;
  std::int64_t row0 = 0, rows = 0, head0 = 0, heads = 0;
  bool present() const noexcept { return slot != kNoSlot; }
  bool empty() const noexcept { return rows == 0 || heads == 0; }
  /// `count` rows (or heads) of this view, from its own row (head) `first` on.
  View rows_at(std::int64_t first, std::int64_t count) const noexcept { return {slot, row0 + first, count, head0, heads}; }
  View heads_at(std::int64_t first, std::int64_t count) const noexcept { return {slot, row0, rows, head0 + first, count}; }
  friend bool operator==(const View&, const View&) = default;
};

/// read; write: old content is dead; add: content must be defined, the step folds into it.
enum class Mode : std::uint8_t { read, write, add };

struct Access {
  View view;
  Mode mode = Mode::read;
};

/// Contiguous in its slot: all heads, rows > 0. Never to the rank itself.
struct Message {
  Rank peer = 0;
  View view;
};

/// Meaning and operands of each op stand in ops.cpp, one row per op.
enum class Op : std::uint8_t {
  attend,
  attend_backward,
  merge,
  finish,
  delta,
  copy,
  add,
  exchange,
  unit_states,
  unit_states_backward,
  unit_scan,
  unit_apply,
  unit_apply_backward,
  split_elements,
  join_elements,
  mirror_decay,
  decay_states,
  add_mirrored,
  add_mirrored_backward,
  extend_values,
  cut_values,
  normalise,
  normalise_backward
};

/// [begin, begin + count) of one of the pools of the program.
struct Range {
  std::uint32_t begin = 0, count = 0;
  friend bool operator==(const Range&, const Range&) = default;
};

/// What a step is for, for people: "hop" 3.
struct Label {
  const char* text = "";  ///< A literal.
  int index = -1;
};

struct Step {
  Op op = Op::copy;
  std::int8_t lane = 0;  ///< exchange only. By convention: blocks 0, results and sums 1, between nodes 2
  kernels::Transition transition = kernels::Transition::identity;  ///< unit_* only: that of the elements
  bool reverse = false;                                            ///< unit_scan only
  bool mirrored = false;    ///< unit_apply* only: over the rows in falling order, `incoming` being what follows a unit
  std::int32_t phase = -1;  ///< exchange only
  Range accesses, bands, sends, receives, after;
  Range moves;  ///< copy only: none, or where the rows of the source go
  Range runs;   ///< unit_* but unit_scan, and what stands around them: rows and units count from those of the views
  Range folds;  ///< unit_scan only: elements and states likewise
  double scale = 1, softcap = 0;
  double epsilon = 0;  ///< normalise only
  Label label;
};

/// All steps of one rank. Pools are plain arrays that the ranges of the steps index.
struct Program {
  Rank rank = 0;
  std::vector<Slot> slots;
  std::vector<Step> steps;
  std::vector<Access> accesses;
  std::vector<Band> bands;
  std::vector<Message> sends, receives;
  std::vector<StepId> after;
  std::vector<RowMove> moves;
  std::vector<kernels::UnitRun> runs;
  std::vector<kernels::UnitFold> folds;
  std::int64_t workspace_bytes = 0;

  template <class T>
  std::span<const T> of(const std::vector<T>& pool, Range range) const {
    return std::span<const T>(pool).subspan(range.begin, range.count);
  }
  std::span<const Access> accesses_of(const Step& step) const { return of(accesses, step.accesses); }
  std::span<const Band> bands_of(const Step& step) const { return of(bands, step.bands); }
  std::span<const Message> sends_of(const Step& step) const { return of(sends, step.sends); }
  std::span<const Message> receives_of(const Step& step) const { return of(receives, step.receives); }
  std::span<const RowMove> moves_of(const Step& step) const { return of(moves, step.moves); }
  std::span<const kernels::UnitRun> runs_of(const Step& step) const { return of(runs, step.runs); }
  std::span<const kernels::UnitFold> folds_of(const Step& step) const { return of(folds, step.folds); }
  std::span<const StepId> after_of(const Step& step) const { return of(after, step.after); }

  const Slot& slot_of(const View& view) const { return slots[static_cast<std::size_t>(view.slot)]; }
  std::int64_t bytes_of(const View& view) const {
    const Slot& slot = slot_of(view);
    return view.rows * view.heads * slot.width * static_cast<std::int64_t>(size_of(slot.dtype));
  }
  std::int64_t bytes_sent() const;
  /// Throws InvalidArgument listing the names there are.
  SlotId find_slot(std::string_view name) const;
};

/// Index of the queue a step waits in: 0 compute, 1 + lane for exchanges.
inline constexpr int kQueues = 1 + kPlanLanes;
inline int queue_of(const Step& step) noexcept { return step.op == Op::exchange ? 1 + step.lane : 0; }

/// What a plan computes: softmax attention, or linear attention and the delta rule.
enum class Computes : std::uint8_t { softmax, linear };

/// What a plan says it computes; verify() holds it to that. Slots are known by name.
/// softmax  inputs q, k, v, dout, out, lse, dlse, sink; outputs out, lse (forward), dq, dk, dv, dsink (backward).
/// linear   inputs q, k, v, log_decay, beta, dout (backward); outputs out (forward), dq, dk, dv, dlog_decay,
///          dbeta (backward); what forward leaves for backward: incoming, and transitions, following, normaliser (with out) if they
///          are claimed. q_heads and kv_heads are equal; the mask is
///          not looked at.
struct Claim {
  SequenceLayout layout;
  Mask mask;
  int q_heads = 1, kv_heads = 1;
  bool backward = false;
  std::int64_t bytes_sent = -1;  ///< Sum over ranks by the strategy's closed formula; -1 where it is not exact.
  Computes computes = Computes::softmax;
  kernels::Transition transition = kernels::Transition::identity;             ///< linear only. dense: the delta rule
  bool decay = false;                                                         ///< linear only: log_decay is given
  bool keeps_transitions = false, bidirectional = false, normalises = false;  ///< linear only
};

struct Plan {
  std::vector<Program> programs;  ///< by rank
  Claim claim;
};

}  // namespace periplus::plan
