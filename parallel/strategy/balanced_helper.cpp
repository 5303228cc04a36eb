#include "parallel/strategy/balanced_helper.h"

#include <algorithm>
#include <ranges>
#include <vector>

#include <fmt/format.h>

#include "parallel/key_set.h"
#include "parallel/strategy/heads.h"
#include "parallel/strategy/travel.h"

namespace periplus::strategy {
namespace {

using plan::Mode;
using plan::ProgramBuilder;
using plan::Rank;
using plan::View;

/// Who works with whom in a step; -1: nobody, or the pair has nothing to compute.
struct Turn {
  Rank keys_from = -1, keys_to = -1;        ///< Whose keys the own queries meet; whose queries meet the own keys elsewhere.
  Rank queries_from = -1, queries_to = -1;  ///< Whom this rank helps; who helps it.
};

class Schedule {
 public:
  Schedule(ProgramBuilder& program, const AttentionProblem& problem)
      : program_(program), problem_(problem), ranks_(problem.layout.ranks()) {
    const Rank self = program.rank();
    KeySet own(problem.layout, problem.mask), others = own;
    own.add(self);
    const auto sees = [](const KeySet& keys, Rank queries) { return keys.rows_that_see(queries).rows() > 0; };
    const auto sees_keys_of = [&](Rank other) {
      others.clear();
      others.add(other);
      return sees(others, self);
    };
    for (int step = 0; step <= last_step(); ++step) {
      Turn turn;
      // Half way round an even number of ranks both ends of a pair would compute it; the one with the queries does.
      const bool helping = 2 * step != ranks_;
      const Rank before = (self - step + ranks_) % ranks_, after = (self + step) % ranks_;
      if (self >= step && sees_keys_of(before)) turn.keys_from = before;
      if (self < step && helping && sees(own, before)) turn.queries_from = before;
      if (self + step < ranks_ && sees(own, after)) turn.keys_to = after;
      if (self + step >= ranks_ && helping && sees_keys_of(after)) turn.queries_to = after;
      turns_.push_back(turn);
    }
  }
  int last_step() const { return ranks_ / 2; }
  bool keys_travel() const { return any_goes_to(&Turn::keys_to); }
  bool queries_travel() const { return any_goes_to(&Turn::queries_to); }
  const Turn& turn(int step) const { return turns_[static_cast<std::size_t>(step)]; }
  std::span<const Band> bands(Rank queries, Rank keys) const {
    return program_.bands_between(problem_.layout, problem_.mask, queries, keys);
  }
  std::int64_t rows_of(Rank rank) const { return rank < 0 ? 0 : problem_.layout.rows_of(rank); }
  std::int64_t most_rows() const {
    std::int64_t most = 0;
    for (Rank rank = 0; rank < ranks_; ++rank) most = std::max(most, rows_of(rank));
    return most;
  }

 private:
  /// In step 0 a rank meets itself.
  bool any_goes_to(Rank Turn::*receiver) const {
    return std::ranges::any_of(turns_ | std::views::drop(1), [&](const Turn& turn) { return turn.*receiver >= 0; });
  }

