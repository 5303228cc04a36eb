#include "parallel/plan/verify_form.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "parallel/plan/arena.h"
#include "parallel/plan/ops.h"
#include "parallel/plan/verify_units_form.h"

namespace periplus::plan {
namespace {

class FormCheck {
 public:
  FormCheck(const Program& program, int ranks, Proper& proper, std::vector<std::string>& failures)
      : program_(program), ranks_(ranks), proper_(proper), failures_(failures) {}

  void run() {
    for (const Slot& slot : program_.slots) check_slot(slot);
    check_names();
    for (id_ = 0; id_ < static_cast<StepId>(program_.steps.size()); ++id_) {
      const Step& step = program_.steps[static_cast<std::size_t>(id_)];
      if (!check_ranges(step)) continue;
      for (const StepId other : program_.after_of(step))
        require(other >= 0 && other < id_, "waits for step {}, which is not earlier", other);
      if (step.op == Op::exchange) {
        check_exchange(step);
      } else {
        check_operands(step);
      }
    }
  }

 private:
  template <class... Args>
  [[gnu::noinline, gnu::cold]] void fail(fmt::format_string<Args...> what, Args&&... args) {
    failures_.push_back(fmt::format("rank {} step {}: {}", program_.rank, id_, fmt::format(what, std::forward<Args>(args)...)));
  }
  template <class... Args>
  void require(bool holds, fmt::format_string<Args...> what, Args&&... args) {
    if (!holds) [[unlikely]]
      fail(what, std::forward<Args>(args)...);
  }

  /// The programs of a plan mostly have the same.
  void check_names() {
    if (std::ranges::equal(program_.slots, proper_.named, {}, &Slot::name, &Slot::name)) return;
    std::vector<std::string_view> names;
    for (const Slot& slot : program_.slots) names.push_back(slot.name);
    std::ranges::sort(names);
    const auto twice = std::ranges::adjacent_find(names);
    require(twice == names.end(), "two slots are called '{}'", twice == names.end() ? std::string_view() : *twice);
    if (twice == names.end()) proper_.named = program_.slots;
  }

  void check_slot(const Slot& slot) {
    if (slot.role != Role::scratch) return;
    require(slot.offset >= 0 && slot.offset % kArenaAlignment == 0 && slot.offset + slot.bytes() <= program_.workspace_bytes,
            "scratch '{}' of {} bytes at {} does not fit the workspace of {} bytes", slot.name, slot.bytes(), slot.offset,
            program_.workspace_bytes);
  }

  bool check_ranges(const Step& step) {
    const auto fits = [](Range range, std::size_t size) { return std::size_t{range.begin} + range.count <= size; };
    const bool fit = fits(step.accesses, sizes_.accesses) && fits(step.bands, sizes_.bands) && fits(step.sends, sizes_.sends) &&
                     fits(step.receives, sizes_.receives) && fits(step.after, sizes_.after) && fits(step.moves, sizes_.moves) &&
                     fits(step.runs, sizes_.runs) && fits(step.folds, sizes_.folds);
    require(fit, "ranges leave the pools of the program");
    if (!fit) return false;
    require(step.op == Op::copy || step.moves.count == 0, "{} moves rows", info(step.op).name);
    require(step.op == Op::exchange || step.sends.count + step.receives.count == 0, "{} has messages", info(step.op).name);
    return true;
  }

  bool exists(const View& view) const { return static_cast<std::size_t>(view.slot) < slots_; }
  static bool fits(const View& view, const Slot& slot) {
    return (view.row0 | view.rows | view.head0 | view.heads) >= 0 && view.row0 + view.rows <= slot.rows &&
           view.head0 + view.heads <= slot.heads;
  }
  /// Whether there is nothing to say about a message or operand: nearly always, and known sooner than what.
  bool is_proper(const Message& m, bool received) const {
    if (!exists(m.view)) return false;
    const Slot& slot = program_.slot_of(m.view);
    return fits(m.view, slot) && m.view.rows > 0 && m.view.heads == slot.heads && slot.contiguous && m.peer >= 0 && m.peer < ranks_ &&
           m.peer != program_.rank && !(received && slot.role == Role::input);
  }
  static bool is_proper(const Access& access, const Slot& slot, const Operand& operand) {
    return fits(access.view, slot) && operand.modes.allow(access.mode) && (access.mode == Mode::read || slot.role != Role::input);
  }

  bool check_view(const View& view, std::string_view what) {
    require(exists(view), "{} names slot {}, which does not exist", what, view.slot);
    if (!exists(view)) return false;
    const Slot& slot = program_.slot_of(view);
    require(fits(view, slot), "{} takes rows {}+{} heads {}+{} of '{}', which has {} rows and {} heads", what, view.row0, view.rows,
            view.head0, view.heads, slot.name, slot.rows, slot.heads);
    return fits(view, slot);
  }

