#include "parallel/plan/verify_provenance.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "parallel/plan/ops.h"
#include "parallel/plan/provenance_pieces.h"
#include "parallel/plan/provenance_truth.h"
#include "runtime/error.h"

namespace periplus::plan {
namespace {

/// Plays the programs of all ranks.
class Player {
 public:
  explicit Player(const Plan& plan)
      : plan_(plan), orders_(plan.claim.layout), truth_(plan.claim, orders_), slots_(plan.programs.size()), next_(plan.programs.size(), 0) {
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
  Pieces& contents(SlotId slot) { return slots_[static_cast<std::size_t>(rank_)][static_cast<std::size_t>(slot)]; }

  void bind_inputs(const Program& program) {
    std::vector<Pieces>& slots = slots_[static_cast<std::size_t>(program.rank)];
    slots.resize(program.slots.size());
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
      if (slot.rows > 0) slots[i].push_back({0, slot.rows, 0, slot.heads, cell, program.rank, 0, 0});
    }
  }

  // --- slots ---

  /// The pieces of a view, in its coordinates. All of it must be defined.
  void read(const View& view, Pieces& found) {
    found.clear();
    std::int64_t cells = 0;
    for (const Piece& piece : contents(view.slot)) {
      std::optional<Piece> part = cut(piece, view.row0, view.rows, view.head0, view.heads);
      if (!part) continue;
      part->row0 -= view.row0;
      part->head0 -= view.head0;
      cells += part->rows * part->heads;
      found.push_back(std::move(*part));
    }
    if (cells != view.rows * view.heads) {
      throw ProvenanceFailure{fmt::format("reads rows {}+{} of '{}', of which {} of {} cells were never written", view.row0, view.rows,
                                          program().slot_of(view).name, view.rows * view.heads - cells, view.rows * view.heads)};
    }
  }
  Pieces read(const View& view) {
    Pieces found;
    read(view, found);
    return found;
  }

  void read_as(const View& view, Cell cell, Pieces& pieces) {
    read(view, pieces);
    for (const Piece& piece : pieces) {
      if (piece.cell == cell) continue;
      throw ProvenanceFailure{
          fmt::format("'{}' holds {} where {} is needed", program().slot_of(view).name, name_of(piece.cell), name_of(cell))};
    }
  }
  Pieces read_as(const View& view, Cell cell) {
    Pieces pieces;
    read_as(view, cell, pieces);
    return pieces;
  }

  /// Replaces what the view held; `pieces` are in its coordinates.
  void write(const View& view, Pieces pieces) {
    Pieces& held = contents(view.slot);
    Pieces rest;
    std::erase_if(held, [&](const Piece& piece) {
      const bool meets = cut(piece, view.row0, view.rows, view.head0, view.heads).has_value();
      if (meets) keep_outside(piece, view, rest);
      return meets;
    });
    held.insert(held.end(), rest.begin(), rest.end());
    for (Piece& piece : pieces) {
      piece.row0 += view.row0;
      piece.head0 += view.head0;
      held.push_back(piece);
    }
  }

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

  /// All messages of a phase leave before any arrives: an exchange never sends what it receives.
  void play_phase(int phase) {
    mail_.resize(slots_.size());
    for (std::vector<Letter>& box : mail_) box.clear();
    const auto in_phase = [&] { return next() < program().steps.size() && program().steps[next()].phase == phase; };
    for (rank_ = 0; rank_ < ranks(); ++rank_) {
      if (!in_phase()) continue;
      step_ = static_cast<StepId>(next());
      for (const Message& m : program().sends_of(program().steps[next()]))
        mail_[static_cast<std::size_t>(m.peer)].push_back({rank_, read(m.view)});
    }
    for (rank_ = 0; rank_ < ranks(); ++rank_) {
      if (!in_phase()) continue;
      step_ = static_cast<StepId>(next());
      std::vector<Letter>& box = mail_[static_cast<std::size_t>(rank_)];
      taken_.assign(slots_.size(), 0);
      for (const Message& m : program().receives_of(program().steps[next()])) {
        // Senders were met in rank order, so the letters of each lie together.
        const auto first = std::ranges::lower_bound(box, m.peer, {}, &Letter::from);
        write(m.view, std::move(first[taken_[static_cast<std::size_t>(m.peer)]++].pieces));
      }
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
    }
  }

