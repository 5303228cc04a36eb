#include "parallel/strategy/ulysses.h"

#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "parallel/strategy/heads.h"
#include "parallel/strategy/ring.h"

namespace periplus::strategy {
namespace {

using plan::Message;
using plan::ProgramBuilder;
using plan::Rank;
using plan::View;

/// The ranks as a grid: `heads` of them share heads, `contexts` of them form a ring.
struct Grid {
  int heads, contexts;
  bool head_first;

  Rank rank(int head, int context) const { return head_first ? context * heads + head : head * contexts + context; }
  int head_of(Rank rank) const { return head_first ? rank % heads : rank / contexts; }
  int context_of(Rank rank) const { return head_first ? rank / heads : rank % contexts; }

  std::vector<Rank> head_group(int context) const {
    std::vector<Rank> ranks;
    for (int head = 0; head < heads; ++head) ranks.push_back(rank(head, context));
    return ranks;
  }
};

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

/// Heads of a member of the head group, and of one piece of them: whole KV heads of the member.
HeadRange heads_of(const AttentionProblem& problem, const Grid& grid, int member) {
  return HeadRange::share(problem.q_heads, problem.q_heads / problem.kv_heads, member, grid.heads);
}
HeadRange piece_of(const HeadRange& heads, int piece, int pieces) {
  const HeadRange kv = HeadRange::share(heads.kv_count(), 1, piece, pieces);
  const int begin = std::max(heads.first, (heads.kv_first() + kv.first) * heads.group);
  const int end = std::min(heads.first + heads.count, (heads.kv_first() + kv.first + kv.count) * heads.group);
  return {begin, std::max(0, end - begin), heads.group};
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

/// Scratch of `rows` rows for each member of a head group, each with the member's own number of heads: one slot for all
/// members of a number, so that a program has few slots.
class MemberScratch {
 public:
  MemberScratch(ProgramBuilder& program, const std::string& name, DType dtype, std::int64_t rows, std::int64_t width,
                std::span<const int> heads) {
    for (std::size_t member = 0; member < heads.size(); ++member) {
      const auto like = std::ranges::find(heads.first(member), heads[member]);
      const auto index = static_cast<std::size_t>(like - heads.begin());
      if (index == member) {
        const std::int64_t count = std::ranges::count(heads, heads[member]);
        slots_.push_back(program.scratch(std::string(name).append(1, '.').append(std::to_string(heads[member])), dtype, count * rows,
                                         heads[member], width));
        used_.push_back(0);
        of_member_.push_back(slots_.size() - 1);
      } else {
        of_member_.push_back(of_member_[index]);
      }
      const std::size_t slot = of_member_.back();
      views_.push_back(slots_[slot].rows_at(rows * used_[slot]++, rows));
    }
  }
  const View& of(int member) const { return views_[static_cast<std::size_t>(member)]; }

 private:
  std::vector<View> slots_, views_;
  std::vector<std::int64_t> used_;
  std::vector<std::size_t> of_member_;
};

/// One rank's trades with its head group.
class HeadTrade {
 public:
  HeadTrade(ProgramBuilder& program, const AttentionProblem& problem, const Grid& grid, const GroupedLayout& groups, int pieces)
      : program_(program), grid_(grid), pieces_(pieces), self_(grid.head_of(program.rank())) {
    const int context = grid.context_of(program.rank());
    ranks_ = grid.head_group(context);
    rows_ = groups.layout.rows_of(context);
    for (int member = 0; member < grid.heads; ++member) {
      for (int piece = 0; piece < pieces; ++piece) heads_.push_back(piece_of(heads_of(problem, grid, member), piece, pieces));
    }
    find_alike();
    parts_.resize(ranks_.size());
    for (const GroupedLayout::Part& part : groups.parts[static_cast<std::size_t>(context)])
      parts_[static_cast<std::size_t>(part.member)].push_back(part);
    std::vector<RowMove> moves = groups.moves[static_cast<std::size_t>(context)];
    into_sequence_ = program.new_order(moves);
    for (RowMove& move : moves) std::swap(move.from, move.to);
    out_of_sequence_ = program.new_order(moves);
  }

  const HeadRange& heads(int member, int piece) const { return heads_[static_cast<std::size_t>(member * pieces_ + piece)]; }
  HeadRange own_heads(int piece) const { return heads(self_, piece); }
  std::int64_t rows() const { return rows_; }

  /// Tensors that leave together. Each has a view of all heads at home, and becomes a slot of the group's rows and own heads.
  struct Outgoing {
    View home;
    std::string name;
    bool kv;
  };
  std::vector<View> there(int piece, std::span<const Outgoing> tensors) {
    std::vector<View> results;
    std::vector<Message> sends, receives;
    const auto range = [&](const Outgoing& t, int member) { return view_of(t.home, t.kv, heads(member, piece)); };
    for (const Outgoing& t : tensors) {
      const View own = range(t, self_);
      results.push_back(grid_.heads == 1
                            ? own
                            : program_.scratch(t.name + suffix(piece), program_.dtype_of(own), rows(), own.heads, program_.width_of(own)));
    }
    std::vector<MemberScratch> packed;
    std::vector<bool> filled(tensors.size() * ranks_.size(), false);
    for (const Outgoing& t : tensors) {
      const auto packs = [&](int member) { return first_alike(t.kv, member, piece) == member; };
      packed.push_back(member_scratch(t.name + ".packed" + suffix(piece), t.home, t.kv, piece, program_.dtype_of(t.home), packs));
    }
    for (int apart = 1; apart < grid_.heads; ++apart) {
      const int to = member(apart), from = member(-apart);
      for (std::size_t i = 0; i < tensors.size(); ++i) {
        View leaving = range(tensors[i], to);
        if (!program_.is_sendable(leaving)) {
          const int alike = first_alike(tensors[i].kv, to, piece);
          auto is_filled = filled[i * ranks_.size() + static_cast<std::size_t>(alike)];
          if (!is_filled) program_.copy({"pack"}, leaving, packed[i].of(alike));
          is_filled = true;
          leaving = packed[i].of(alike);
        }
        append(sends, self_, rank(to), leaving, false);
        append(receives, from, rank(from), results[i], true);
      }
    }
    program_.exchange({"heads there", piece}, kBlockLane, sends, receives);
    for (std::size_t i = 0; i < tensors.size() && grid_.heads > 1; ++i) {
      for (const GroupedLayout::Part& part : own_parts())
        program_.copy({"own part"}, range(tensors[i], self_).rows_at(part.from, part.rows), results[i].rows_at(part.to, part.rows));
    }
    return results;
  }
  /// What arrived, with its rows in the order of the layout. Apart from `there`: it waits for the exchange, so that compute
  /// on the piece before has to come first.
  std::vector<View> in_sequence(int piece, std::span<const Outgoing> tensors, std::span<const View> arrived) {
    std::vector<View> results;
    for (std::size_t i = 0; i < tensors.size(); ++i)
      results.push_back(in_order(tensors[i].name + suffix(piece) + ".sequence", arrived[i], into_sequence_));
    return results;
  }

  /// The way back of results: every rank's rows go home. Call `arrive` when the next piece is under way.
  struct Returning {
    View slot, home;
    bool kv;
    std::vector<View> arrived = {};  ///< by member
  };
  void back(int piece, std::span<Returning> tensors, std::string_view name) {
    std::vector<Message> sends, receives;
    std::vector<MemberScratch> arriving;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      tensors[i].arrived.assign(ranks_.size(), {});
      tensors[i].slot = in_order(fmt::format("{}{}{}.leaving", name, i, suffix(piece)), tensors[i].slot, out_of_sequence_);
      arriving.push_back(member_scratch(fmt::format("{}{}{}", name, i, suffix(piece)), tensors[i].home, tensors[i].kv, piece,
                                        program_.dtype_of(tensors[i].slot), [&](int member) { return member != self_; }));
    }
    for (int apart = 1; apart < grid_.heads; ++apart) {
      const int to = member(apart), from = member(-apart);
      for (std::size_t i = 0; i < tensors.size(); ++i) {
        Returning& t = tensors[i];
        append(sends, to, rank(to), t.slot, true);
        t.arrived[static_cast<std::size_t>(from)] = arriving[i].of(from);
        append(receives, self_, rank(from), arriving[i].of(from), false);
      }
    }
    program_.exchange({"heads back", piece}, kResultLane, sends, receives);
  }
  /// `seen` says which KV heads of the sums already hold something; members are added in rank order.
  void arrive(int piece, std::span<const Returning> tensors, std::vector<std::vector<bool>>& seen) {
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const Returning& t = tensors[i];
      for (int member = 0; member < grid_.heads; ++member) {
        const HeadRange range = heads(member, piece);
        if (member != self_) {
          bring_home(t, range, t.arrived[static_cast<std::size_t>(member)], t.home, seen[i]);
          continue;
        }
        const std::vector<bool> seen_before = seen[i];
        for (const GroupedLayout::Part& part : own_parts()) {
          seen[i] = seen_before;
          bring_home(t, range, t.slot.rows_at(part.to, part.rows), t.home.rows_at(part.from, part.rows), seen[i]);
        }
      }
    }
  }

