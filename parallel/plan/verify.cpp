#include "parallel/plan/verify.h"

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "parallel/plan/arena.h"
#include "parallel/plan/ops.h"
#include "parallel/plan/order.h"
#include "parallel/plan/verify_provenance.h"

namespace periplus::plan {
namespace {

constexpr std::size_t kMostFailures = 8;

/// Everything a step touches, messages included.
void collect_accesses(const Program& program, const Step& step, std::vector<Access>& accesses) {
  accesses.clear();
  for (const Access& access : program.accesses_of(step)) {
    if (access.view.present()) accesses.push_back(access);
  }
  for (const Message& message : program.sends_of(step)) accesses.push_back({message.view, Mode::read});
  for (const Message& message : program.receives_of(step)) accesses.push_back({message.view, Mode::write});
}

/// Part 1 for one program.
class FormCheck {
 public:
  FormCheck(const Program& program, int ranks, std::vector<std::string>& failures)
      : program_(program), ranks_(ranks), failures_(failures) {}

  void run() {
    std::vector<std::string_view> names;
    for (const Slot& slot : program_.slots) {
      check_slot(slot);
      names.push_back(slot.name);
    }
    std::ranges::sort(names);
    const auto twice = std::ranges::adjacent_find(names);
    require(twice == names.end(), "two slots are called '{}'", twice == names.end() ? std::string_view() : *twice);
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
  void require(bool holds, fmt::format_string<Args...> what, Args&&... args) {
    if (holds) return;
    failures_.push_back(fmt::format("rank {} step {}: {}", program_.rank, id_, fmt::format(what, std::forward<Args>(args)...)));
  }

  void check_slot(const Slot& slot) {
    if (slot.role != Role::scratch) return;
    require(slot.offset >= 0 && slot.offset % kArenaAlignment == 0 && slot.offset + slot.bytes() <= program_.workspace_bytes,
            "scratch '{}' of {} bytes at {} does not fit the workspace of {} bytes", slot.name, slot.bytes(), slot.offset,
            program_.workspace_bytes);
  }

  bool check_ranges(const Step& step) {
    const auto fits = [](Range range, const auto& pool) { return range.begin <= pool.size() && range.count <= pool.size() - range.begin; };
    const bool fit = fits(step.accesses, program_.accesses) && fits(step.bands, program_.bands) && fits(step.sends, program_.sends) &&
                     fits(step.receives, program_.receives) && fits(step.after, program_.after) && fits(step.moves, program_.moves);
    require(fit, "ranges leave the pools of the program");
    if (!fit) return false;
    require(step.op == Op::copy || step.moves.count == 0, "{} moves rows", info(step.op).name);
    require(step.op == Op::exchange || step.sends.count + step.receives.count == 0, "{} has messages", info(step.op).name);
    return true;
  }

  bool check_view(const View& view, std::string_view what) {
    const bool slot_exists = view.slot >= 0 && view.slot < static_cast<SlotId>(program_.slots.size());
    require(slot_exists, "{} names slot {}, which does not exist", what, view.slot);
    if (!slot_exists) return false;
    const Slot& slot = program_.slot_of(view);
    const bool fits = view.row0 >= 0 && view.rows >= 0 && view.row0 + view.rows <= slot.rows && view.head0 >= 0 && view.heads >= 0 &&
                      view.head0 + view.heads <= slot.heads;
    require(fits, "{} takes rows {}+{} heads {}+{} of '{}', which has {} rows and {} heads", what, view.row0, view.rows, view.head0,
            view.heads, slot.name, slot.rows, slot.heads);
    return fits;
  }

  void check_message(const Message& message, std::string_view what) {
    if (!check_view(message.view, what)) return;
    const Slot& slot = program_.slot_of(message.view);
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
    for (const Message& m : program_.sends_of(step)) check_message(m, "a send");
    for (const Message& m : program_.receives_of(step)) {
      check_message(m, "a receive");
      require(program_.slot_of(m.view).role != Role::input, "receives into the input '{}'", program_.slot_of(m.view).name);
    }
  }

  void check_operands(const Step& step) {
    const OpInfo& op = info(step.op);
    const auto accesses = program_.accesses_of(step);
    require(accesses.size() == op.operands.size(), "{} has {} operands instead of {}", op.name, accesses.size(), op.operands.size());
    if (accesses.size() != op.operands.size()) return;
    for (std::size_t i = 0; i < accesses.size(); ++i) {
      const Operand& operand = op.operands[i];
      if (!accesses[i].view.present()) {
        require(operand.optional, "{} lacks operand {}", op.name, operand.name);
        continue;
      }
      if (!check_view(accesses[i].view, operand.name)) return;
      require(operand.modes.find(letter(accesses[i].mode)) != std::string_view::npos, "operand {} of {} has mode {}", operand.name, op.name,
              letter(accesses[i].mode));
      require(accesses[i].mode == Mode::read || program_.slot_of(accesses[i].view).role != Role::input, "writes the input '{}'",
              program_.slot_of(accesses[i].view).name);
    }
    check_types(op, accesses);
    check_shapes(step, accesses);
  }

  /// One storage type, and the accumulator type that belongs to it.
  void check_types(const OpInfo& op, std::span<const Access> accesses) {
    std::optional<DType> storage, accumulator;
    for (std::size_t i = 0; i < accesses.size(); ++i) {
      const OperandType type = op.operands[i].type;
      if (!accesses[i].view.present() || type == OperandType::any) continue;
      const DType dtype = program_.slot_of(accesses[i].view).dtype;
      std::optional<DType>& expected = type == OperandType::storage ? storage : accumulator;
      if (!expected) expected = dtype;
      require(dtype == *expected, "operand {} of {} is {} where {} is needed", op.operands[i].name, op.name, to_string(dtype),
              to_string(*expected));
    }
    if (storage && accumulator) {
      require(*accumulator == accumulator_of(*storage), "{} of {} operands keeps its sums in {} instead of {}", op.name,
              to_string(*storage), to_string(*accumulator), to_string(accumulator_of(*storage)));
    }
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
  }

  /// Every row of both sides once. Copies share moves, which are looked at once.
  void check_moves(const Step& step, std::int64_t rows) {
    const auto moves = program_.moves_of(step);
    const bool known = std::ranges::any_of(checked_moves_, [&](const CheckedMoves& checked) {
      return checked.range.begin == step.moves.begin && checked.range.count == step.moves.count && checked.rows == rows;
    });
    if (moves.empty() || known) return;
    std::vector<RowMove> sorted(moves.begin(), moves.end());
    for (auto side : {&RowMove::from, &RowMove::to}) {
      std::ranges::sort(sorted, {}, side);
      std::int64_t next = 0;
      for (const RowMove& move : sorted) {
        require(move.*side == next && move.rows > 0, "moves {} rows at {} where {} is next", move.rows, move.*side, next);
        if (move.*side != next || move.rows <= 0) return;
        next += move.rows;
      }
      require(next == rows, "moves {} of {} rows", next, rows);
      if (next != rows) return;
    }
    checked_moves_.push_back({step.moves, rows});
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
        if (step.op == Op::attend_backward) {
          namespace b = attend_backward_operand;
          like(a[q], a[b::delta], false, "q and delta");
          like(a[q], a[b::dq], true, "q and dq");
          like(a[k], a[b::dk], true, "k and dk");
          like(a[v], a[b::dv], true, "v and dv");
        }
        for (const Band& band : program_.bands_of(step)) {
          require(band.q0 >= 0 && band.q1 <= a[q].view.rows && band.k0 >= 0 && band.k1 <= a[k].view.rows && band.q0 < band.q1 &&
                      band.k0 < band.k1,
                  "band q {}:{} k {}:{} leaves the views of {} rows and {} keys", band.q0, band.q1, band.k0, band.k1, a[q].view.rows,
                  a[k].view.rows);
        }
        break;
      }
      case Op::merge:
        like(a[merge_operand::part_out], a[merge_operand::out], true, "part and state");
        like(a[merge_operand::part_lse], a[merge_operand::lse], true, "part and state");
        break;
      case Op::finish:
        like(a[finish_operand::state_out], a[finish_operand::out], true, "state and out");
        like(a[finish_operand::state_lse], a[finish_operand::lse], true, "state and lse");
        like(a[finish_operand::out], a[finish_operand::lse], false, "out and lse");
        check_sink(a[finish_operand::sink], a[finish_operand::out]);
        break;
      case Op::delta:
        like(a[delta_operand::dout], a[delta_operand::out], true, "dout and out");
        like(a[delta_operand::dout], a[delta_operand::lse], false, "dout and lse");
        like(a[delta_operand::dout], a[delta_operand::dlse], false, "dout and dlse");
        like(a[delta_operand::dout], a[delta_operand::delta], false, "dout and delta");
        check_sink(a[delta_operand::sink], a[delta_operand::dout]);
        check_sink(a[delta_operand::dsink], a[delta_operand::dout]);
        break;
      case Op::copy:
        check_moves(step, a[transfer_operand::destination].view.rows);
        [[fallthrough]];
      case Op::add:
        like(a[transfer_operand::source], a[transfer_operand::destination], true, "source and destination");
        break;
      case Op::exchange:
        break;
    }
  }

