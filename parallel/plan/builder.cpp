#include "parallel/plan/builder.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include "parallel/plan/arena.h"
#include "parallel/plan/ops.h"
#include "parallel/plan/pool.h"
#include "runtime/error.h"

namespace periplus::plan {

View RotatingScratch::next(std::int64_t rows) {
  View view = views_[turn_++ % views_.size()];
  if (rows > view.rows) throw InternalError(fmt::format("rotating scratch holds {} rows, {} asked for", view.rows, rows));
  view.rows = rows;
  return view;
}

View ProgramBuilder::slot(std::string name, Role role, DType dtype, std::int64_t rows, std::int64_t heads, std::int64_t width,
                          bool contiguous) {
  const auto id = static_cast<SlotId>(program_.slots.size());
  // The programs of a plan mostly have slots of the same names, which were unlike then.
  const auto place = static_cast<std::size_t>(id);
  if (names_are_new_ || place >= names_.size() || names_[place] != name) names_are_new_ = true;
  if (names_are_new_ && std::ranges::find(program_.slots, name, &Slot::name) != program_.slots.end()) {
    throw InternalError(fmt::format("plan: two slots of rank {} are called '{}'", rank(), name));
  }
  program_.slots.push_back({std::move(name), role, dtype, rows, heads, width, 0, contiguous});
  history_.add_slot(program_.slots.size());
  return {id, 0, rows, 0, heads};
}

RotatingScratch ProgramBuilder::rotating_scratch(std::string_view name, int count, DType dtype, std::int64_t rows, std::int64_t heads,
                                                 std::int64_t width) {
  std::vector<View> views;
  views.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i)
    views.push_back(scratch(std::string(name).append(1, '.').append(std::to_string(i)), dtype, rows, heads, width));
  return RotatingScratch(std::move(views));
}

View ProgramBuilder::sendable(View view, std::string name) {
  if (is_sendable(view)) return view;
  const Slot from = program_.slot_of(view);
  const View packed = scratch(std::move(name), from.dtype, view.rows, view.heads, from.width);
  copy({"pack"}, view, packed);
  return packed;
}

void ProgramBuilder::attend(Label label, const AttendOperands& on, std::span<const Band> bands, double scale, double softcap, Mode mode) {
  if (on.q.empty() || (mode == Mode::add && bands.empty())) return;
  const Access accesses[] = {{on.q, Mode::read}, {on.k, Mode::read}, {on.v, Mode::read}, {on.out, mode}, {on.lse, mode}};
  emit(Op::attend, label, accesses, bands, scale, softcap);
}

void ProgramBuilder::attend_backward(Label label, const AttendBackwardOperands& on, std::span<const Band> bands, double scale,
                                     double softcap, Mode dq_mode) {
  if (on.q.empty() && on.k.empty()) return;
  const Access accesses[] = {{on.q, Mode::read},     {on.k, Mode::read}, {on.v, Mode::read},   {on.dout, Mode::read}, {on.lse, Mode::read},
                             {on.delta, Mode::read}, {on.dq, dq_mode},   {on.dk, Mode::write}, {on.dv, Mode::write}};
  emit(Op::attend_backward, label, accesses, bands, scale, softcap);
}

void ProgramBuilder::merge(Label label, View part_out, View part_lse, View out, View lse) {
  if (out.empty()) return;
  const Access accesses[] = {{part_out, Mode::read}, {part_lse, Mode::read}, {out, Mode::add}, {lse, Mode::add}};
  emit(Op::merge, label, accesses);
}

void ProgramBuilder::finish(Label label, View state_out, View state_lse, View sink, View out, View lse) {
  if (out.empty()) return;
  const Access accesses[] = {{state_out, Mode::read}, {state_lse, Mode::read}, {sink, Mode::read}, {out, Mode::write}, {lse, Mode::write}};
  emit(Op::finish, label, accesses);
}