  /// Remembers the step and checks that every query head meets its own KV head.
  int record(const Step& step, Pieces q, Pieces k, const View& q_view, const View& k_view) {
    records_.emplace_back(&program(), &step, digest_(program().bands_of(step)), std::move(q), std::move(k), q_view, k_view);
    const AttendRecord& made = records_.back();
    const std::int64_t group = made.group;
    // With all heads in every piece, one pair of pieces stands for all.
    const std::size_t queries = made.first_head ? 1 : made.q.size(), keys = made.first_head ? 1 : made.k.size();
    for (const Piece& x : std::span(made.q).first(queries)) {
      for (const Piece& y : std::span(made.k).first(keys)) {
        for (std::int64_t h = std::max(x.head0, y.head0 * group); h < std::min(x.head0 + x.heads, (y.head0 + y.heads) * group); ++h) {
          const std::int64_t query_head = x.origin_head + h - x.head0, kv_head = y.origin_head + h / group - y.head0;
          if (query_head / truth_.group() != kv_head)
            throw ProvenanceFailure{
                fmt::format("query head {} meets KV head {} instead of {}", query_head, kv_head, query_head / truth_.group())};
        }
      }
    }
    return static_cast<int>(records_.size()) - 1;
  }

  /// Adds pieces (in the coordinates of the view) to what the view holds, which must be of the same kind and rows.
  void accumulate(const View& view, const Pieces& pieces, Cell cell) {
    read_as(view, cell, scratch_);
    Pieces after;
    together(scratch_, pieces, [&](const Piece& held, const Piece& more) {
      require_same_origin(held, more, orders_);
      after.push_back(added(held, more, store_));
    });
    write(view, std::move(after));
  }

  void put(const Access& to, Pieces pieces, Cell cell) {
    if (to.mode == Mode::add) {
      accumulate(to.view, pieces, cell);
    } else {
      write(to.view, std::move(pieces));
    }
  }

  void run_attend(const Step& step, std::span<const Access> a) {
    using namespace attend_operand;
    const Pieces query = read_as(a[q].view, Cell::q), key = read_as(a[k].view, Cell::k);
    require_like(key, a[v].view, Cell::v);
    const int id = record(step, query, key, a[q].view, a[k].view);
    const bool contributes = step.bands.count > 0;
    put(a[out], sums_like(query, Cell::state_out, id, contributes, store_), Cell::state_out);
    put(a[lse], sums_like(query, Cell::state_lse, id, contributes, store_), Cell::state_lse);
  }

  void run_attend_backward(const Step& step, std::span<const Access> a) {
    using namespace attend_backward_operand;
    const Pieces query = read_as(a[q].view, Cell::q), key = read_as(a[k].view, Cell::k);
    require_like(key, a[v].view, Cell::v);
    require_like(query, a[dout].view, Cell::dout);
    require_like(query, a[lse].view, Cell::lse);
    require_like(query, a[delta].view, Cell::delta);
    const int id = record(step, query, key, a[q].view, a[k].view);
    const bool contributes = step.bands.count > 0;
    put(a[dq], sums_like(query, Cell::dq, id, contributes, store_), Cell::dq);
    put(a[dk], sums_like(key, Cell::dk, id, contributes, store_), Cell::dk);
    put(a[dv], sums_like(key, Cell::dv, id, contributes, store_), Cell::dv);
  }

  void run_copy(const Step& step, std::span<const Access> a) {
    Pieces pieces = read(a[transfer_operand::source].view);
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
    const Pieces pieces = read(source);
    if (pieces.empty()) return;
    const Cell cell = wanted.value_or(pieces.front().cell);
    if (!is_sum(cell)) throw ProvenanceFailure{fmt::format("adds {}, which is not a partial sum", name_of(cell))};
    accumulate(destination, read_as(source, cell), cell);
  }