  const Program& program_;
  int ranks_;
  std::vector<std::string>& failures_;
  struct CheckedMoves {
    Range range;
    std::int64_t rows;
  };
  std::vector<CheckedMoves> checked_moves_;
  StepId id_ = -1;
  std::int32_t last_phase_ = -1;
};

/// Part 2. A message as one of its ends sees it.
struct Letter {
  std::int32_t phase;
  std::int32_t order;  ///< k-th of its pair and phase
  std::int32_t lane;
  std::int64_t bytes;
  DType dtype;
  StepId step;
  auto key() const { return std::pair(phase, order); }
  auto content() const { return std::tuple(lane, bytes, dtype); }
};

/// All messages as their senders or receivers see them, by ordered pair of ranks; those of a pair by rising phase and order,
/// because phases rise along programs.
class Letters {
 public:
  Letters(const Plan& plan, bool sent) : ranks_(plan.programs.size()), first_(ranks_ * ranks_ + 1, 0) {
    for_messages(plan, sent, [&](std::size_t pair, const Program&, StepId, const Message&) { ++first_[pair + 1]; });
    for (std::size_t pair = 1; pair < first_.size(); ++pair) first_[pair] += first_[pair - 1];
    letters_.resize(first_.back());
    std::vector<std::size_t> next(first_.begin(), first_.end() - 1);
    for_messages(plan, sent, [&](std::size_t pair, const Program& program, StepId id, const Message& m) {
      const Step& step = program.steps[static_cast<std::size_t>(id)];
      const bool follows = next[pair] > first_[pair] && letters_[next[pair] - 1].phase == step.phase;
      const std::int32_t order = follows ? letters_[next[pair] - 1].order + 1 : 0;
      letters_[next[pair]++] = {step.phase, order, step.lane, program.bytes_of(m.view), program.slot_of(m.view).dtype, id};
    });
  }
  std::span<const Letter> between(std::size_t from, std::size_t to) const {
    const std::size_t pair = from * ranks_ + to;
    return std::span(letters_).subspan(first_[pair], first_[pair + 1] - first_[pair]);
  }

