#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "parallel/strategy/heads.h"
#include "parallel/strategy/strategy.h"

namespace periplus::strategy {

/// The ranks as a grid: `heads` of them share heads, `contexts` of them form a ring.
struct Grid {
  int heads, contexts;
  bool head_first;

  plan::Rank rank(int head, int context) const { return head_first ? context * heads + head : head * contexts + context; }
  int head_of(plan::Rank rank) const { return head_first ? rank % heads : rank / contexts; }
  int context_of(plan::Rank rank) const { return head_first ? rank / heads : rank % contexts; }
  std::vector<plan::Rank> head_group(int context) const;
};

/// Heads of a member of a head group.
HeadRange heads_of(const AttentionProblem& problem, const Grid& grid, int member);

/// One rank's trades with its head group: its rows of all heads for the group's rows of some, and results back.
class HeadTrade {
 public:
  /// A rank's heads are traded in `pieces` parts, each of whole KV heads.
  HeadTrade(plan::ProgramBuilder& program, const AttentionProblem& problem, const Grid& grid, const GroupedLayout& groups, int pieces);

  const HeadRange& heads(int member, int piece) const { return heads_[static_cast<std::size_t>(member * pieces_ + piece)]; }
  HeadRange own_heads(int piece) const { return heads(self_, piece); }
  std::int64_t rows() const { return rows_; }

  /// Tensors that leave together. Each has a view of all heads at home, and becomes a slot of the group's rows and own heads.
  struct Outgoing {
    plan::View home;
    std::string name;
    bool kv;
  };
  std::vector<plan::View> there(int piece, std::span<const Outgoing> tensors);
  /// What arrived, with its rows in the order of the layout. Apart from `there`: it waits for the exchange, so that compute
  /// on the piece before has to come first.
  std::vector<plan::View> in_sequence(int piece, std::span<const Outgoing> tensors, std::span<const plan::View> arrived);

  /// The way back of results: every rank's rows go home. Call `arrive` when the next piece is under way.
  struct Returning {
    plan::View slot, home;
    bool kv;
    std::string_view name;
    std::vector<plan::View> arrived = {};  ///< by member
  };
  void back(int piece, std::span<Returning> tensors);
  /// `seen` says which KV heads of the sums already hold something; members are added in rank order.
  void arrive(int piece, std::span<const Returning> tensors, std::vector<std::vector<bool>>& seen);

 private:
  /// The first member that uses the same heads: they are packed once for all of them.
  int first_alike(bool kv, int member, int piece) const;
  void find_alike();
  plan::View in_order(std::string name, const plan::View& slot, plan::Range order);
  plan::View leaving(const Outgoing& tensor, int member, int piece) const;
  void bring_home(const Returning& tensor, const HeadRange& range, const plan::View& from, const plan::View& home, std::vector<bool>& seen);
  void append(std::vector<plan::Message>& messages, int member, plan::Rank peer, const plan::View& view, bool of_group) const;
  /// Of each member for a piece; 0 of those that `takes_part` leaves out.
  template <class TakesPart>
  std::vector<int> head_counts(bool kv, int piece, const TakesPart& takes_part) const;
  const std::vector<GroupedLayout::Part>& own_parts() const { return parts_[static_cast<std::size_t>(self_)]; }
  int member(int apart) const { return ((self_ + apart) % grid_.heads + grid_.heads) % grid_.heads; }
  plan::Rank rank(int member) const { return ranks_[static_cast<std::size_t>(member)]; }
  std::string suffix(int piece) const;

  plan::ProgramBuilder& program_;
  Grid grid_;
  int pieces_, self_;
  std::vector<plan::Rank> ranks_;
  std::int64_t rows_ = 0;
  std::vector<int> first_alike_;                         ///< by member and piece, as heads_
  std::vector<HeadRange> heads_;                         ///< by member and piece
  std::vector<std::vector<GroupedLayout::Part>> parts_;  ///< by member
  plan::Range into_sequence_, out_of_sequence_;          ///< moves between the order of arrival and that of the layout
};

}  // namespace periplus::strategy
