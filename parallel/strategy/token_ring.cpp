#include "parallel/strategy/token_ring.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "parallel/key_set.h"
#include "parallel/strategy/travel.h"

namespace periplus::strategy {
namespace {

using plan::Mode;
using plan::ProgramBuilder;
using plan::Rank;
using plan::View;

/// Rows that the ranks found out about so far.
struct KnownRows {
  std::vector<std::optional<RowRange>> seeing;   ///< By rank of the queries, then of the keys that they see.
  std::vector<std::vector<RowRange>> passed_on;  ///< By rank and step.
};

/// Who needs which rows of whom, as one rank sees it. A step is the distance from the owner of a packet to its visitor.
class Route {
 public:
  Route(ProgramBuilder& program, const AttentionProblem& problem)
      : program_(program),
        problem_(problem),
        self_(program.rank()),
        ranks_(problem.layout.ranks()),
        known_(program.of_layout_and_mask<KnownRows>()) {
    const auto ranks = static_cast<std::size_t>(ranks_);
    known_.seeing.resize(ranks * ranks), known_.passed_on.resize(ranks);
    used_.reserve(ranks), returned_.reserve(ranks);
    find_used(), find_returned(), find_passed_on();
    for (int rank = 0; rank < ranks_; ++rank) most_rows_ = std::max(most_rows_, problem.layout.rows_of(rank));
  }
  int ranks() const { return ranks_; }
  Rank rank_at(int step) const { return ((self_ + step) % ranks_ + ranks_) % ranks_; }
  /// Rows of the packet at hand that this rank works on, that it passes on, and (together) that it is sent.
  RowRange used(int step) const { return used_[static_cast<std::size_t>(step)]; }
  RowRange passed_on(int step) const { return known_.passed_on[static_cast<std::size_t>(self_)][static_cast<std::size_t>(step)]; }
  RowRange held(int step) const { return step == 0 ? RowRange{0, problem_.layout.rows_of(self_)} : hull(used(step), passed_on(step)); }
  /// Own rows that come back as a result from the rank `step` places on.
  RowRange returned(int step) const { return returned_[static_cast<std::size_t>(step)]; }
  std::int64_t most_rows() const { return most_rows_; }
  /// Bands of the rows in use and the own keys, in place of what `bands` held.
  void bands(int step, std::vector<Band>& bands) const {
    bands.clear();
    const std::int64_t first = step == 0 ? 0 : used(step).begin;
    for (const Band& band : bands_between(rank_at(step), self_)) bands.push_back(moved(band, -first, 0));
  }

 private:
  std::span<const Band> bands_between(Rank queries, Rank keys) const {
    return program_.bands_between(problem_.layout, problem_.mask, queries, keys);
  }
  std::optional<RowRange>& seeing(Rank queries, Rank keys) {
    return known_.seeing[static_cast<std::size_t>(queries) * static_cast<std::size_t>(ranks_) + static_cast<std::size_t>(keys)];
  }
  /// The bands are needed in any case.
  void find_used() {
    for (int step = 0; step < ranks_; ++step) {
      std::optional<RowRange>& rows = seeing(rank_at(step), self_);
      if (!rows) {
        rows.emplace();
        for (const Band& band : bands_between(rank_at(step), self_)) rows = hull(*rows, {band.q0, band.q1});
      }
      used_.push_back(*rows);
    }
  }
  void find_returned() {
    KeySet visitor(problem_.layout, problem_.mask);
    for (int step = 0; step < ranks_; ++step) {
      std::optional<RowRange>& rows = seeing(self_, rank_at(-step));
      if (!rows) {
        visitor.clear();
        visitor.add(rank_at(-step));
        rows = visitor.rows_that_see(self_);
      }
      returned_.push_back(*rows);
    }
  }
  /// The packet at hand in a step goes on to the ranks between this one and its owner: those of the later steps.
  void find_passed_on() {
    std::vector<RowRange>& rows = known_.passed_on[static_cast<std::size_t>(self_)];
    if (!rows.empty()) return;
    rows.resize(static_cast<std::size_t>(ranks_));
    KeySet later(problem_.layout, problem_.mask);
    for (int step = ranks_ - 1; step >= 0; --step) {
      rows[static_cast<std::size_t>(step)] = later.rows_that_see(rank_at(step));
      later.add(rank_at(step));
    }
  }