 private:
  template <class Fn>
  void for_messages(const Plan& plan, bool sent, Fn&& fn) const {
    for (const Program& program : plan.programs) {
      for (std::size_t id = 0; id < program.steps.size(); ++id) {
        const Step& step = program.steps[id];
        for (const Message& m : sent ? program.sends_of(step) : program.receives_of(step)) {
          const auto self = static_cast<std::size_t>(program.rank), peer = static_cast<std::size_t>(m.peer);
          fn(sent ? self * ranks_ + peer : peer * ranks_ + self, program, static_cast<StepId>(id), m);
        }
      }
    }
  }
  std::size_t ranks_;
  std::vector<std::size_t> first_;  ///< Of each pair.
  std::vector<Letter> letters_;
};

void check_pair(std::size_t from, std::size_t to, std::span<const Letter> sent, std::span<const Letter> received, Verdict& verdict) {
  std::size_t s = 0, r = 0;
  while ((s < sent.size() || r < received.size()) && verdict.failures.size() < kMostFailures) {
    if (r == received.size() || (s < sent.size() && sent[s].key() < received[r].key())) {
      verdict.failures.push_back(fmt::format("rank {} step {}: sends {} bytes to rank {} in phase {}, which does not receive them", from,
                                             sent[s].step, sent[s].bytes, to, sent[s].phase));
      ++s;
    } else if (s == sent.size() || received[r].key() < sent[s].key()) {
      verdict.failures.push_back(fmt::format("rank {} step {}: receives {} bytes from rank {} in phase {}, which does not send them", to,
                                             received[r].step, received[r].bytes, from, received[r].phase));
      ++r;
    } else {
      if (sent[s].content() != received[r].content()) {
        verdict.failures.push_back(
            fmt::format("rank {} step {} sends {} bytes of {} on lane {} to rank {} step {}, which receives {} bytes of {} on lane {}",
                        from, sent[s].step, sent[s].bytes, to_string(sent[s].dtype), sent[s].lane, to, received[r].step, received[r].bytes,
                        to_string(received[r].dtype), received[r].lane));
      }
      verdict.bytes_sent += sent[s].bytes;
      ++verdict.messages;
      ++s, ++r;
    }
  }
}

void check_messages(const Plan& plan, Verdict& verdict) {
  const Letters sent(plan, true), received(plan, false);
  for (std::size_t from = 0; from < plan.programs.size(); ++from) {
    for (std::size_t to = 0; to < plan.programs.size(); ++to)
      check_pair(from, to, sent.between(from, to), received.between(from, to), verdict);
  }
}

/// Part 3 for one program.
class RaceCheck {
 public:
  RaceCheck(const Program& program, std::vector<std::string>& failures)
      : program_(program), failures_(failures), slots_(program.slots.size()) {}

