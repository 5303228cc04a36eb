#include "parallel/strategy/ulysses.h"

#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "parallel/strategy/head_trade.h"
#include "parallel/strategy/ring.h"

namespace periplus::strategy {
namespace {

using plan::ProgramBuilder;
using plan::Rank;
using plan::View;

int largest_divisor(int of, int most) {
  for (int divisor = std::min(of, most); divisor > 1; --divisor) {
    if (of % divisor == 0) return divisor;
  }
  return 1;
}

Grid ulysses_grid(const AttentionProblem& problem, const AttentionOptions&) { return {problem.layout.ranks(), 1, true}; }
/// As many ranks share heads as the query heads allow: an all-to-all moves less the more ranks take part, a ring does not.
Grid usp_grid(const AttentionProblem& problem, const AttentionOptions& options) {
  const int ranks = problem.layout.ranks();
  const int heads = options.head_ranks > 0 ? options.head_ranks : largest_divisor(ranks, problem.q_heads);
  return {heads, ranks / heads, options.placement == "head_first"};
}

/// Whether some KV head is used by two members, so that its gradients have to be added.
bool shares_kv_heads(const AttentionProblem& problem, const Grid& grid) {
  const int group = problem.q_heads / problem.kv_heads;
  for (int member = 0; member + 1 < grid.heads; ++member) {
    const HeadRange heads = heads_of(problem, grid, member);
    if ((heads.first + heads.count) % group != 0) return true;
  }
  return false;
}

std::vector<std::vector<int>> head_groups(const Grid& grid) {
  std::vector<std::vector<int>> groups;
  for (int context = 0; context < grid.contexts; ++context) groups.push_back(grid.head_group(context));
  return groups;
}

/// The ring of the ranks with the own heads, over the rows of head groups.
struct ContextRing {
  const SequenceLayout& layout;  ///< Of the head groups.
  std::vector<Rank> members = {};