  ProgramBuilder& program_;
  const AttentionProblem& problem_;
  Rank self_;
  int ranks_;
  std::int64_t most_rows_ = 0;
  KnownRows& known_;
  std::vector<RowRange> used_, returned_;  ///< by step
};

View rows_of(const View& view, const RowRange& held, const RowRange& part) { return view.rows_at(part.begin - held.begin, part.rows()); }

/// Tensors of the queries that travel together, and the scratch they arrive in.
class Packet {
 public:
  Packet(ProgramBuilder& program, const Route& route, std::span<const View> own, std::span<const std::string_view> names)
      : program_(program),
        route_(route),
        views_(sendable(program, own, names, route.ranks() > 1 && route.passed_on(0).rows() > 0)),
        spare_(program, own, names, "", route.most_rows()) {}
  /// Passes the packet of this step on and lets the next one come; call it before working on the packet at hand.
  void pass_on(int step) {
    coming_.clear();
    if (step + 1 >= route_.ranks()) return;
    mail_.clear();
    for (View view : views_) {
      view = rows_of(view, route_.held(step), route_.passed_on(step));
      mail_.send(route_.rank_at(-1), {&view, 1});
    }
    coming_ = spare_.next(route_.held(step + 1).rows());
    mail_.receive(route_.rank_at(1), coming_);
    program_.exchange({"queries to step", step + 1}, kBlockLane, mail_.sends, mail_.receives);
  }
  View used(std::size_t tensor, int step) const { return rows_of(views_[tensor], route_.held(step), route_.used(step)); }
  void take_next() { views_ = coming_; }

 private:
  ProgramBuilder& program_;
  const Route& route_;
  std::vector<View> views_, coming_;
  SpareTensors spare_;
  Mail mail_;
};

/// Results on their way home: made into one of two slots each, received into one of two others.
class Results {
 public:
  Results(ProgramBuilder& program, const Route& route, std::span<const View> sums, std::span<const std::string_view> names)
      : program_(program),
        route_(route),
        made_(program, sums, names, ".part", route.most_rows()),
        arriving_(program, sums, names, ".back", route.most_rows()) {}
  std::vector<View> next(int step) { return made_.next(route_.used(step).rows()); }
  /// What was made in this step leaves, what was made for this rank comes.
  void send_home(int step, std::span<const View> results) {
    mail_.clear();
    mail_.send(route_.rank_at(step), results);
    arrived_ = arriving_.next(route_.returned(step).rows());
    mail_.receive(route_.rank_at(-step), arrived_);
    program_.exchange({"results of step", step}, kResultLane, mail_.sends, mail_.receives);
  }
  std::span<const View> arrived() const { return arrived_; }