  void run() {
    for (StepId id = 0; id < static_cast<StepId>(program_.steps.size()); ++id) {
      const Step& step = program_.steps[static_cast<std::size_t>(id)];
      orders_.begin(queue_of(step));
      for (const StepId other : program_.after_of(step)) orders_.wait_for(other);
      collect_accesses(program_, step, accesses_);
      check_step(id, accesses_);
    }
    for (std::size_t a = 0; a < slots_.size(); ++a) {
      for (std::size_t b = a + 1; b < slots_.size(); ++b) check_shared_bytes(a, b);
    }
  }

 private:
  struct Use {
    StepId step;
    View view;
  };
  struct SlotUses {
    std::array<std::vector<Use>, kQueues> reads, writes;
    Lifetime lifetime;
  };

  /// The latest overlapping use in another queue decides: its queue finishes in order.
  void check_against(const std::array<std::vector<Use>, kQueues>& uses, StepId id, const View& view) {
    for (int queue = 0; queue < kQueues; ++queue) {
      if (queue == orders_.queue_of(id)) continue;
      for (auto use = uses[queue].rbegin(); use != uses[queue].rend(); ++use) {
        if (!overlap(use->view, view)) continue;
        if (!orders_.ordered(use->step, id)) {
          failures_.push_back(fmt::format("rank {} step {}: touches '{}' while step {} may still use it", program_.rank, id,
                                          program_.slot_of(view).name, use->step));
        }
        break;
      }
    }
  }

  void fail_shared(StepId id, const View& view) {
    failures_.push_back(
        fmt::format("rank {} step {}: two operands share rows of '{}' and one is written", program_.rank, id, program_.slot_of(view).name));
  }

  void check_operands(StepId id, const std::vector<Access>& accesses) {
    for (std::size_t i = 0; i < accesses.size(); ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        const bool harmless = accesses[i].mode == Mode::read && accesses[j].mode == Mode::read;
        if (!harmless && overlap(accesses[i].view, accesses[j].view)) fail_shared(id, accesses[i].view);
      }
    }
  }