void ProgramBuilder::delta(Label label, const DeltaOperands& on) {
  // With a sink the step also runs on a rank without rows: its part of dsink is zero and must be written.
  if (on.delta.empty() && !on.dsink.present()) return;
  const Access accesses[] = {{on.dout, Mode::read}, {on.out, Mode::read},    {on.lse, Mode::read},   {on.dlse, Mode::read},
                             {on.sink, Mode::read}, {on.delta, Mode::write}, {on.dsink, Mode::write}};
  emit(Op::delta, label, accesses);
}

void ProgramBuilder::copy(Label label, View source, View destination) {
  if (destination.empty()) return;
  const Access accesses[] = {{source, Mode::read}, {destination, Mode::write}};
  emit(Op::copy, label, accesses);
}

Range ProgramBuilder::new_order(std::span<const RowMove> moves) { return append(program_.moves, moves); }

void ProgramBuilder::copy(Label label, View source, View destination, Range order) {
  if (destination.empty()) return;
  copy(label, source, destination);
  program_.steps.back().moves = order;
}

void ProgramBuilder::add(Label label, View source, View destination) {
  if (destination.empty()) return;
  const Access accesses[] = {{source, Mode::read}, {destination, Mode::add}};
  emit(Op::add, label, accesses);
}

void ProgramBuilder::exchange(Label label, int lane, std::span<const Message> sends, std::span<const Message> receives) {
  const std::int32_t phase = phase_++;
  const StepId id = static_cast<StepId>(program_.steps.size());
  touched_.clear();
  const auto keep = [&](std::span<const Message> messages, std::vector<Message>& pool, Mode mode) {
    const auto begin = static_cast<std::uint32_t>(pool.size());
    for (const Message& m : messages) {
      if (m.peer == rank() || m.view.empty()) continue;
      pool.push_back(m);
      append_joined(touched_, 0, m.view, mode);
    }
    return Range{begin, static_cast<std::uint32_t>(pool.size()) - begin};
  };
  const Range out = keep(sends, program_.sends, Mode::read), in = keep(receives, program_.receives, Mode::write);
  if (touched_.empty()) return;
  begin_step(Op::exchange, label);
  Step& step = program_.steps.back();
  step.lane = static_cast<std::int8_t>(lane);
  step.phase = phase;
  step.sends = out;
  step.receives = in;
  order(id, touched_);
}

StepId ProgramBuilder::begin_step(Op op, Label label) {
  Step& step = program_.steps.emplace_back();  // in place: steps are large
  step.op = op;
  step.label = label;
  return static_cast<StepId>(program_.steps.size()) - 1;
}

void ProgramBuilder::emit(Op op, Label label, std::span<const Access> accesses, std::span<const Band> bands, double scale, double softcap) {
  const StepId id = begin_step(op, label);
  Step& step = program_.steps.back();
  step.accesses = append(program_.accesses, accesses);
  step.bands = keep(bands);
  step.scale = scale;
  step.softcap = softcap;
  order(id, accesses);
}

Range ProgramBuilder::keep(std::span<const Band> bands) {
  if (bands.empty()) return {};
  // Steps that differ in heads only have equal bands, and follow each other.
  const std::span<const Band> last = program_.of(program_.bands, last_bands_);
  static_assert(std::has_unique_object_representations_v<Band>);
  const bool same = bands.size() == last.size() && std::memcmp(bands.data(), last.data(), bands.size_bytes()) == 0;
  if (!same) last_bands_ = append(program_.bands, bands);
  return last_bands_;
}

