#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "parallel/plan/provenance_pieces.h"

namespace periplus::plan {

/// The messages of one phase on their way: all leave before any arrives, for an exchange never sends what it receives.
class PhaseMail {
 public:
  void begin(std::size_t ranks) {
    boxes_.resize(ranks);
    for (std::vector<Letter>& box : boxes_) box.clear();
    pieces_.clear();
  }
  /// What fill(pieces) appends leaves for a rank. Senders come in rising order.
  template <class Fill>
  void post(Rank from, Rank to, Fill&& fill) {
    const std::size_t first = pieces_.size();
    fill(pieces_);
    boxes_[static_cast<std::size_t>(to)].push_back({from, first, pieces_.size() - first});
  }
  /// The next letter of a sender. That there is one, the check of messages has shown.
  std::span<const Piece> take(Rank from, Rank to) {
    const auto of_sender = std::ranges::lower_bound(boxes_[static_cast<std::size_t>(to)], from, {}, &Letter::from);
    const Letter& letter = of_sender[of_sender->taken++];
    return std::span(pieces_).subspan(letter.first, letter.count);
  }

 private:
  struct Letter {
    Rank from;
    std::size_t first, count;
    std::ptrdiff_t taken = 0;  ///< In the first letter of a sender: how many of its letters are.
  };
  std::vector<std::vector<Letter>> boxes_;  ///< By receiver; in each by sender, in posted order.
  Pieces pieces_;
};

}  // namespace periplus::plan