  /// Sinks take part exactly if they are an input, each with its own query head.
  void require_sink(const View& operand, const Pieces& queries) {
    const bool has_slot = std::any_of(program().slots.begin(), program().slots.end(), [](const Slot& s) { return s.name == "sink"; });
    if (operand.present() != has_slot) throw ProvenanceFailure{"the sink logits are an input but do not take part, or the other way round"};
    if (!operand.present()) return;
    for (const Piece& sink : read_as(operand, Cell::sink)) {
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
    const Pieces state = read_as(a[state_out].view, Cell::state_out), state_lses = read_as(a[state_lse].view, Cell::state_lse);
    require_sink(a[sink].view, state);
    together(state, state_lses, [this](const Piece& x, const Piece& y) {
      if (!same_origin(x, y, orders_) || !same_terms(x, y)) throw ProvenanceFailure{"out and lse of the state did not see the same keys"};
    });
    for (const Piece& piece : state) require_complete(piece);
    write(a[out].view, sums_like(state, Cell::out, 0, false, store_));
    write(a[lse].view, sums_like(state, Cell::lse, 0, false, store_));
  }

  void run_delta(std::span<const Access> a) {
    using namespace delta_operand;
    const Pieces gradient = read_as(a[dout].view, Cell::dout);
    require_sink(a[sink].view, gradient);
    require_like(gradient, a[out].view, Cell::out);
    require_like(gradient, a[lse].view, Cell::lse);
    if (a[dlse].view.present()) require_like(gradient, a[dlse].view, Cell::dlse);
    write(a[delta].view, sums_like(gradient, Cell::delta, 0, false, store_));
    if (a[dsink].view.present()) write_dsink(a[dsink].view, a[dout].view, gradient);
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
    write(dsink, std::move(sums));
  }

  // --- sums ---

  void require_complete(const Piece& piece) const {
    std::uint64_t sum = 0;
    std::size_t terms = 0;
    for_terms(piece, [&](const Term& term) {
      sum = field::add(sum, truth_.contributed(piece, term, records_[static_cast<std::size_t>(term.record)]));
      ++terms;
    });
    if (sum != truth_.demanded(piece)) {
      throw ProvenanceFailure{
          fmt::format("{} of rank {} rows {}+{} does not hold each (head, query, key) of the mask exactly once ({} contributions)",
                      name_of(piece.cell), piece.origin, piece.origin_row, piece.rows, terms)};
    }
  }

  void check_outputs() {
    step_ = -1;
    const auto expect = [&](std::string_view name, Cell cell) {
      const SlotId id = program().find_slot(name);
      const Slot& slot = program().slots[static_cast<std::size_t>(id)];
      const std::int64_t rows = cell == Cell::dsink ? 1 : plan_.claim.layout.rows_of(rank_);
      const std::int64_t heads = has_key_rows(cell) ? plan_.claim.kv_heads : plan_.claim.q_heads;
      if (slot.rows != rows || slot.heads != heads)
        throw ProvenanceFailure{
            fmt::format("output '{}' has {} rows and {} heads instead of {} and {}", name, slot.rows, slot.heads, rows, heads)};
      for (const Piece& piece : read_as({id, 0, slot.rows, 0, slot.heads}, cell)) {
        Piece expected = piece;
        expected.origin = rank_, expected.origin_row = piece.row0, expected.origin_head = piece.head0;
        if (!same_origin(piece, expected, orders_)) {
          throw ProvenanceFailure{fmt::format("output '{}' row {} head {} holds row {} head {} of rank {}", name, piece.row0, piece.head0,
                                              piece.origin_row, piece.origin_head, piece.origin)};
        }
        if (is_sum(cell)) require_complete(piece);
      }
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
  std::vector<std::vector<Pieces>> slots_;  ///< by rank and slot
  std::vector<std::size_t> next_;
  struct Letter {
    Rank from;
    Pieces pieces;
  };
  std::vector<std::vector<Letter>> mail_;  ///< Of the phase at hand, by receiver, in posted order of each sender.
  std::vector<std::ptrdiff_t> taken_;      ///< How many letters of each sender the receiver has.
  Pieces scratch_;
  TermStore store_;
  std::deque<AttendRecord> records_;
  DigestsOfBands digest_;
  Rank rank_ = 0;
  StepId step_ = -1;
};

}  // namespace

std::string check_provenance(const Plan& plan) {
  std::optional<Player> player;
  try {
    player.emplace(plan);
    player->play();
  } catch (const ProvenanceFailure& failure) {
    return (player ? player->where() : std::string()) + failure.what;
  } catch (const InvalidArgument& missing_slot) {
    return (player ? player->where() : std::string()) + missing_slot.what();
  }
  return {};
}

}  // namespace periplus::plan
