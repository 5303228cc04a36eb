#include "parallel/plan/builder.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

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
  // Sums of bytes over the messages of many ranks stay below 2^63.
  constexpr std::int64_t kMostBytes = std::int64_t{1} << 44;
  std::int64_t bytes = static_cast<std::int64_t>(size_of(dtype));
  bool fits = true;
  for (const std::int64_t size : {rows, heads, width})
    fits = fits && !__builtin_mul_overflow(bytes, std::max<std::int64_t>(size, 1), &bytes);
  if (!fits || bytes > kMostBytes) {
    throw InvalidArgument(fmt::format("plan: '{}' of rank {} would be {} x {} x {} elements of {}; at most {} TiB can be planned", name,
                                      rank(), rows, heads, width, to_string(dtype), kMostBytes >> 40));
  }
  program_.slots.push_back({std::move(name), role, dtype, rows, heads, width, 0, contiguous});
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

std::pair<Range, Range> ProgramBuilder::new_orders(std::span<const RowMove> moves) {
  std::vector<RowMove>& all = program_.moves;
  all.reserve(all.size() + 2 * moves.size());
  const Range there = append(all, moves), back{there.begin + there.count, there.count};
  for (const RowMove& move : moves) all.push_back(move.reversed());
  return {there, back};
}

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
  const auto keep = [&](std::span<const Message> messages, std::vector<Message>& pool) {
    const auto begin = static_cast<std::uint32_t>(pool.size());
    for (const Message& m : messages) {
      if (m.peer != rank() && !m.view.empty()) pool.push_back(m);
    }
    return Range{begin, static_cast<std::uint32_t>(pool.size()) - begin};
  };
  const Range out = keep(sends, program_.sends), in = keep(receives, program_.receives);
  if (out.count + in.count == 0) return;
  Step& step = begin_step(Op::exchange, label);
  step.lane = static_cast<std::int8_t>(lane);
  step.phase = phase;
  step.sends = out;
  step.receives = in;
}

Step& ProgramBuilder::begin_step(Op op, Label label) {
  Step& step = program_.steps.emplace_back();  // in place: steps are large
  step.op = op;
  step.label = label;
  return step;
}

void ProgramBuilder::emit(Op op, Label label, std::span<const Access> accesses, std::span<const Band> bands, double scale, double softcap) {
  Step& step = begin_step(op, label);
  step.accesses = append(program_.accesses, accesses);
  step.bands = keep(bands);
  step.scale = scale;
  step.softcap = softcap;
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

Program ProgramBuilder::build(std::span<const Program> earlier) {
  waits_.write(program_, earlier);
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
  if (now != std::exchange(claim_, now)) pair_bands_.clear(), of_claim_.reset();
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
  phase_ = 0;
  names_are_new_ = false;
  last_bands_ = {};
}

}  // namespace periplus::plan