  ContextRing(const SequenceLayout& of_groups, const Grid& grid, Rank self) : layout(of_groups) {
    for (int context = 0; context < grid.contexts; ++context) members.push_back(grid.rank(grid.head_of(self), context));
  }
  Ring ring(ProgramBuilder& program, const AttentionProblem& problem, const Grid& grid, const AttentionOptions& options,
            HeadRange heads) const {
    Ring ring{.members = members, .self = grid.context_of(program.rank())};
    ring.rows_of = [this](int member) { return layout.rows_of(member); };
    ring.bands_with = [this, &program, &problem, own = ring.self](int member) {
      return program.bands_between(layout, problem.mask, own, member);
    };
    ring.heads = heads;
    ring.scale = problem.scale_or_default(), ring.softcap = problem.softcap;
    if (options.ranks_per_node > 0) ring.node = grid.head_first ? options.ranks_per_node / grid.heads : options.ranks_per_node;
    if (ring.node >= ring.size()) ring.node = 0;
    return ring;
  }
};

template <Grid (*grid_of)(const AttentionProblem&, const AttentionOptions&)>
void plan_forward(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions& options, const ForwardSlots& on) {
  const Grid grid = grid_of(problem, options);
  const DType accumulator = accumulator_of(problem.dtype);
  const GroupedLayout& groups = program.in_common<GroupedLayout>([&] { return GroupedLayout(problem.layout, head_groups(grid)); });
  HeadTrade trade(program, problem, grid, groups, options.pieces);
  const ContextRing contexts(groups.layout, grid, program.rank());
  const HeadTrade::Outgoing tensors[] = {{on.q, "q.heads", false}, {on.k, "k.heads", true}, {on.v, "v.heads", true}};
  std::vector<std::vector<bool>> none(2);
  std::vector<HeadTrade::Returning> last;
  std::vector<View> arriving = trade.there(0, tensors);
  for (int piece = 0; piece < options.pieces; ++piece) {
    const std::vector<View> arrived = arriving;
    if (piece + 1 < options.pieces) arriving = trade.there(piece + 1, tensors);
    const std::vector<View> here = trade.in_sequence(piece, tensors, arrived);
    const HeadRange heads = trade.own_heads(piece);
    const auto slot = [&](std::string_view name, DType dtype, std::int64_t width) {
      return program.scratch(fmt::format("{}.{}", name, piece), dtype, trade.rows(), heads.count, width);
    };
    const View state_out = slot("state.out", accumulator, problem.value()), state_lse = slot("state.lse", accumulator, 1);
    Ring ring = contexts.ring(program, problem, grid, options, heads);
    ring.name = fmt::format("piece{}.", piece);
    ring_forward(program, {here[0], here[1], here[2], state_out, state_lse}, ring);
    const View out = slot("out.heads", problem.dtype, problem.value()), lse = slot("lse.heads", accumulator, 1);
    const View sink = on.sink.present() ? on.sink.heads_at(heads.first, heads.count) : View{};
    program.finish({"finish"}, state_out, state_lse, sink, out, lse);
    std::vector<HeadTrade::Returning> results{{out, on.out, false, "out"}, {lse, on.lse, false, "lse"}};
    trade.back(piece, results);
    if (piece > 0) trade.arrive(piece - 1, last, none);
    last = std::move(results);
  }
  trade.arrive(options.pieces - 1, last, none);
}

template <Grid (*grid_of)(const AttentionProblem&, const AttentionOptions&)>
void plan_backward(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions& options, const BackwardSlots& on) {
  const Grid grid = grid_of(problem, options);
  const DType accumulator = accumulator_of(problem.dtype);
  const GroupedLayout& groups = program.in_common<GroupedLayout>([&] { return GroupedLayout(problem.layout, head_groups(grid)); });
  HeadTrade trade(program, problem, grid, groups, options.pieces);
  const ContextRing contexts(groups.layout, grid, program.rank());
  const HeadTrade::Outgoing tensors[] = {{on.q, "q.heads", false},         {on.dout, "dout.heads", false}, {on.lse, "lse.heads", false},
                                         {on.delta, "delta.heads", false}, {on.k, "k.heads", true},        {on.v, "v.heads", true}};
  // Gradients of a KV head that several ranks used travel, and are added, in accumulator type.
  const bool shared = shares_kv_heads(problem, grid);
  const View dk = shared ? sum_of(program, on.dk, "dk.sum") : on.dk, dv = shared ? sum_of(program, on.dv, "dv.sum") : on.dv;
  std::vector<std::vector<bool>> seen(3, std::vector<bool>(static_cast<std::size_t>(problem.kv_heads), false));
  std::vector<HeadTrade::Returning> last;
  std::vector<View> arriving = trade.there(0, tensors);
  for (int piece = 0; piece < options.pieces; ++piece) {
    const std::vector<View> arrived = arriving;
    if (piece + 1 < options.pieces) arriving = trade.there(piece + 1, tensors);
    const std::vector<View> here = trade.in_sequence(piece, tensors, arrived);
    const HeadRange heads = trade.own_heads(piece);
    const auto result = [&](std::string_view name, int number, std::int64_t width, DType dtype) {
      return program.scratch(fmt::format("{}.{}", name, piece), dtype, trade.rows(), number, width);
    };
    const View q_part = result("dq.heads", heads.count, problem.head_size, problem.dtype);
    const DType kv_type = shared ? accumulator : problem.dtype;
    const View k_part = result("dk.heads", heads.kv_count(), problem.head_size, kv_type);
    const View v_part = result("dv.heads", heads.kv_count(), problem.value(), kv_type);
    const auto sum = [&](View part, std::string_view name) { return sum_of(program, part, fmt::format("{}.sum.{}", name, piece)); };
    const View dq_sum = sum(q_part, "dq"), dk_sum = sum(k_part, "dk"), dv_sum = sum(v_part, "dv");
    Ring ring = contexts.ring(program, problem, grid, options, heads);
    ring.name = fmt::format("piece{}.", piece);
    ring_backward(program, {here[0], here[4], here[5], here[1], here[2], here[3], dq_sum, dk_sum, dv_sum}, ring);
    settle(program, dq_sum, q_part);
    settle(program, dk_sum, k_part);
    settle(program, dv_sum, v_part);
    std::vector<HeadTrade::Returning> results{{q_part, on.dq, false, "dq"}, {k_part, dk, true, "dk"}, {v_part, dv, true, "dv"}};
    trade.back(piece, results);
    if (piece > 0) trade.arrive(piece - 1, last, seen);
    last = std::move(results);
  }
  trade.arrive(options.pieces - 1, last, seen);
  settle(program, dk, on.dk);
  settle(program, dv, on.dv);
}

std::string refusal_on(const AttentionProblem& problem, const AttentionOptions& options, const Grid& grid) {
  int fewest = problem.kv_heads;
  for (int member = 0; member < grid.heads; ++member) fewest = std::min(fewest, heads_of(problem, grid, member).kv_count());
  if (options.pieces > std::max(1, fewest))
    return fmt::format("{} pieces, but some rank has {} KV heads; use at most that many", options.pieces, std::max(1, fewest));
  return {};
}

std::string ulysses_refusal(const AttentionProblem& problem, const AttentionOptions& options) {
  return refusal_on(problem, options, ulysses_grid(problem, options));
}

std::string usp_refusal(const AttentionProblem& problem, const AttentionOptions& options) {
  const int ranks = problem.layout.ranks();
  if (options.head_ranks > 0 && ranks % options.head_ranks != 0) {
    return fmt::format("{} ranks are not a multiple of {} head_ranks; use a divisor such as {}", ranks, options.head_ranks,
                       largest_divisor(ranks, options.head_ranks));
  }
  const Grid grid = usp_grid(problem, options);
  if (options.ranks_per_node > 0) {
    const int unit = grid.head_first ? grid.heads : 1, node = options.ranks_per_node / unit;
    if (options.ranks_per_node % unit != 0 || (node < grid.contexts && grid.contexts % node != 0)) {
      return fmt::format("nodes of {} ranks do not hold whole parts of rings of {} with {} head ranks; use another ranks_per_node or none",
                         options.ranks_per_node, grid.contexts, grid.heads);
    }
  }
  return refusal_on(problem, options, grid);
}

/// Every rank sends a row to each other member of its head group once for the heads of that member, and gets results back.
template <Grid (*grid_of)(const AttentionProblem&, const AttentionOptions&)>
std::int64_t bytes_sent(const AttentionProblem& problem, const AttentionOptions& options, Pass pass) {
  const Grid grid = grid_of(problem, options);
  const std::int64_t d = problem.head_size, e = problem.value();
  const auto b = static_cast<std::int64_t>(size_of(problem.dtype)), a = static_cast<std::int64_t>(size_of(accumulator_of(problem.dtype)));
  const std::int64_t kv_back = shares_kv_heads(problem, grid) ? a : b;
  const std::int64_t per_q = pass == Pass::forward ? (d + e) * b + a : (2 * d + e) * b + 2 * a;
  const std::int64_t per_kv = (d + e) * (pass == Pass::forward ? b : b + kv_back);
  std::int64_t bytes = 0;
  for (Rank rank = 0; rank < problem.layout.ranks(); ++rank) {
    for (int member = 0; member < grid.heads; ++member) {
      const HeadRange heads = heads_of(problem, grid, member);
      if (member != grid.head_of(rank)) bytes += problem.layout.rows_of(rank) * (heads.count * per_q + heads.kv_count() * per_kv);
    }
  }
  for (int member = 0; member < grid.heads; ++member)
    bytes += ring_bytes(problem, pass, grid.contexts, problem.layout.tokens(), heads_of(problem, grid, member).kv_count());
  return bytes;
}

}  // namespace

Strategy ulysses_strategy() {
  return {"ulysses",
          "ranks trade rows for heads: all rows of some heads each, by all-to-all",
          kPieces,
          ulysses_refusal,
          plan_forward<ulysses_grid>,
          plan_backward<ulysses_grid>,
          bytes_sent<ulysses_grid>};
}
Strategy usp_strategy() {
  return {"usp",
          "Ulysses in groups of head_ranks ranks, rings of K,V between the groups",
          kPieces | kHeadRanks | kPlacement | kRanksPerNode,
          usp_refusal,
          plan_forward<usp_grid>,
          plan_backward<usp_grid>,
          bytes_sent<usp_grid>};
}

}  // namespace periplus::strategy