 private:
  /// The rows of the group in the order of the layout, or in that of their arrival; itself where the two agree.
  View in_order(std::string name, const View& slot, plan::Range order) {
    if (order.count == 0) return slot;
    const View ordered = program_.scratch(std::move(name), program_.dtype_of(slot), slot.rows, slot.heads, program_.width_of(slot));
    program_.copy({"order rows"}, slot, ordered, order);
    return ordered;
  }
  void bring_home(const Returning& t, const HeadRange& range, const View& from, const View& home, std::vector<bool>& seen) {
    if (!t.kv) return program_.copy({"home"}, from, view_of(home, false, range));
    // One step for all neighbours that are alike: only a head at an end may hold something already.
    const auto first = seen.begin() + range.kv_first(), last = first + range.kv_count();
    for (auto head = first; head != last;) {
      const bool held = *head;
      const auto end = std::find(head, last, !held);
      const auto count = end - head;
      const View part = from.heads_at(head - first, count), to = home.heads_at(head - seen.begin(), count);
      held ? program_.add({"home"}, part, to) : program_.copy({"home"}, part, to);
      std::fill(head, end, true);
      head = end;
    }
  }
  /// For the own rows of a tensor and the heads of a piece of each member that takes part.
  template <class TakesPart>
  MemberScratch member_scratch(const std::string& name, const View& home, bool kv, int piece, DType dtype, const TakesPart& takes_part) {
    std::vector<int> counts;
    for (int member = 0; member < grid_.heads; ++member) {
      const HeadRange range = heads(member, piece);
      counts.push_back(!takes_part(member) ? 0 : kv ? range.kv_count() : range.count);
    }
    return {program_, name, dtype, home.rows, program_.width_of(home), counts};
  }
  /// The first member that uses the same heads: they are packed once for all of them.
  int first_alike(bool kv, int member, int piece) const {
    return kv ? first_alike_[static_cast<std::size_t>(member * pieces_ + piece)] : member;
  }
  void find_alike() {
    for (int member = 0; member < grid_.heads; ++member) {
      for (int piece = 0; piece < pieces_; ++piece) {
        const auto same = [&](const HeadRange& a, const HeadRange& b) {
          return a.kv_first() == b.kv_first() && a.kv_count() == b.kv_count();
        };
        const bool goes_on = member > 0 && same(heads(member, piece), heads(member - 1, piece));
        first_alike_.push_back(goes_on ? first_alike(true, member - 1, piece) : member);
      }
    }
  }
  const std::vector<GroupedLayout::Part>& own_parts() const { return parts_[static_cast<std::size_t>(self_)]; }
  static View view_of(const View& view, bool kv, const HeadRange& heads) {
    return kv ? view.heads_at(heads.kv_first(), heads.kv_count()) : view.heads_at(heads.first, heads.count);
  }
  int member(int apart) const { return ((self_ + apart) % grid_.heads + grid_.heads) % grid_.heads; }
  Rank rank(int member) const { return ranks_[static_cast<std::size_t>(member)]; }
  /// The rows of a member, part by part: of a slot of the group's rows, or of a view of the member's own.
  void append(std::vector<Message>& messages, int member, Rank peer, const View& view, bool of_group) const {
    for (const GroupedLayout::Part& part : parts_[static_cast<std::size_t>(member)])
      messages.push_back({peer, view.rows_at(of_group ? part.to : part.from, part.rows)});
  }
  std::string suffix(int piece) const { return pieces_ > 1 ? fmt::format(".{}", piece) : ""; }

