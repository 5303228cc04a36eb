#include "parallel/plan/verify_provenance.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "parallel/plan/ops.h"
#include "parallel/plan/provenance_mail.h"
#include "parallel/plan/provenance_pieces.h"
#include "parallel/plan/provenance_records.h"
#include "parallel/plan/provenance_slot.h"
#include "parallel/plan/provenance_truth.h"
#include "runtime/error.h"

namespace periplus::plan {
namespace {

/// Plays the programs of all ranks.
class Player {
 public:
  Player(const Plan& plan, ProvenanceMemory& memory)
      : plan_(plan),
        orders_(plan.claim.layout),
        truth_(plan.claim, orders_, memory.known),
        slots_(memory.slots),
        next_(plan.programs.size(), 0),
        store_(memory.terms),
        records_(memory.records) {
    for (const Program& program : plan.programs) bind_inputs(program);
  }

  void play() {
    while (true) {
      for (rank_ = 0; rank_ < ranks(); ++rank_) play_compute();
      const int phase = next_phase();
      if (phase == std::numeric_limits<int>::max()) break;
      play_phase(phase);
    }
    for (rank_ = 0; rank_ < ranks(); ++rank_) check_outputs();
  }

  std::string where() const { return fmt::format("rank {} step {}: ", rank_, step_); }

 private:
  int ranks() const { return static_cast<int>(plan_.programs.size()); }
  const Program& program() const { return plan_.programs[static_cast<std::size_t>(rank_)]; }
  std::size_t& next() { return next_[static_cast<std::size_t>(rank_)]; }
  SlotPieces& contents(SlotId slot) { return slots_[static_cast<std::size_t>(rank_)][static_cast<std::size_t>(slot)]; }

  void bind_inputs(const Program& program) {
    std::vector<SlotPieces>& slots = slots_[static_cast<std::size_t>(program.rank)];
    if (slots.size() < program.slots.size()) slots.resize(program.slots.size());
    for (std::size_t i = 0; i < program.slots.size(); ++i) {
      const Slot& slot = program.slots[i];
      if (slot.role != Role::input) continue;
      const std::optional<Cell> known = input_cell(slot.name);
      if (!known) throw ProvenanceFailure{fmt::format("rank {}: input '{}' is not one the claim knows", program.rank, slot.name)};
      const Cell cell = *known;
      const std::int64_t rows = cell == Cell::sink ? 1 : plan_.claim.layout.rows_of(program.rank);
      const std::int64_t heads = has_key_rows(cell) ? plan_.claim.kv_heads : plan_.claim.q_heads;
      if (slot.rows != rows || slot.heads != heads) {
        throw ProvenanceFailure{fmt::format("rank {}: input '{}' has {} rows and {} heads, the claim says {} and {}", program.rank,
                                            slot.name, slot.rows, slot.heads, rows, heads)};
      }
      if (slot.rows > 0) slots[i].hold({0, slot.rows, 0, slot.heads, cell, program.rank, 0, 0});
    }
  }

  // --- slots ---

  /// Appends the pieces of a view, in its coordinates. All of it must be defined.
  void append(const View& view, Pieces& found) {
    const std::int64_t cells = contents(view.slot).read(view, found);
    if (cells == view.rows * view.heads) return;
    throw ProvenanceFailure{fmt::format("reads rows {}+{} of '{}', of which {} of {} cells were never written", view.row0, view.rows,
                                        program().slot_of(view).name, view.rows * view.heads - cells, view.rows * view.heads)};
  }
  void read_as(const View& view, Cell cell, Pieces& pieces) {
    pieces.clear();
    append(view, pieces);
    for (const Piece& piece : pieces) require_cell(view, piece, cell);
  }
  void require_cell(const View& view, const Piece& piece, Cell cell) const {
    if (piece.cell == cell) return;
    throw ProvenanceFailure{
        fmt::format("'{}' holds {} where {} is needed", program().slot_of(view).name, name_of(piece.cell), name_of(cell))};
  }
  void write(const View& view, std::span<const Piece> pieces) { contents(view.slot).write(view, pieces); }

  /// Every part of the view is `cell` and the same rows and heads as `wanted`.
  void require_like(const Pieces& wanted, const View& view, Cell cell) {
    read_as(view, cell, scratch_);
    together(wanted, scratch_, [this](const Piece& x, const Piece& y) { require_same_origin(x, y, orders_); });
  }

  // --- steps ---

  void play_compute() {
    while (next() < program().steps.size() && program().steps[next()].op != Op::exchange) {
      step_ = static_cast<StepId>(next());
      run(program().steps[next()++]);
    }
  }

