#include "parallel/plan/provenance_steps.h"

#include <algorithm>

#include <fmt/format.h>

#include "parallel/plan/ops.h"

namespace periplus::plan {

void SoftmaxSteps::run(const Step& step) {
  const auto a = slots_.program().accesses_of(step);
  switch (step.op) {
    case Op::attend:
      return run_attend(step, a);
    case Op::attend_backward:
      return run_attend_backward(step, a);
    case Op::merge:
      return run_merge(a);
    case Op::finish:
      return run_finish(a);
    case Op::delta:
      return run_delta(a);
    case Op::copy:
      return run_copy(step, a);
    case Op::add:
      return add(a[transfer_operand::source].view, a[transfer_operand::destination].view, std::nullopt);
    default:
      throw ProvenanceFailure{fmt::format("{} is no step of softmax attention", info(step.op).name)};
  }
}

/// Remembers the step of queries_ and keys_ and checks that every query head meets its own KV head.
int SoftmaxSteps::record(const Step& step, const View& q_view, const View& k_view) {
  const int id = records_.add(slots_.program().bands_of(step), q_view, queries_, k_view, keys_);
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
void SoftmaxSteps::accumulate(const View& view, const Pieces& pieces, Cell cell) {
  Piece* const whole = pieces.size() == 1 ? slots_.only(view) : nullptr;
  if (whole != nullptr) {
    slots_.require_cell(view, *whole, cell);
    require_same_origin(*whole, pieces.front(), orders_);
    add_to(*whole, pieces.front(), terms_);
    return;
  }
  slots_.read_as(view, cell, scratch_);
  after_.clear();
  together(scratch_, pieces, [&](const Piece& held, const Piece& more) {
    require_same_origin(held, more, orders_);
    add_to(after_.emplace_back(held), more, terms_);
  });
  slots_.write(view, after_);
}

/// Sums with the rows of `like`.
void SoftmaxSteps::put(const Access& to, const Pieces& like, Cell cell, int record, bool contributes) {
  sums_like(like, cell, record, contributes, terms_, sums_);
  to.mode == Mode::add ? accumulate(to.view, sums_, cell) : slots_.write(to.view, sums_);
}
void SoftmaxSteps::put_alone(const Access& to, const Pieces& like, Cell cell, int record, bool contributes) {
  slots_.require_alone(to.view);
  put(to, like, cell, record, contributes);
}
/// The same sums twice: as `cell`, and as the one that follows it.
void SoftmaxSteps::put_both(const Access& first, const Access& second, const Pieces& like, Cell cell, int record, bool contributes) {
  const bool as_one = slots_.as_one(first, second);
  put(first, like, cell, record, contributes);
  if (!as_one) put(second, like, *follower_of(cell), record, contributes);
}

void SoftmaxSteps::read_queries_and_keys(std::span<const Access> a) {
  using namespace attend_operand;
  slots_.read_as(a[q].view, Cell::q, queries_);
  slots_.read_as(a[k].view, Cell::k, keys_);
  if (!slots_.are_twins(a[k].view, a[v].view)) slots_.require_like(keys_, a[v].view, Cell::v);
}

void SoftmaxSteps::run_attend(const Step& step, std::span<const Access> a) {
  using namespace attend_operand;
  read_queries_and_keys(a);
  const int id = record(step, a[q].view, a[k].view);
  put_both(a[out], a[lse], queries_, Cell::state_out, id, step.bands.count > 0);
}

void SoftmaxSteps::run_attend_backward(const Step& step, std::span<const Access> a) {
  using namespace attend_backward_operand;
  read_queries_and_keys(a);
  const bool follows = slots_.are_twins(a[q].view, a[dout].view);
  if (!follows) slots_.require_like(queries_, a[dout].view, Cell::dout);
  if (!follows || !slots_.are_twins(a[dout].view, a[lse].view)) slots_.require_like(queries_, a[lse].view, Cell::lse);
  slots_.require_like(queries_, a[delta].view, Cell::delta);
  const int id = record(step, a[q].view, a[k].view);
  const bool contributes = step.bands.count > 0;
  put_alone(a[dq], queries_, Cell::dq, id, contributes);
  put_both(a[dk], a[dv], keys_, Cell::dk, id, contributes);
}

void SoftmaxSteps::run_merge(std::span<const Access> a) {
  using namespace merge_operand;
  const bool as_one = slots_.as_one(a[out], a[lse]);
  if (as_one && !slots_.are_twins(a[part_out].view, a[part_lse].view)) throw TwinsApart{};
  add(a[part_out].view, a[out].view, Cell::state_out);
  if (!as_one) add(a[part_lse].view, a[lse].view, Cell::state_lse);
}

void SoftmaxSteps::run_copy(const Step& step, std::span<const Access> a) {
  Pieces& pieces = queries_;
  pieces.clear();
  slots_.append(a[transfer_operand::source].view, pieces);
  const View& destination = a[transfer_operand::destination].view;
  const auto moves = slots_.program().moves_of(step);
  if (moves.empty()) return slots_.write(destination, pieces);
  // Rows of sums in another order would no longer follow each other in the views of their terms.
  for (Piece& piece : pieces) {
    if (piece.terms == nullptr) continue;
    if (const std::optional<Term> whole = truth_.whole(piece, records_)) {
      piece.terms = terms_.add({*whole, nullptr, 0, 0});
      piece.term_row = piece.term_head = 0;
    }
  }
  slots_.write(destination, moved(pieces, moves, orders_));
}

void SoftmaxSteps::add(const View& source, const View& destination, std::optional<Cell> wanted) {
  queries_.clear();
  slots_.append(source, queries_);
  if (queries_.empty()) return;
  const Cell cell = wanted.value_or(queries_.front().cell);
  if (!is_sum(cell)) throw ProvenanceFailure{fmt::format("adds {}, which is not a partial sum", name_of(cell))};
  for (const Piece& piece : queries_) slots_.require_cell(source, piece, cell);
  accumulate(destination, queries_, cell);
}

/// Sinks take part exactly if they are an input, each with its own query head.
void SoftmaxSteps::require_sink(const View& operand, const Pieces& queries) {
  const bool has_slot = std::ranges::find(slots_.program().slots, "sink", &Slot::name) != slots_.program().slots.end();
  if (operand.present() != has_slot) throw ProvenanceFailure{"the sink logits are an input but do not take part, or the other way round"};
  if (!operand.present()) return;
  slots_.read_as(operand, Cell::sink, scratch_);
  for (const Piece& sink : scratch_) {
    for (const Piece& query : queries) {
      const bool meet = sink.head0 < query.head0 + query.heads && query.head0 < sink.head0 + sink.heads;
      const std::int64_t sink_head = sink.origin_head - sink.head0, query_head = query.origin_head - query.head0;
      if (meet && sink_head != query_head)
        throw ProvenanceFailure{fmt::format("query head {} meets the sink of head {}", query_head, sink_head)};
    }
  }
}

void SoftmaxSteps::run_finish(std::span<const Access> a) {
  using namespace finish_operand;
  slots_.read_as(a[state_out].view, Cell::state_out, queries_);
  require_sink(a[sink].view, queries_);
  if (!slots_.are_twins(a[state_out].view, a[state_lse].view)) {
    slots_.read_as(a[state_lse].view, Cell::state_lse, scratch_);
    together(queries_, scratch_, [this](const Piece& x, const Piece& y) {
      if (!same_origin(x, y, orders_) || !same_terms(x, y)) throw ProvenanceFailure{"out and lse of the state did not see the same keys"};
    });
  }
  require_complete(queries_);
  put_both(a[out], a[lse], queries_, Cell::out);
}

void SoftmaxSteps::run_delta(std::span<const Access> a) {
  using namespace delta_operand;
  slots_.read_as(a[dout].view, Cell::dout, queries_);
  require_sink(a[sink].view, queries_);
  slots_.require_like(queries_, a[out].view, Cell::out);
  if (!slots_.are_twins(a[dout].view, a[lse].view)) slots_.require_like(queries_, a[lse].view, Cell::lse);
  if (a[dlse].view.present()) slots_.require_like(queries_, a[dlse].view, Cell::dlse);
  put_alone(a[delta], queries_, Cell::delta);
  if (a[dsink].view.present()) write_dsink(a[dsink].view, a[dout].view, queries_);
}

/// dsink sums over rows, so one step has to see all of them.
void SoftmaxSteps::write_dsink(const View& dsink, const View& dout, const Pieces& gradient) {
  const std::int64_t rows = plan_.claim.layout.rows_of(slots_.rank());
  if (dout.rows != rows) throw ProvenanceFailure{fmt::format("dsink sums {} rows of {}", dout.rows, rows)};
  Pieces sums;
  for (const Piece& piece : gradient) {
    if (piece.row0 == 0) sums.push_back({0, 1, piece.head0, piece.heads, Cell::dsink, piece.origin, piece.origin_row, piece.origin_head});
  }
  if (gradient.empty()) sums.push_back({0, 1, 0, dsink.heads, Cell::dsink, slots_.rank(), 0, dsink.head0});
  slots_.require_alone(dsink);
  slots_.write(dsink, sums);
}

void SoftmaxSteps::require_complete(const Pieces& sums) const {
  if (truth_.complete(sums, records_)) return;
  for (const Piece& piece : sums) require_complete(piece);
  throw ProvenanceFailure{"sums do not hold each (head, query, key) of the mask exactly once"};
}
void SoftmaxSteps::require_complete(const Piece& piece) const {
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
bool SoftmaxSteps::like_the_last(const Pieces& sums) {
  const bool alike = std::ranges::equal(sums, after_, [this](const Piece& x, const Piece& y) {
    return has_key_rows(x.cell) == has_key_rows(y.cell) && x.covers(y.row0, y.rows, y.head0, y.heads) && same_origin(x, y, orders_) &&
           same_terms(x, y);
  });
  after_ = sums;
  return alike;
}

/// All of an output, which has the shape of the claim.
View SoftmaxSteps::output(std::string_view name, Cell cell) const {
  const SlotId id = slots_.program().find_slot(name);
  const Slot& slot = slots_.program().slots[static_cast<std::size_t>(id)];
  const std::int64_t rows = cell == Cell::dsink ? 1 : plan_.claim.layout.rows_of(slots_.rank());
  const std::int64_t heads = has_key_rows(cell) ? plan_.claim.kv_heads : plan_.claim.q_heads;
  if (slot.rows != rows || slot.heads != heads)
    throw ProvenanceFailure{
        fmt::format("output '{}' has {} rows and {} heads instead of {} and {}", name, slot.rows, slot.heads, rows, heads)};
  return {id, 0, rows, 0, heads};
}

void SoftmaxSteps::check_output(std::string_view name, const View& view, Cell cell) {
  slots_.read_as(view, cell, scratch_);
  for (const Piece& piece : scratch_) {
    Piece expected = piece;
    expected.origin = slots_.rank(), expected.origin_row = piece.row0, expected.origin_head = piece.head0;
    if (!same_origin(piece, expected, orders_)) {
      throw ProvenanceFailure{fmt::format("output '{}' row {} head {} holds row {} head {} of rank {}", name, piece.row0, piece.head0,
                                          piece.origin_row, piece.origin_head, piece.origin)};
    }
  }
  if (is_sum(cell) && !like_the_last(scratch_)) require_complete(scratch_);
}

void SoftmaxSteps::check_outputs(std::string_view leader_name, Cell leader, std::string_view follower_name, Cell follower) {
  const View first = output(leader_name, leader), second = output(follower_name, follower);
  check_output(leader_name, first, leader);
  if (!slots_.are_twins(first, second)) check_output(follower_name, second, follower);
}

void SoftmaxSteps::check_outputs() {
  after_.clear();
  if (!plan_.claim.backward) return check_outputs("out", Cell::out, "lse", Cell::lse);
  check_output("dq", output("dq", Cell::dq), Cell::dq);
  check_outputs("dk", Cell::dk, "dv", Cell::dv);
  if (std::ranges::find(slots_.program().slots, "dsink", &Slot::name) != slots_.program().slots.end())
    check_output("dsink", output("dsink", Cell::dsink), Cell::dsink);
}

}  // namespace periplus::plan
