#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/strategy/travel.h"

/// How blocks travel round a circle of ranks, and sums behind them: the routes of ring.h. What a rank does with a block
/// that visits it is the caller's business, so that a visit can be a circle of its own.
namespace periplus::strategy {

/// A block is cut into pieces by KV heads.
using Block = std::vector<Pair>;

/// One direction in which blocks leave their owners.
struct Way {
  int direction;  ///< +1: to the next rank of the circle.
  int hops;       ///< Visits of every block.
};
inline std::vector<Way> ways_of(int size, bool two_ways) {
  if (!two_ways) return {{+1, size - 1}};
  return {{+1, size / 2}, {-1, (size - 1) / 2}};
}

struct Circle {
  std::vector<plan::Rank> ranks;
  std::vector<int> owners;  ///< Whose block each of them starts with.
  int self = 0;
  std::vector<Way> ways;

  std::size_t at(int steps) const noexcept {
    const int size = static_cast<int>(ranks.size());
    return static_cast<std::size_t>(((self + steps) % size + size) % size);
  }
  plan::Rank rank_at(int steps) const noexcept { return ranks[at(steps)]; }
  /// Owner of the block that a way has brought here at a hop.
  int visitor(const Way& way, int hop) const noexcept { return owners[at(-way.direction * hop)]; }
  int hops() const noexcept {
    int most = 0;
    for (const Way& way : ways) most = std::max(most, way.hops);
    return most;
  }
};

/// Scratch for travelling blocks, by way and piece.
class Spare {
 public:
  struct Shape {
    DType dtype;
    std::int64_t rows, k_width, v_width;
    std::span<const std::int64_t> heads;  ///< by piece
  };
  Spare(plan::ProgramBuilder& program, std::string_view k_name, std::string_view v_name, std::size_t ways, const Shape& shape)
      : pieces_(shape.heads.size()) {
    for (std::size_t way = 0; way < ways; ++way) {
      for (std::size_t piece = 0; piece < pieces_; ++piece) {
        std::string suffix = piece > 0 ? ".piece" + std::to_string(piece) : "";
        if (way > 0) suffix += ".back";
        scratch_.emplace_back(program, std::string(k_name) + suffix, std::string(v_name) + suffix,
                              SparePair::Shape{shape.dtype, shape.rows, shape.heads[piece], shape.k_width, shape.v_width});
      }
    }
  }
  Pair next(std::size_t way, std::size_t piece, std::int64_t rows) { return scratch_[way * pieces_ + piece].next(rows); }

 private:
  std::size_t pieces_;
  std::vector<SparePair> scratch_;
};

/// Pieces [begin, end) of a block.
struct PieceRange {
  std::size_t begin, end;
};

/// Every block visits every rank. visit(hop, way, owner, block, pieces) is called for the own block first, then for others
/// as they come, while the next ones are under way on `lane`; the last `kept` pieces of the own block come at the very end.
template <class RowsOf, class Visit>
void circulate(plan::ProgramBuilder& program, const Circle& circle, int lane, const Block& own, std::size_t kept, Spare& spare,
               const RowsOf& rows_of, Visit&& visit) {
  std::vector<Block> current(circle.ways.size(), own), arriving(circle.ways.size());
  Mail mail;
  for (int hop = 0; hop <= circle.hops(); ++hop) {
    for (std::size_t w = 0; w < circle.ways.size(); ++w) arriving[w].assign(hop < circle.ways[w].hops ? own.size() : 0, {});
    for (std::size_t piece = 0; piece < own.size() && hop < circle.hops(); ++piece) {
      mail.clear();
      for (std::size_t w = 0; w < circle.ways.size(); ++w) {
        const Way& way = circle.ways[w];
        if (hop >= way.hops) continue;
        mail.send(circle.rank_at(way.direction), current[w][piece]);
        arriving[w][piece] = spare.next(w, piece, rows_of(circle.visitor(way, hop + 1)));
        mail.receive(circle.rank_at(-way.direction), arriving[w][piece]);
      }
      program.exchange({"kv to hop", hop + 1}, lane, mail.sends, mail.receives);
    }
    for (std::size_t w = 0; w < circle.ways.size(); ++w) {
      const std::size_t at_once = hop > 0 ? own.size() : w == 0 ? own.size() - kept : 0;
      if (hop <= circle.ways[w].hops && at_once > 0) visit(hop, w, circle.visitor(circle.ways[w], hop), current[w], PieceRange{0, at_once});
    }
    current.swap(arriving);
  }
  if (kept > 0) visit(0, 0, circle.owners[circle.at(0)], own, PieceRange{own.size() - kept, own.size()});
}

/// The same, and the sums of a block follow it on `sum_lane`. visit(hop, owner, block, sum, pieces, first) adds this rank's
/// part to `sum`, or starts it if `first`; the own block's sum is `home`, and what the visitors of each way have collected
/// is added to it at the end, in the order of ways. Half of the own block's pieces hide the first block that comes, the
/// others the last sum: at equal times of work and messages, 8 ranks and 4 pieces, that takes the exposed part from 6 % to 0.
template <class RowsOf, class Visit>
void circulate_with_sums(plan::ProgramBuilder& program, const Circle& circle, int lane, int sum_lane, const Block& own, std::size_t kept,
                         const Block& home, Spare& spare, Spare& sums, const RowsOf& rows_of, Visit&& visit) {
  std::vector<Block> sum(circle.ways.size()), coming(circle.ways.size());
  Mail mail;
  const auto pass_sums_on = [&](int hop) {
    for (std::size_t piece = 0; piece < own.size() && hop >= 1; ++piece) {
      mail.clear();
      for (std::size_t w = 0; w < circle.ways.size(); ++w) {
        const Way& way = circle.ways[w];
        if (hop > way.hops) continue;
        const bool last = hop == way.hops;
        // The last visitor stands way.hops steps from the owner.
        mail.send(circle.rank_at(last ? -way.direction * hop : way.direction), sum[w][piece]);
        coming[w].resize(own.size());
        coming[w][piece] = sums.next(w, piece, last ? home.front().k.rows : rows_of(circle.visitor(way, hop + 1)));
        mail.receive(circle.rank_at(last ? way.direction * hop : -way.direction), coming[w][piece]);
      }
      program.exchange({"dkdv of hop", hop}, sum_lane, mail.sends, mail.receives);
    }
  };
  circulate(program, circle, lane, own, kept, spare, rows_of,
            [&](int hop, std::size_t w, int owner, const Block& block, PieceRange pieces) {
              if (hop == 0) return visit(hop, owner, block, home, pieces, true);
              if (hop == 1) {
                for (std::size_t piece = 0; piece < own.size(); ++piece) sum[w].push_back(sums.next(w, piece, rows_of(owner)));
              }
              visit(hop, owner, block, sum[w], pieces, hop == 1);
              const bool all_ways_visited = w + 1 == circle.ways.size() || hop > circle.ways[w + 1].hops;
              if (!all_ways_visited) return;
              pass_sums_on(hop);
              sum = coming;
            });
  // After all visits, so that none of them waits for a sum.
  for (const Block& returned : coming) {
    for (std::size_t piece = 0; piece < returned.size(); ++piece) {
      program.add({"dk of the visitors"}, returned[piece].k, home[piece].k);
      program.add({"dv of the visitors"}, returned[piece].v, home[piece].v);
    }
  }
}

}  // namespace periplus::strategy