void ProgramBuilder::order(StepId step, std::span<const Access> accesses) {
  const int queue = queue_of(program_.steps.back());
  orders_.begin(queue);
  const std::span<const Access> distinct = history_.distinct(accesses, [this](const View& view) { return may_conflict(view); });
  std::array<StepId, kQueues> conflicts = latest_conflicts(step, distinct);
  Range& after = program_.steps.back().after;
  after.begin = static_cast<std::uint32_t>(program_.after.size());
  // Latest first: waiting for a later step may already cover an earlier one, never the other way round.
  for (auto latest = std::ranges::max_element(conflicts); *latest >= 0; latest = std::ranges::max_element(conflicts)) {
    const StepId other = std::exchange(*latest, -1);
    if (orders_.ordered(other, step)) continue;
    program_.after.push_back(other);
    ++after.count;
    orders_.wait_for(other);
  }
  for (const Access& access : distinct) history_.of(access.view).remember(access.view, access.mode, step, queue);
}

std::array<StepId, kQueues> ProgramBuilder::latest_conflicts(StepId step, std::span<const Access> accesses) const {
  std::array<StepId, kQueues> latest = no_steps();
  for (const Access& access : accesses) {
    history_.of(access.view).for_unordered(access.view, access.mode, step, orders_, [&](StepId other) {
      StepId& last = latest[static_cast<std::size_t>(orders_.queue_of(other))];
      last = std::max(last, other);
    });
  }
  return latest;
}

void ProgramBuilder::place_scratch() {
  scratch_ids_.clear(), scratch_bytes_.clear();
  for (std::size_t i = 0; i < program_.slots.size(); ++i) {
    if (program_.slots[i].role != Role::scratch) continue;
    if (!history_.lifetime(i).used()) program_.slots[i].rows = 0;  // takes no memory
    scratch_ids_.push_back(static_cast<SlotId>(i));
    scratch_bytes_.push_back(program_.slots[i].bytes());
  }
  std::vector<const Lifetime*> lifetimes;
  lifetimes.reserve(scratch_ids_.size());
  for (const SlotId id : scratch_ids_) lifetimes.push_back(&history_.lifetime(static_cast<std::size_t>(id)));
  const auto apart = [&](int a, int b) {
    return lifetimes[static_cast<std::size_t>(a)]->apart(*lifetimes[static_cast<std::size_t>(b)], orders_);
  };
  scratch_offsets_.resize(scratch_ids_.size());
  program_.workspace_bytes = place_blocks(scratch_bytes_, apart, scratch_offsets_);
  for (std::size_t i = 0; i < scratch_ids_.size(); ++i)
    program_.slots[static_cast<std::size_t>(scratch_ids_[i])].offset = scratch_offsets_[i];
}

Program ProgramBuilder::build() {
  place_scratch();
  if (std::exchange(names_are_new_, false)) {
    names_.clear();
    for (const Slot& slot : program_.slots) names_.push_back(slot.name);
  }
  const Program& p = program_;
  last_ = {p.slots.size(), p.steps.size(),    p.accesses.size(), p.bands.size(),
           p.sends.size(), p.receives.size(), p.after.size(),    p.moves.size()};
  return std::move(program_);
}

void ProgramBuilder::begin_plan(const Claim& claim) {
  common_.reset();
  const std::array<std::uint64_t, 2> now{claim.layout.digest(), claim.mask.digest()};
  if (now != std::exchange(claim_, now)) pair_bands_.clear();
}

void ProgramBuilder::restart(Rank rank, Program&& memory) {
  program_ = std::move(memory);
  Program& p = program_;
  p.rank = rank, p.workspace_bytes = 0;
  p.slots.clear(), p.steps.clear(), p.accesses.clear(), p.bands.clear(), p.sends.clear(), p.receives.clear();
  p.after.clear(), p.moves.clear(), p.runs.clear(), p.folds.clear();
  program_.slots.reserve(last_.slots), program_.steps.reserve(last_.steps), program_.accesses.reserve(last_.accesses);
  program_.bands.reserve(last_.bands), program_.sends.reserve(last_.sends), program_.receives.reserve(last_.receives);
  program_.after.reserve(last_.after), program_.moves.reserve(last_.moves);
  history_.clear(0);
  phase_ = 0;
  names_are_new_ = false;
  last_bands_ = {};
  orders_.clear();
}

}  // namespace periplus::plan