  ProgramBuilder& program_;
  const AttentionProblem& problem_;
  int ranks_;
  std::vector<Turn> turns_;  ///< by step
};

/// Blocks of one step on their way: keys to those who attend to them, queries to helpers.
struct Arriving {
  std::vector<View> keys, queries;
};
Arriving bring_blocks(ProgramBuilder& program, const Schedule& schedule, int step, std::span<const View> keys,
                      std::span<const View> queries, SpareTensors& spare_keys, SpareTensors& spare_queries) {
  const Turn turn = schedule.turn(step);
  const Arriving arriving{spare_keys.next(schedule.rows_of(turn.keys_from)), spare_queries.next(schedule.rows_of(turn.queries_from))};
  Mail mail;
  mail.send(turn.keys_to, keys);
  mail.send(turn.queries_to, queries);
  mail.receive(turn.keys_from, arriving.keys);
  mail.receive(turn.queries_from, arriving.queries);
  program.exchange({"blocks of step", step}, kBlockLane, mail.sends, mail.receives);
  return arriving;
}

constexpr std::string_view kKeyNames[] = {"k", "v"}, kQueryNames[] = {"q", "dout", "lse", "delta"};

void plan_forward(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions&, const ForwardSlots& on) {
  const RunningState running = running_state(program, on);
  const View state_out = running.out, state_lse = running.lse;
  const Schedule schedule(program, problem);
  const View own_keys[] = {on.k, on.v}, own_queries[] = {on.q}, state[] = {state_out, state_lse};
  constexpr std::string_view kState[] = {"out", "lse"};
  const std::vector<View> keys = sendable(program, own_keys, kKeyNames, schedule.keys_travel()),
                          queries = sendable(program, own_queries, kQueryNames, schedule.queries_travel());
  const std::int64_t most = schedule.most_rows();
  SpareTensors spare_keys(program, own_keys, kKeyNames, "", most), spare_queries(program, own_queries, kQueryNames, "", most);
  SpareTensors parts(program, state, kState, ".part", most), returns(program, state, kState, ".back", most);
  const auto attend = [&](int step, const View& q, const View& k, const View& v, const View& out, const View& lse,
                          std::span<const Band> bands, Mode mode) {
    program.attend({"step", step}, {q, k, v, out, lse}, bands, problem.scale_or_default(), problem.softcap, mode);
  };

  Arriving arriving;
  std::vector<View> returned;
  for (int step = 0; step <= schedule.last_step(); ++step) {
    const Turn turn = schedule.turn(step);
    const Arriving here = arriving;
    if (step < schedule.last_step()) arriving = bring_blocks(program, schedule, step + 1, keys, queries, spare_keys, spare_queries);
    if (step == 0) {
      attend(step, on.q, on.k, on.v, state_out, state_lse, schedule.bands(program.rank(), program.rank()), Mode::write);
      continue;
    }
    const std::vector<View> part = parts.next(schedule.rows_of(turn.queries_from));
    if (turn.keys_from >= 0)
      attend(step, on.q, here.keys[0], here.keys[1], state_out, state_lse, schedule.bands(program.rank(), turn.keys_from), Mode::add);
    if (turn.queries_from >= 0)
      attend(step, here.queries[0], on.k, on.v, part[0], part[1], schedule.bands(turn.queries_from, program.rank()), Mode::write);
    if (step > 1 && schedule.turn(step - 1).queries_to >= 0)
      program.merge({"result of step", step - 1}, returned[0], returned[1], state_out, state_lse);
    returned = returns.next(schedule.rows_of(turn.queries_to >= 0 ? program.rank() : -1));
    Mail mail;
    mail.send(turn.queries_from, part);
    mail.receive(turn.queries_to, returned);
    program.exchange({"results of step", step}, kResultLane, mail.sends, mail.receives);
  }
  if (const int last = schedule.last_step(); last > 0 && schedule.turn(last).queries_to >= 0)
    program.merge({"result of step", last}, returned[0], returned[1], state_out, state_lse);
  program.finish({"finish"}, state_out, state_lse, on.sink, on.out, on.lse);
}

void plan_backward(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions&, const BackwardSlots& on) {
  const View dq = sum_of(program, on.dq, "dq.sum"), dk = sum_of(program, on.dk, "dk.sum"), dv = sum_of(program, on.dv, "dv.sum");
  const Schedule schedule(program, problem);
  const View own_keys[] = {on.k, on.v}, own_queries[] = {on.q, on.dout, on.lse, on.delta}, key_sums[] = {dk, dv}, query_sums[] = {dq};
  constexpr std::string_view kKeySums[] = {"dk", "dv"}, kQuerySums[] = {"dq"};
  const std::vector<View> keys = sendable(program, own_keys, kKeyNames, schedule.keys_travel()),
                          queries = sendable(program, own_queries, kQueryNames, schedule.queries_travel());
  const std::int64_t most = schedule.most_rows();
  SpareTensors spare_keys(program, own_keys, kKeyNames, "", most), spare_queries(program, own_queries, kQueryNames, "", most);
  SpareTensors key_parts(program, key_sums, kKeySums, ".part", most), key_returns(program, key_sums, kKeySums, ".back", most);
  SpareTensors query_parts(program, query_sums, kQuerySums, ".part", most), query_returns(program, query_sums, kQuerySums, ".back", most);
  const auto attend = [&](int step, std::span<const View> q, const View& k, const View& v, const View& to_q, const View& to_k,
                          const View& to_v, std::span<const Band> bands, Mode dq_mode) {
    program.attend_backward({"step", step}, {q[0], k, v, q[1], q[2], q[3], to_q, to_k, to_v}, bands, problem.scale_or_default(),
                            problem.softcap, dq_mode);
  };
  // The own block: half of its KV heads at once, while the first blocks come; the other half, on sums that start at zero,
  // at the end, while the last gradients come home.
  const HeadRange all{0, problem.q_heads, problem.q_heads / problem.kv_heads};
  const int late_head = (problem.kv_heads + 1) / 2, late_heads = problem.kv_heads - late_head;
  const std::span<const Band> own_bands = schedule.bands(program.rank(), program.rank());
  const auto attend_own = [&](int first, int count, int gradient_head, const View& to_k, const View& to_v, std::span<const Band> bands,
                              Mode dq_mode) {
    for (const HeadPart& part : all.parts(first, count)) {
      const auto of_queries = [&](const View& view) { return view.heads_at(part.q_head, part.q_heads); };
      const auto of_keys = [&](const View& view, int from) { return view.heads_at(part.kv_head - from, part.kv_heads); };
      const View q[] = {of_queries(on.q), of_queries(on.dout), of_queries(on.lse), of_queries(on.delta)};
      attend(0, q, of_keys(on.k, 0), of_keys(on.v, 0), of_queries(dq), of_keys(to_k, gradient_head), of_keys(to_v, gradient_head), bands,
             dq_mode);
    }
  };
  std::vector<View> keys_back, queries_back;
  const auto add_returned = [&](int step) {
    const Turn turn = schedule.turn(step);
    if (turn.keys_to >= 0) {
      program.add({"dk of step", step}, keys_back[0], dk);
      program.add({"dv of step", step}, keys_back[1], dv);
    }
    if (turn.queries_to >= 0) program.add({"dq of step", step}, queries_back[0], dq);
  };

  Arriving arriving;
  for (int step = 0; step <= schedule.last_step(); ++step) {
    const Turn turn = schedule.turn(step);
    const Arriving here = arriving;
    if (step < schedule.last_step()) arriving = bring_blocks(program, schedule, step + 1, keys, queries, spare_keys, spare_queries);
    if (step == 0) {
      attend_own(0, late_head, 0, dk, dv, own_bands, Mode::write);
      attend_own(late_head, late_heads, 0, dk, dv, {}, Mode::write);
      continue;
    }
    // A rank either attends to other keys or helps; the gradients of keys go home in the first case, are its own in the second.
    const std::vector<View> key_part = key_parts.next(turn.queries_from >= 0 ? on.k.rows : schedule.rows_of(turn.keys_from));
    const std::vector<View> query_part = query_parts.next(schedule.rows_of(turn.queries_from));
    if (turn.keys_from >= 0) {
      attend(step, own_queries, here.keys[0], here.keys[1], dq, key_part[0], key_part[1], schedule.bands(program.rank(), turn.keys_from),
             Mode::add);
    }
    if (turn.queries_from >= 0) {
      attend(step, here.queries, on.k, on.v, query_part[0], key_part[0], key_part[1], schedule.bands(turn.queries_from, program.rank()),
             Mode::write);
      program.add({"dk of help", step}, key_part[0], dk);
      program.add({"dv of help", step}, key_part[1], dv);
    }
    if (step > 1) add_returned(step - 1);
    keys_back = key_returns.next(turn.keys_to >= 0 ? on.k.rows : 0);
    queries_back = query_returns.next(turn.queries_to >= 0 ? on.q.rows : 0);
    Mail mail;
    mail.send(turn.keys_from, key_part);
    mail.send(turn.queries_from, query_part);
    mail.receive(turn.keys_to, keys_back);
    mail.receive(turn.queries_to, queries_back);
    program.exchange({"results of step", step}, kResultLane, mail.sends, mail.receives);
  }
  if (late_heads > 0) {
    const DType accumulator = accumulator_of(problem.dtype);
    const View late_k = program.scratch("dk.own", accumulator, on.k.rows, late_heads, program.width_of(on.k));
    const View late_v = program.scratch("dv.own", accumulator, on.v.rows, late_heads, program.width_of(on.v));
    attend_own(late_head, late_heads, late_head, late_k, late_v, own_bands, Mode::add);
    program.add({"dk of the own block"}, late_k, dk.heads_at(late_head, late_heads));
    program.add({"dv of the own block"}, late_v, dv.heads_at(late_head, late_heads));
  }
  if (schedule.last_step() > 0) add_returned(schedule.last_step());
  settle(program, dq, on.dq);
  settle(program, dk, on.dk);
  settle(program, dv, on.dv);
}

std::string refusal(const AttentionProblem& problem, const AttentionOptions&) {
  if (problem.layout.kind() == LayoutKind::contiguous && problem.mask.spec().causal) return {};
  return fmt::format(
      "it schedules the triangle of a causal mask over contiguous shards, and this is a {} mask over layout {}; use layout "
      "contiguous with a causal mask, or strategy ring",
      problem.mask.spec().causal ? "causal" : "full", to_string(problem.layout.kind()));
}

/// One causal document in shards of one size, where every pair has work.
std::int64_t bytes_sent(const AttentionProblem& problem, const AttentionOptions&, Pass pass) {
  const std::int64_t ranks = problem.layout.ranks(), tokens = problem.layout.tokens();
  if (ranks == 1) return 0;
  if (problem.mask.spec().window_left >= 0 || problem.layout.cu_seqlens().size() != 2 || tokens == 0 || tokens % ranks != 0) return -1;
  const auto b = static_cast<std::int64_t>(size_of(problem.dtype)), a = static_cast<std::int64_t>(size_of(accumulator_of(problem.dtype)));
  const std::int64_t d = problem.head_size, e = problem.value();
  const std::int64_t keys = problem.kv_heads * (d + e) * (pass == Pass::forward ? b : b + a);
  const std::int64_t help = problem.q_heads * (pass == Pass::forward ? d * b + (e + 1) * a : (d + e) * b + (d + 2) * a);
  std::int64_t bytes = 0;
  for (std::int64_t step = 1; step <= ranks / 2; ++step) bytes += (ranks - step) * keys + (2 * step != ranks ? step * help : 0);
  return tokens / ranks * bytes;
}

}  // namespace

Strategy balanced_helper_strategy() {
  return {"balanced_helper",
          "contiguous causal shards: ranks without work take over queries of others, P/2 + 1 steps",
          0,
          refusal,
          plan_forward,
          plan_backward,
          bytes_sent};
}

}  // namespace periplus::strategy