  void check_message(const Message& message, bool received) {
    if (is_proper(message, received)) return;
    const std::string_view what = received ? "a receive" : "a send";
    if (!check_view(message.view, what)) return;
    const Slot& slot = program_.slot_of(message.view);
    require(!received || slot.role != Role::input, "receives into the input '{}'", slot.name);
    require(message.peer >= 0 && message.peer < ranks_ && message.peer != program_.rank, "{} has peer {} of {} ranks", what, message.peer,
            ranks_);
    require(message.view.rows > 0 && message.view.heads == slot.heads && slot.contiguous,
            "{} is not a contiguous part of '{}' with all heads", what, slot.name);
  }

  void check_exchange(const Step& step) {
    require(step.lane >= 0 && step.lane < kPlanLanes, "lane {} does not exist", step.lane);
    require(step.accesses.count == 0, "an exchange has operands");
    require(step.phase > last_phase_, "phase {} does not rise above {}", step.phase, last_phase_);
    last_phase_ = step.phase;
    for (const Message& m : program_.sends_of(step)) check_message(m, false);
    for (const Message& m : program_.receives_of(step)) check_message(m, true);
  }

  void check_operands(const Step& step) {
    const OpInfo& op = info(step.op);
    const auto accesses = program_.accesses_of(step);
    require(accesses.size() == op.operands.size(), "{} has {} operands instead of {}", op.name, accesses.size(), op.operands.size());
    if (accesses.size() != op.operands.size()) return;
    std::array<std::optional<DType>, 3> types;  // by OperandType: one of storage, and the accumulator type that belongs to it
    for (std::size_t i = 0; i < accesses.size(); ++i) {
      const Operand& operand = op.operands[i];
      const View& view = accesses[i].view;
      if (!exists(view) || !is_proper(accesses[i], program_.slot_of(view), operand)) {
        if (!check_operand(op, operand, accesses[i])) return;
        if (!view.present()) continue;
      }
      const DType dtype = program_.slot_of(view).dtype;
      std::optional<DType>& expected = types[static_cast<std::size_t>(operand.type)];
      if (!expected) expected = dtype;
      if (dtype != *expected && operand.type != OperandType::any) [[unlikely]]
        fail("operand {} of {} is {} where {} is needed", operand.name, op.name, to_string(dtype), to_string(*expected));
    }
    const auto& [storage, accumulator, any] = types;
    if (storage && accumulator && *accumulator != accumulator_of(*storage)) [[unlikely]] {
      fail("{} of {} operands keeps its sums in {} instead of {}", op.name, to_string(*storage), to_string(*accumulator),
           to_string(accumulator_of(*storage)));
    }
    check_shapes(step, accesses);
  }

  /// What is wrong with an operand that is not proper. Returns whether the others can be looked at.
  bool check_operand(const OpInfo& op, const Operand& operand, const Access& access) {
    if (!access.view.present()) {
      require(operand.optional, "{} lacks operand {}", op.name, operand.name);
      return operand.optional;
    }
    if (!check_view(access.view, operand.name)) return false;
    require(operand.modes.allow(access.mode), "operand {} of {} has mode {}", operand.name, op.name, letter(access.mode));
    require(access.mode == Mode::read || program_.slot_of(access.view).role != Role::input, "writes the input '{}'",
            program_.slot_of(access.view).name);
    return true;
  }

  void like(const Access& a, const Access& b, bool same_width, std::string_view what) {
    if (!a.view.present() || !b.view.present()) return;
    const bool equal = a.view.rows == b.view.rows && a.view.heads == b.view.heads &&
                       (!same_width || program_.slot_of(a.view).width == program_.slot_of(b.view).width);
    require(equal, "{} differ in shape", what);
  }

  void check_sink(const Access& sink, const Access& queries) {
    require(!sink.view.present() || (sink.view.rows == 1 && sink.view.heads == queries.view.heads),
            "{} rows and {} heads of sinks for {} query heads", sink.view.rows, sink.view.heads, queries.view.heads);
    one_number(sink, "sink");
  }

  /// Of each row and head.
  void one_number(const Access& access, std::string_view what) {
    if (!access.view.present()) return;
    const std::int64_t width = program_.slot_of(access.view).width;
    require(width == 1, "{} is {} wide instead of 1", what, width);
  }

  /// Every row of both sides once. Copies share moves, and the ranks of a group have equal ones.
  void check_moves(const Step& step, std::int64_t rows) {
    const auto moves = program_.moves_of(step);
    if (moves.empty() || (step.moves == checked_moves_ && rows == moved_rows_) || proper_.contains(moves, rows)) return;
    for (const RowMove& move : moves) {
      const bool good = move.rows > 0 && move.fits(rows, rows);
      require(good, "moves {} rows at {} to {}, strides {} and {}, of {} rows", move.rows, move.from, move.to, move.from_stride,
              move.to_stride, rows);
      if (!good) return;
    }
    std::vector<RowMove> sorted = without_strides(moves);
    for (auto side : {&RowMove::from, &RowMove::to}) {
      std::ranges::sort(sorted, {}, side);
      std::int64_t next = 0;
      for (const RowMove& move : sorted) {
        require(move.*side == next, "moves {} rows at {} where {} is next", move.rows, move.*side, next);
        if (move.*side != next) return;
        next += move.rows;
      }
      require(next == rows, "moves {} of {} rows", next, rows);
      if (next != rows) return;
    }
    proper_.add(moves, rows);
    checked_moves_ = step.moves, moved_rows_ = rows;
  }