  int next_phase() const {
    int phase = std::numeric_limits<int>::max();
    for (std::size_t r = 0; r < next_.size(); ++r) {
      const Program& program = plan_.programs[r];
      if (next_[r] < program.steps.size()) phase = std::min(phase, program.steps[next_[r]].phase);
    }
    return phase;
  }

  void play_phase(int phase) {
    mail_.begin(next_.size());
    const auto in_phase = [&] { return next() < program().steps.size() && program().steps[next()].phase == phase; };
    for (rank_ = 0; rank_ < ranks(); ++rank_) {
      if (!in_phase()) continue;
      step_ = static_cast<StepId>(next());
      for (const Message& m : program().sends_of(program().steps[next()]))
        mail_.post(rank_, m.peer, m.view, [&](const View& view, Pieces& pieces) { append(view, pieces); });
    }
    for (rank_ = 0; rank_ < ranks(); ++rank_) {
      if (!in_phase()) continue;
      step_ = static_cast<StepId>(next());
      for (const Message& m : program().receives_of(program().steps[next()])) write(m.view, mail_.take(m.peer, rank_));
      ++next();
    }
  }

  void run(const Step& step) {
    const auto a = program().accesses_of(step);
    switch (step.op) {
      case Op::attend:
        return run_attend(step, a);
      case Op::attend_backward:
        return run_attend_backward(step, a);
      case Op::merge:
        add(a[merge_operand::part_out].view, a[merge_operand::out].view, Cell::state_out);
        return add(a[merge_operand::part_lse].view, a[merge_operand::lse].view, Cell::state_lse);
      case Op::finish:
        return run_finish(a);
      case Op::delta:
        return run_delta(a);
      case Op::copy:
        return run_copy(step, a);
      case Op::add:
        return add(a[transfer_operand::source].view, a[transfer_operand::destination].view, std::nullopt);
      case Op::exchange:
        break;
      default:
        throw ProvenanceFailure{fmt::format("{} is no step of softmax attention", info(step.op).name)};
    }
  }

  /// Remembers the step of queries_ and keys_ and checks that every query head meets its own KV head.
  int record(const Step& step, const View& q_view, const View& k_view) {
    const int id = records_.add(program().bands_of(step), q_view, queries_, k_view, keys_);
    const AttendRecord& made = records_[id];
    const std::int64_t group = made.group;
    // With all heads in every piece, one pair of pieces stands for all.
    const std::size_t queries = made.first_head ? 1 : queries_.size(), keys = made.first_head ? 1 : keys_.size();
    for (const Piece& x : std::span(queries_).first(queries)) {
      for (const Piece& y : std::span(keys_).first(keys)) {
        for (std::int64_t h = std::max(x.head0, y.head0 * group); h < std::min(x.head0 + x.heads, (y.head0 + y.heads) * group); ++h) {
          const std::int64_t query_head = x.origin_head + h - x.head0, kv_head = y.origin_head + h / group - y.head0;
          if (query_head / truth_.group() != kv_head)
            throw ProvenanceFailure{
                fmt::format("query head {} meets KV head {} instead of {}", query_head, kv_head, query_head / truth_.group())};
        }
      }
    }
    return id;
  }

  /// Adds pieces (in the coordinates of the view) to what the view holds, which must be of the same kind and rows.
  void accumulate(const View& view, const Pieces& pieces, Cell cell) {
    Piece* const whole = pieces.size() == 1 ? contents(view.slot).only(view) : nullptr;
    if (whole != nullptr) {
      require_cell(view, *whole, cell);
      require_same_origin(*whole, pieces.front(), orders_);
      add_to(*whole, pieces.front(), store_);
      return;
    }
    read_as(view, cell, scratch_);
    after_.clear();
    together(scratch_, pieces, [&](const Piece& held, const Piece& more) {
      require_same_origin(held, more, orders_);
      add_to(after_.emplace_back(held), more, store_);
    });
    write(view, after_);
  }

  /// Sums with the rows of `like`.
  void put(const Access& to, const Pieces& like, Cell cell, int record, bool contributes) {
    sums_like(like, cell, record, contributes, store_, sums_);
    to.mode == Mode::add ? accumulate(to.view, sums_, cell) : write(to.view, sums_);
  }

  void read_queries_and_keys(std::span<const Access> a) {
    using namespace attend_operand;
    read_as(a[q].view, Cell::q, queries_);
    read_as(a[k].view, Cell::k, keys_);
    require_like(keys_, a[v].view, Cell::v);
  }

  void run_attend(const Step& step, std::span<const Access> a) {
    using namespace attend_operand;
    read_queries_and_keys(a);
    const int id = record(step, a[q].view, a[k].view);
    const bool contributes = step.bands.count > 0;
    put(a[out], queries_, Cell::state_out, id, contributes);
    put(a[lse], queries_, Cell::state_lse, id, contributes);
  }

