#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "parallel/plan/provenance_pieces.h"
#include "parallel/plan/provenance_twins.h"

namespace periplus::plan {

/// The messages of one phase on their way: all leave before any arrives, for an exchange never sends what it receives.
class PhaseMail {
 public:
  void begin(std::size_t ranks) {
    boxes_.resize(ranks);
    for (std::vector<Letter>& box : boxes_) box.clear();
    pieces_.clear();
    sender_ = -1;
  }
  /// A view leaves for a rank, as read(view, pieces) appends it. Senders come in rising order. What goes to all ranks, keys and
  /// values in turns, is read once. `followers` as for_messages has it: messages that follow are not posted.
  template <class Read>
  void post(Rank from, Rank to, const View& view, const Followers& followers, Read&& read) {
    if (from != sender_) sender_ = from, last_ = {};
    if (last_[1].view == view) std::swap(last_[0], last_[1]);
    if (last_[0].view != view) {
      last_[1] = last_[0];
      last_[0] = {view, pieces_.size(), 0};
      read(view, pieces_);
      last_[0].count = pieces_.size() - last_[0].first;
    }
    boxes_[static_cast<std::size_t>(to)].push_back({from, last_[0].first, last_[0].count, followers});
  }
  /// The next letter of a sender, which must be followed as the receiver says. That there is one, the check of messages has
  /// shown: as long as both ends leave out the same, they are at the same message.
  std::span<const Piece> take(Rank from, Rank to, const Followers& followers) {
    const auto of_sender = std::ranges::lower_bound(boxes_[static_cast<std::size_t>(to)], from, {}, &Letter::from);
    const Letter& letter = of_sender[of_sender->taken++];
    if (letter.followers != followers) throw TwinsApart{};
    return std::span(pieces_).subspan(letter.first, letter.count);
  }

 private:
  struct Letter {
    Rank from;
    std::size_t first, count;
    Followers followers;
    std::ptrdiff_t taken = 0;  ///< In the first letter of a sender: how many of its letters are.
  };
  std::vector<std::vector<Letter>> boxes_;  ///< By receiver; in each by sender, in posted order.
  Pieces pieces_;
  struct Posted {
    View view = {};
    std::size_t first = 0, count = 0;
  };
  Rank sender_ = -1;
  std::array<Posted, 2> last_;  ///< Of the sender, latest first.
};

}  // namespace periplus::plan