 private:
  ProgramBuilder& program_;
  const Route& route_;
  SpareTensors made_, arriving_;
  std::vector<View> arrived_;
  Mail mail_;
};

void plan_forward(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions&, const ForwardSlots& on) {
  const RunningState running = running_state(program, on);
  const View state_out = running.out, state_lse = running.lse;
  const Route route(program, problem);
  constexpr std::string_view kNames[] = {"q"}, kResults[] = {"out", "lse"};
  const View own[] = {on.q}, state[] = {state_out, state_lse};
  Packet packet(program, route, own, kNames);
  Results results(program, route, state, kResults);
  const auto merge = [&](int step) {
    const RowRange rows = route.returned(step);
    program.merge({"result of step", step}, results.arrived()[0], results.arrived()[1], state_out.rows_at(rows.begin, rows.rows()),
                  state_lse.rows_at(rows.begin, rows.rows()));
  };
  std::vector<Band> bands;
  for (int step = 0; step < route.ranks(); ++step) {
    packet.pass_on(step);
    route.bands(step, bands);
    if (step == 0) {
      program.expect_bands(bands.size() * static_cast<std::size_t>(route.ranks()));
      program.attend({"step", step}, {on.q, on.k, on.v, state_out, state_lse}, bands, problem.scale_or_default(), problem.softcap,
                     Mode::write);
    } else {
      const std::vector<View> part = results.next(step);
      program.attend({"step", step}, {packet.used(0, step), on.k, on.v, part[0], part[1]}, bands, problem.scale_or_default(),
                     problem.softcap, Mode::write);
      if (step > 1) merge(step - 1);
      results.send_home(step, part);
    }
    packet.take_next();
  }
  if (route.ranks() > 1) merge(route.ranks() - 1);
  program.finish({"finish"}, state_out, state_lse, on.sink, on.out, on.lse);
}

void plan_backward(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions&, const BackwardSlots& on) {
  const View dq = sum_of(program, on.dq, "dq.sum"), dk = sum_of(program, on.dk, "dk.sum"), dv = sum_of(program, on.dv, "dv.sum");
  const Route route(program, problem);
  constexpr std::string_view kNames[] = {"q", "dout", "lse", "delta"}, kResults[] = {"dq"};
  const View own[] = {on.q, on.dout, on.lse, on.delta}, sums[] = {dq};
  Packet packet(program, route, own, kNames);
  Results results(program, route, sums, kResults);
  const DType accumulator = accumulator_of(problem.dtype);
  const View k_part = program.scratch("dk.part", accumulator, on.k.rows, on.k.heads, program.width_of(on.k));
  const View v_part = program.scratch("dv.part", accumulator, on.v.rows, on.v.heads, program.width_of(on.v));
  const auto add = [&](int step) {
    const RowRange rows = route.returned(step);
    program.add({"result of step", step}, results.arrived()[0], dq.rows_at(rows.begin, rows.rows()));
  };
  std::vector<Band> bands;
  for (int step = 0; step < route.ranks(); ++step) {
    packet.pass_on(step);
    route.bands(step, bands);
    if (step == 0) {
      program.expect_bands(bands.size() * static_cast<std::size_t>(route.ranks()));
      program.attend_backward({"step", step}, {on.q, on.k, on.v, on.dout, on.lse, on.delta, dq, dk, dv}, bands, problem.scale_or_default(),
                              problem.softcap, Mode::write);
    } else {
      const std::vector<View> part = results.next(step);
      if (!bands.empty()) {
        program.attend_backward(
            {"step", step},
            {packet.used(0, step), on.k, on.v, packet.used(1, step), packet.used(2, step), packet.used(3, step), part[0], k_part, v_part},
            bands, problem.scale_or_default(), problem.softcap, Mode::write);
        program.add({"dk of step", step}, k_part, dk);
        program.add({"dv of step", step}, v_part, dv);
      }
      if (step > 1) add(step - 1);
      results.send_home(step, part);
    }
    packet.take_next();
  }
  if (route.ranks() > 1) add(route.ranks() - 1);
  settle(program, dq, on.dq);
  settle(program, dk, on.dk);
  settle(program, dv, on.dv);
}

std::string never_refuses(const AttentionProblem&, const AttentionOptions&) { return {}; }

/// Exact where every rank needs all rows of all others, and for one causal document in zigzag chunks of one size (3.2, 3.4).
std::int64_t bytes_sent(const AttentionProblem& problem, const AttentionOptions&, Pass pass) {
  const std::int64_t ranks = problem.layout.ranks(), tokens = problem.layout.tokens();
  const MaskSpec& mask = problem.mask.spec();
  const bool unlimited = mask.window_left < 0 && mask.window_right < 0, one_document = problem.layout.cu_seqlens().size() == 2;
  if (ranks == 1) return 0;
  if (!unlimited || !one_document || tokens < ranks) return -1;
  const auto b = static_cast<std::int64_t>(size_of(problem.dtype)), a = static_cast<std::int64_t>(size_of(accumulator_of(problem.dtype)));
  const std::int64_t d = problem.head_size, e = problem.value();
  const std::int64_t packet = pass == Pass::forward ? d * b : (d + e) * b + 2 * a, result = pass == Pass::forward ? (e + 1) * a : d * a;
  if (!mask.causal) {
    for (int rank = 0; rank < ranks; ++rank) {
      if (problem.layout.rows_of(rank) == 0) return -1;
    }
    return (ranks - 1) * tokens * problem.q_heads * (packet + result);
  }
  if (problem.layout.kind() != LayoutKind::zigzag || tokens % (2 * ranks) != 0) return -1;
  std::int64_t packet_halves = 0, result_halves = 0;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    for (std::int64_t step = 0; step + 1 < ranks; ++step) packet_halves += (rank + ranks - 1) % ranks + step + 1 < ranks ? 2 : 1;
    for (std::int64_t step = 1; step < ranks; ++step) result_halves += rank + step < ranks ? 2 : 1;
  }
  return tokens / (2 * ranks) * problem.q_heads * (packet_halves * packet + result_halves * result);
}

}  // namespace

Strategy token_ring_strategy() {
  return {"token_ring",
          "K,V stay, queries travel round the ring and partial results go straight home",
          0,
          never_refuses,
          plan_forward,
          plan_backward,
          bytes_sent};
}

}  // namespace periplus::strategy