  void run_attend_backward(const Step& step, std::span<const Access> a) {
    using namespace attend_backward_operand;
    read_queries_and_keys(a);
    require_like(queries_, a[dout].view, Cell::dout);
    require_like(queries_, a[lse].view, Cell::lse);
    require_like(queries_, a[delta].view, Cell::delta);
    const int id = record(step, a[q].view, a[k].view);
    const bool contributes = step.bands.count > 0;
    put(a[dq], queries_, Cell::dq, id, contributes);
    put(a[dk], keys_, Cell::dk, id, contributes);
    put(a[dv], keys_, Cell::dv, id, contributes);
  }

  void run_copy(const Step& step, std::span<const Access> a) {
    Pieces pieces;
    append(a[transfer_operand::source].view, pieces);
    const auto moves = program().moves_of(step);
    // Rows of sums in another order would no longer follow each other in the views of their terms.
    for (Piece& piece : pieces) {
      if (moves.empty() || piece.terms == nullptr) continue;
      if (const std::optional<Term> whole = truth_.whole(piece, records_)) {
        piece.terms = store_.add({*whole, nullptr, 0, 0});
        piece.term_row = piece.term_head = 0;
      }
    }
    write(a[transfer_operand::destination].view, moved(std::move(pieces), moves, orders_));
  }

  void add(const View& source, const View& destination, std::optional<Cell> wanted) {
    queries_.clear();
    append(source, queries_);
    if (queries_.empty()) return;
    const Cell cell = wanted.value_or(queries_.front().cell);
    if (!is_sum(cell)) throw ProvenanceFailure{fmt::format("adds {}, which is not a partial sum", name_of(cell))};
    for (const Piece& piece : queries_) require_cell(source, piece, cell);
    accumulate(destination, queries_, cell);
  }

  /// Sinks take part exactly if they are an input, each with its own query head.
  void require_sink(const View& operand, const Pieces& queries) {
    const bool has_slot = std::any_of(program().slots.begin(), program().slots.end(), [](const Slot& s) { return s.name == "sink"; });
    if (operand.present() != has_slot) throw ProvenanceFailure{"the sink logits are an input but do not take part, or the other way round"};
    if (!operand.present()) return;
    read_as(operand, Cell::sink, scratch_);
    for (const Piece& sink : scratch_) {
      for (const Piece& query : queries) {
        const bool meet = sink.head0 < query.head0 + query.heads && query.head0 < sink.head0 + sink.heads;
        const std::int64_t sink_head = sink.origin_head - sink.head0, query_head = query.origin_head - query.head0;
        if (meet && sink_head != query_head)
          throw ProvenanceFailure{fmt::format("query head {} meets the sink of head {}", query_head, sink_head)};
      }
    }
  }

  void run_finish(std::span<const Access> a) {
    using namespace finish_operand;
    read_as(a[state_out].view, Cell::state_out, queries_);
    require_sink(a[sink].view, queries_);
    read_as(a[state_lse].view, Cell::state_lse, scratch_);
    together(queries_, scratch_, [this](const Piece& x, const Piece& y) {
      if (!same_origin(x, y, orders_) || !same_terms(x, y)) throw ProvenanceFailure{"out and lse of the state did not see the same keys"};
    });
    require_complete(queries_);
    put(a[out], queries_, Cell::out, 0, false);
    put(a[lse], queries_, Cell::lse, 0, false);
  }

  void run_delta(std::span<const Access> a) {
    using namespace delta_operand;
    read_as(a[dout].view, Cell::dout, queries_);
    require_sink(a[sink].view, queries_);
    require_like(queries_, a[out].view, Cell::out);
    require_like(queries_, a[lse].view, Cell::lse);
    if (a[dlse].view.present()) require_like(queries_, a[dlse].view, Cell::dlse);
    put(a[delta], queries_, Cell::delta, 0, false);
    if (a[dsink].view.present()) write_dsink(a[dsink].view, a[dout].view, queries_);
  }

  /// dsink sums over rows, so one step has to see all of them.
  void write_dsink(const View& dsink, const View& dout, const Pieces& gradient) {
    if (dout.rows != plan_.claim.layout.rows_of(rank_))
      throw ProvenanceFailure{fmt::format("dsink sums {} rows of {}", dout.rows, plan_.claim.layout.rows_of(rank_))};
    Pieces sums;
    for (const Piece& piece : gradient) {
      if (piece.row0 == 0) sums.push_back({0, 1, piece.head0, piece.heads, Cell::dsink, piece.origin, piece.origin_row, piece.origin_head});
    }
    if (gradient.empty()) sums.push_back({0, 1, 0, dsink.heads, Cell::dsink, rank_, 0, dsink.head0});
    write(dsink, sums);
  }