  /// Steps that differ in heads share their bands, which are looked at once.
  void check_bands(const Step& step, std::int64_t queries, std::int64_t keys) {
    const CheckedBands now{step.bands, queries, keys};
    if (now == checked_bands_) return;
    checked_bands_ = now;
    for (const Band& band : program_.bands_of(step)) {
      const bool inside = band.q0 >= 0 && band.q1 <= queries && band.k0 >= 0 && band.k1 <= keys;
      require(inside && band.q0 < band.q1 && band.k0 < band.k1, "band q {}:{} k {}:{} leaves the views of {} rows and {} keys", band.q0,
              band.q1, band.k0, band.k1, queries, keys);
    }
  }

  void check_shapes(const Step& step, std::span<const Access> a) {
    switch (step.op) {
      case Op::attend:
      case Op::attend_backward: {
        using namespace attend_operand;
        like(a[q], a[out], false, "q and out");
        like(a[q], a[lse], false, "q and lse");
        like(a[k], a[v], false, "k and v");
        require(a[k].view.heads > 0 && a[q].view.heads % a[k].view.heads == 0, "{} query heads on {} KV heads", a[q].view.heads,
                a[k].view.heads);
        require(program_.slot_of(a[q].view).width == program_.slot_of(a[k].view).width, "q and k differ in width");
        require(program_.slot_of(a[v].view).width == program_.slot_of(a[out].view).width, "v and out differ in width");
        one_number(a[lse], "lse");
        if (step.op == Op::attend_backward) {
          namespace b = attend_backward_operand;
          like(a[q], a[b::delta], false, "q and delta");
          one_number(a[b::delta], "delta");
          like(a[q], a[b::dq], true, "q and dq");
          like(a[k], a[b::dk], true, "k and dk");
          like(a[v], a[b::dv], true, "v and dv");
        }
        check_bands(step, a[q].view.rows, a[k].view.rows);
        break;
      }
      case Op::merge:
        like(a[merge_operand::part_out], a[merge_operand::out], true, "part and state");
        like(a[merge_operand::part_lse], a[merge_operand::lse], true, "part and state");
        one_number(a[merge_operand::lse], "lse");
        break;
      case Op::finish:
        like(a[finish_operand::state_out], a[finish_operand::out], true, "state and out");
        like(a[finish_operand::state_lse], a[finish_operand::lse], true, "state and lse");
        like(a[finish_operand::out], a[finish_operand::lse], false, "out and lse");
        one_number(a[finish_operand::lse], "lse");
        check_sink(a[finish_operand::sink], a[finish_operand::out]);
        break;
      case Op::delta:
        like(a[delta_operand::dout], a[delta_operand::out], true, "dout and out");
        like(a[delta_operand::dout], a[delta_operand::lse], false, "dout and lse");
        like(a[delta_operand::dout], a[delta_operand::dlse], false, "dout and dlse");
        like(a[delta_operand::dout], a[delta_operand::delta], false, "dout and delta");
        for (const std::size_t i : {delta_operand::lse, delta_operand::dlse, delta_operand::delta})
          one_number(a[i], info(step.op).operands[i].name);
        check_sink(a[delta_operand::sink], a[delta_operand::dout]);
        check_sink(a[delta_operand::dsink], a[delta_operand::dout]);
        break;
      case Op::copy:
        check_moves(step, a[transfer_operand::destination].view.rows);
        [[fallthrough]];
      case Op::add:
        like(a[transfer_operand::source], a[transfer_operand::destination], true, "source and destination");
        break;
      default: {
        const std::string failure = unit_form_failure(program_, step);
        require(failure.empty(), "{}", failure);
      }
    }
  }

  const Program& program_;
  struct Sizes {
    std::size_t accesses, bands, sends, receives, after, moves, runs, folds;
  };
  const Sizes sizes_{program_.accesses.size(), program_.bands.size(), program_.sends.size(), program_.receives.size(),
                     program_.after.size(),    program_.moves.size(), program_.runs.size(),  program_.folds.size()};  ///< Of the pools.
  const std::size_t slots_ = program_.slots.size();
  int ranks_;
  Proper& proper_;
  std::vector<std::string>& failures_;
  Range checked_moves_;
  std::int64_t moved_rows_ = 0;
  struct CheckedBands {
    Range range;
    std::int64_t queries = 0, keys = 0;
    friend bool operator==(const CheckedBands&, const CheckedBands&) = default;
  };
  CheckedBands checked_bands_;
  StepId id_ = -1;
  std::int32_t last_phase_ = -1;
};

}  // namespace

bool Proper::contains(std::span<const RowMove> moves, std::int64_t rows) const {
  return std::ranges::any_of(known_, [&](const Known& known) { return known.rows == rows && equal(known.moves, moves); });
}

void check_form(const Program& program, int ranks, Proper& proper, std::vector<std::string>& failures) {
  FormCheck(program, ranks, proper, failures).run();
}

}  // namespace periplus::plan
