#include "parallel/strategy/head_trade.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include <fmt/format.h>

namespace periplus::strategy {
namespace {

using plan::Message;
using plan::ProgramBuilder;
using plan::Rank;
using plan::View;

/// One piece of the heads of a member: whole KV heads of it.
HeadRange piece_of(const HeadRange& heads, int piece, int pieces) {
  const HeadRange kv = HeadRange::share(heads.kv_count(), 1, piece, pieces);
  const int begin = std::max(heads.first, (heads.kv_first() + kv.first) * heads.group);
  const int end = std::min(heads.first + heads.count, (heads.kv_first() + kv.first + kv.count) * heads.group);
  return {begin, std::max(0, end - begin), heads.group};
}

/// Scratch for the rows of `home` and each member of a head group, each with the member's own number of heads: one slot for
/// all members of a number, so that a program has few slots.
class MemberScratch {
 public:
  MemberScratch(ProgramBuilder& program, const std::string& name, const View& home, DType dtype, std::span<const int> heads) {
    const std::int64_t rows = home.rows, width = program.width_of(home);
    of_member_.reserve(heads.size()), views_.reserve(heads.size());
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

View view_of(const View& view, bool kv, const HeadRange& heads) {
  return kv ? view.heads_at(heads.kv_first(), heads.kv_count()) : view.heads_at(heads.first, heads.count);
}

}  // namespace

std::vector<Rank> Grid::head_group(int context) const {
  std::vector<Rank> ranks;
  for (int head = 0; head < heads; ++head) ranks.push_back(rank(head, context));
  return ranks;
}

HeadRange heads_of(const AttentionProblem& problem, const Grid& grid, int member) {
  return HeadRange::share(problem.q_heads, problem.q_heads / problem.kv_heads, member, grid.heads);
}

HeadTrade::HeadTrade(ProgramBuilder& program, const AttentionProblem& problem, const Grid& grid, const GroupedLayout& groups, int pieces)
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
  std::tie(into_sequence_, out_of_sequence_) = program.new_orders(groups.moves[static_cast<std::size_t>(context)]);
}

template <class TakesPart>
std::vector<int> HeadTrade::head_counts(bool kv, int piece, const TakesPart& takes_part) const {
  std::vector<int> counts;
  counts.reserve(ranks_.size());
  for (int member = 0; member < grid_.heads; ++member) {
    const HeadRange& range = heads(member, piece);
    counts.push_back(!takes_part(member) ? 0 : kv ? range.kv_count() : range.count);
  }
  return counts;
}

View HeadTrade::leaving(const Outgoing& tensor, int member, int piece) const {
  return view_of(tensor.home, tensor.kv, heads(member, piece));
}

std::vector<View> HeadTrade::there(int piece, std::span<const Outgoing> tensors) {
  std::vector<View> results;
  std::vector<Message> sends, receives;
  sends.reserve(tensors.size() * own_parts().size() * ranks_.size()), receives.reserve(sends.capacity());
  for (const Outgoing& t : tensors) {
    const View own = leaving(t, self_, piece);
    results.push_back(grid_.heads == 1
                          ? own
                          : program_.scratch(t.name + suffix(piece), program_.dtype_of(own), rows(), own.heads, program_.width_of(own)));
  }
  std::vector<MemberScratch> packed;
  std::vector<bool> filled(tensors.size() * ranks_.size(), false);
  for (const Outgoing& t : tensors) {
    const auto packs = [&](int member) { return first_alike(t.kv, member, piece) == member; };
    packed.emplace_back(program_, t.name + ".packed" + suffix(piece), t.home, program_.dtype_of(t.home), head_counts(t.kv, piece, packs));
  }
  for (int apart = 1; apart < grid_.heads; ++apart) {
    const int to = member(apart), from = member(-apart);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      View from_home = leaving(tensors[i], to, piece);
      if (!program_.is_sendable(from_home)) {
        const int alike = first_alike(tensors[i].kv, to, piece);
        auto is_filled = filled[i * ranks_.size() + static_cast<std::size_t>(alike)];
        if (!is_filled) program_.copy({"pack"}, from_home, packed[i].of(alike));
        is_filled = true;
        from_home = packed[i].of(alike);
      }
      append(sends, self_, rank(to), from_home, false);
      append(receives, from, rank(from), results[i], true);
    }
  }
  program_.exchange({"heads there", piece}, kBlockLane, sends, receives);
  for (std::size_t i = 0; i < tensors.size() && grid_.heads > 1; ++i) {
    for (const GroupedLayout::Part& part : own_parts())
      program_.copy({"own part"}, leaving(tensors[i], self_, piece).rows_at(part.from, part.rows), results[i].rows_at(part.to, part.rows));
  }
  return results;
}
std::vector<View> HeadTrade::in_sequence(int piece, std::span<const Outgoing> tensors, std::span<const View> arrived) {
  std::vector<View> results;
  for (std::size_t i = 0; i < tensors.size(); ++i)
    results.push_back(in_order(tensors[i].name + suffix(piece) + ".sequence", arrived[i], into_sequence_));
  return results;
}

void HeadTrade::back(int piece, std::span<Returning> tensors) {
  std::vector<Message> sends, receives;
  std::vector<MemberScratch> arriving;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    tensors[i].arrived.assign(ranks_.size(), {});
    const std::string name = std::string(tensors[i].name).append(".home").append(suffix(piece));
    tensors[i].slot = in_order(name + ".leaving", tensors[i].slot, out_of_sequence_);
    arriving.emplace_back(program_, name, tensors[i].home, program_.dtype_of(tensors[i].slot),
                          head_counts(tensors[i].kv, piece, [&](int member) { return member != self_; }));
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
void HeadTrade::arrive(int piece, std::span<const Returning> tensors, std::vector<std::vector<bool>>& seen) {
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

/// The rows of the group in the order of the layout, or in that of their arrival; itself where the two agree.
View HeadTrade::in_order(std::string name, const View& slot, plan::Range order) {
  if (order.count == 0) return slot;
  const View ordered = program_.scratch(std::move(name), program_.dtype_of(slot), slot.rows, slot.heads, program_.width_of(slot));
  program_.copy({"order rows"}, slot, ordered, order);
  return ordered;
}
void HeadTrade::bring_home(const Returning& t, const HeadRange& range, const View& from, const View& home, std::vector<bool>& seen) {
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
int HeadTrade::first_alike(bool kv, int member, int piece) const {
  return kv ? first_alike_[static_cast<std::size_t>(member * pieces_ + piece)] : member;
}
void HeadTrade::find_alike() {
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
/// The rows of a member, part by part: of a slot of the group's rows, or of a view of the member's own.
void HeadTrade::append(std::vector<Message>& messages, int member, Rank peer, const View& view, bool of_group) const {
  for (const GroupedLayout::Part& part : parts_[static_cast<std::size_t>(member)])
    messages.push_back({peer, view.rows_at(of_group ? part.to : part.from, part.rows)});
}
std::string HeadTrade::suffix(int piece) const { return pieces_ > 1 ? fmt::format(".{}", piece) : ""; }

}  // namespace periplus::strategy