  // --- sums ---

  void require_complete(const Pieces& sums) const {
    if (truth_.complete(sums, records_)) return;
    for (const Piece& piece : sums) require_complete(piece);
    throw ProvenanceFailure{"sums do not hold each (head, query, key) of the mask exactly once"};
  }
  void require_complete(const Piece& piece) const {
    std::uint64_t sum = 0;
    std::size_t terms = 0;
    for_terms(piece, [&](const Term& term) {
      sum = field::add(sum, truth_.contributed(piece, term, records_[term.record]));
      ++terms;
    });
    if (sum != truth_.demanded(piece)) {
      throw ProvenanceFailure{
          fmt::format("{} of rank {} rows {}+{} does not hold each (head, query, key) of the mask exactly once ({} contributions)",
                      name_of(piece.cell), piece.origin, piece.origin_row, piece.rows, terms)};
    }
  }

  /// Whether these sums have the rows and terms of those asked for before: dv is made of the same steps as dk.
  bool like_the_last(const Pieces& sums) {
    const bool alike = std::ranges::equal(sums, after_, [this](const Piece& x, const Piece& y) {
      return has_key_rows(x.cell) == has_key_rows(y.cell) && x.covers(y.row0, y.rows, y.head0, y.heads) && same_origin(x, y, orders_) &&
             same_terms(x, y);
    });
    after_ = sums;
    return alike;
  }

  void check_outputs() {
    step_ = -1;
    after_.clear();
    const auto expect = [&](std::string_view name, Cell cell) {
      const SlotId id = program().find_slot(name);
      const Slot& slot = program().slots[static_cast<std::size_t>(id)];
      const std::int64_t rows = cell == Cell::dsink ? 1 : plan_.claim.layout.rows_of(rank_);
      const std::int64_t heads = has_key_rows(cell) ? plan_.claim.kv_heads : plan_.claim.q_heads;
      if (slot.rows != rows || slot.heads != heads)
        throw ProvenanceFailure{
            fmt::format("output '{}' has {} rows and {} heads instead of {} and {}", name, slot.rows, slot.heads, rows, heads)};
      read_as({id, 0, slot.rows, 0, slot.heads}, cell, scratch_);
      for (const Piece& piece : scratch_) {
        Piece expected = piece;
        expected.origin = rank_, expected.origin_row = piece.row0, expected.origin_head = piece.head0;
        if (!same_origin(piece, expected, orders_)) {
          throw ProvenanceFailure{fmt::format("output '{}' row {} head {} holds row {} head {} of rank {}", name, piece.row0, piece.head0,
                                              piece.origin_row, piece.origin_head, piece.origin)};
        }
      }
      if (is_sum(cell) && !like_the_last(scratch_)) require_complete(scratch_);
    };
    if (!plan_.claim.backward) {
      expect("out", Cell::out);
      return expect("lse", Cell::lse);
    }
    expect("dq", Cell::dq);
    expect("dk", Cell::dk);
    expect("dv", Cell::dv);
    if (std::any_of(program().slots.begin(), program().slots.end(), [](const Slot& s) { return s.name == "dsink"; }))
      expect("dsink", Cell::dsink);
  }

  const Plan& plan_;
  RowOrders orders_;
  Truth truth_;
  std::vector<std::vector<SlotPieces>>& slots_;  ///< by rank and slot
  std::vector<std::size_t> next_;
  PhaseMail mail_;
  Pieces queries_, keys_, sums_, scratch_, after_;  ///< Of the step at hand.
  TermStore& store_;
  AttendRecords& records_;
  Rank rank_ = 0;
  StepId step_ = -1;
};

}  // namespace

void ProvenanceMemory::begin(const Plan& plan) {
  records.begin(plan.claim);
  if (!records.same_claim()) known.clear();
  terms.clear();
  if (slots.size() < plan.programs.size()) slots.resize(plan.programs.size());
  for (std::vector<SlotPieces>& of_rank : std::span(slots).first(plan.programs.size())) {
    for (SlotPieces& slot : of_rank) slot.clear();
  }
}

std::string check_provenance(const Plan& plan, ProvenanceMemory& memory) {
  memory.begin(plan);
  std::optional<Player> player;
  try {
    player.emplace(plan, memory);
    player->play();
  } catch (const ProvenanceFailure& failure) {
    return (player ? player->where() : std::string()) + failure.what;
  } catch (const InvalidArgument& missing_slot) {
    return (player ? player->where() : std::string()) + missing_slot.what();
  }
  return {};
}

}  // namespace periplus::plan