  /// Messages have all heads of their slots and are many: by slot and row, each has to begin behind those before it.
  void check_messages_apart(StepId id, const std::vector<Access>& accesses) {
    by_row_.assign(accesses.begin(), accesses.end());
    std::ranges::sort(by_row_, {}, [](const Access& access) { return std::pair(access.view.slot, access.view.row0); });
    std::int64_t end = 0, written_end = 0;
    for (std::size_t i = 0; i < by_row_.size(); ++i) {
      const auto& [view, mode] = by_row_[i];
      if (i == 0 || by_row_[i - 1].view.slot != view.slot) end = written_end = 0;
      if (view.row0 < (mode == Mode::read ? written_end : end)) fail_shared(id, view);
      end = std::max(end, view.row0 + view.rows);
      if (mode != Mode::read) written_end = std::max(written_end, view.row0 + view.rows);
    }
  }

  void check_step(StepId id, const std::vector<Access>& accesses) {
    const int queue = orders_.queue_of(id);
    queue == 0 ? check_operands(id, accesses) : check_messages_apart(id, accesses);
    for (std::size_t i = 0; i < accesses.size(); ++i) {
      const auto& [view, mode] = accesses[i];
      SlotUses& slot = slots_[static_cast<std::size_t>(view.slot)];
      check_against(slot.writes, id, view);
      if (mode != Mode::read) check_against(slot.reads, id, view);
    }
    for (const auto& [view, mode] : accesses) {
      SlotUses& slot = slots_[static_cast<std::size_t>(view.slot)];
      (mode == Mode::read ? slot.reads : slot.writes)[static_cast<std::size_t>(queue)].push_back({id, view});
      slot.lifetime.use(queue, id);
    }
  }

  void check_shared_bytes(std::size_t a, std::size_t b) {
    const Slot &x = program_.slots[a], &y = program_.slots[b];
    if (x.role != Role::scratch || y.role != Role::scratch) return;
    if (x.offset >= y.offset + y.bytes() || y.offset >= x.offset + x.bytes()) return;
    if (!slots_[a].lifetime.apart(slots_[b].lifetime, orders_)) {
      failures_.push_back(
          fmt::format("rank {}: scratch '{}' and '{}' share workspace bytes but may be alive together", program_.rank, x.name, y.name));
    }
  }

  const Program& program_;
  std::vector<std::string>& failures_;
  std::vector<SlotUses> slots_;
  std::vector<Access> accesses_, by_row_;  // of the step at hand
  StepOrders orders_;
};

}  // namespace

Verdict verify(const Plan& plan) {
  Verdict verdict;
  const int ranks = static_cast<int>(plan.programs.size());
  if (ranks != plan.claim.layout.ranks())
    verdict.failures.push_back(fmt::format("{} programs for a layout of {} ranks", ranks, plan.claim.layout.ranks()));
  for (int r = 0; r < ranks && verdict.failures.size() < kMostFailures; ++r) {
    const Program& program = plan.programs[static_cast<std::size_t>(r)];
    if (program.rank != r) verdict.failures.push_back(fmt::format("program {} says it is of rank {}", r, program.rank));
    verdict.steps += static_cast<std::int64_t>(program.steps.size());
    FormCheck(program, ranks, verdict.failures).run();
  }
  if (!verdict.ok()) return verdict;
  check_messages(plan, verdict);
  for (const Program& program : plan.programs) {
    if (verdict.failures.size() < kMostFailures) RaceCheck(program, verdict.failures).run();
  }
  if (!verdict.ok()) return verdict;
  if (std::string failure = check_provenance(plan); !failure.empty()) verdict.failures.push_back(std::move(failure));
  if (plan.claim.bytes_sent >= 0 && verdict.bytes_sent != plan.claim.bytes_sent) {
    verdict.failures.push_back(fmt::format("the plan sends {} bytes, its formula says {}", verdict.bytes_sent, plan.claim.bytes_sent));
  }
  return verdict;
}

}  // namespace periplus::plan