  ProgramBuilder& program_;
  Grid grid_;
  int pieces_, self_;
  std::vector<Rank> ranks_;
  std::int64_t rows_ = 0;
  std::vector<int> first_alike_;                         ///< by member and piece, as heads_
  std::vector<HeadRange> heads_;                         ///< by member and piece
  std::vector<std::vector<GroupedLayout::Part>> parts_;  ///< by member
  plan::Range into_sequence_, out_of_sequence_;          ///< moves between the order of arrival and that of the layout
};

/// The ring of the ranks with the own heads, over the rows of head groups.
struct ContextRing {
  const SequenceLayout& layout;  ///< Of the head groups.
  std::vector<Rank> members = {};

  ContextRing(const SequenceLayout& of_groups, const Grid& grid, Rank self) : layout(of_groups) {
    for (int context = 0; context < grid.contexts; ++context) members.push_back(grid.rank(grid.head_of(self), context));
  }
  Ring ring(const AttentionProblem& problem, const Grid& grid, const AttentionOptions& options, Rank self, HeadRange heads) const {
    Ring ring{.members = members, .self = grid.context_of(self)};
    ring.rows_of = [this](int member) { return layout.rows_of(member); };
    ring.bands_with = [this, &problem, own = ring.self](int member, std::vector<Band>& bands) {
      append_bands_between(layout, problem.mask, own, member, bands);
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
    Ring ring = contexts.ring(problem, grid, options, program.rank(), heads);
    ring.name = fmt::format("piece{}.", piece);
    ring_forward(program, {here[0], here[1], here[2], state_out, state_lse}, ring);
    const View out = slot("out.heads", problem.dtype, problem.value()), lse = slot("lse.heads", accumulator, 1);
    const View sink = on.sink.present() ? on.sink.heads_at(heads.first, heads.count) : View{};
    program.finish({"finish"}, state_out, state_lse, sink, out, lse);
    std::vector<HeadTrade::Returning> results{{out, on.out, false}, {lse, on.lse, false}};
    trade.back(piece, results, "home");
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
  const HeadTrade::Outgoing tensors[] = {{on.q, "q.heads", false},       {on.k, "k.heads", true},      {on.v, "v.heads", true},
                                         {on.dout, "dout.heads", false}, {on.lse, "lse.heads", false}, {on.delta, "delta.heads", false}};
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
    Ring ring = contexts.ring(problem, grid, options, program.rank(), heads);
    ring.name = fmt::format("piece{}.", piece);
    ring_backward(program, {here[0], here[1], here[2], here[3], here[4], here[5], dq_sum, dk_sum, dv_sum}, ring);
    settle(program, dq_sum, q_part);
    settle(program, dk_sum, k_part);
    settle(program, dv_sum, v_part);
    std::vector<HeadTrade::Returning> results{{q_part, on.dq, false}, {k_part, dk, true}, {v_part, dv, true}};
    trade.back(piece, results, "grad");
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
