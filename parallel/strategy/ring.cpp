#include "parallel/strategy/ring.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "parallel/strategy/circle.h"

namespace periplus::strategy {
namespace {

using plan::Mode;
using plan::ProgramBuilder;
using plan::View;

// Sums follow their keys on a lane of their own: on one lane each hop would wait for both. What crosses nodes must not
// stand in the way of either.

/// KV heads that travel together, and the attend steps they take part in.
struct Piece {
  int kv_head, kv_heads;
  std::vector<HeadPart> parts;
};

std::vector<Piece> pieces_of(const Ring& ring) {
  std::vector<Piece> pieces;
  // As many on every rank, so that all exchange equally often; some may be empty where ranks have unlike heads.
  for (int i = 0; i < ring.pieces; ++i) {
    const HeadRange kv = HeadRange::share(ring.heads.kv_count(), 1, i, ring.pieces);
    pieces.push_back({kv.first, kv.count, ring.heads.parts(kv.first, kv.count)});
  }
  return pieces;
}

/// What forward and backward share: the pieces, the circles and the spare blocks.
class Voyage {
 public:
  Voyage(ProgramBuilder& program, const Ring& ring, View k, View v)
      : program_(program), ring_(ring), pieces_(pieces_of(ring)), node_(ring.node > 0 ? ring.node : ring.size()) {
    for (const Piece& piece : pieces_) heads_.push_back(piece.kv_heads);
    for (int member = 0; member < ring.size(); ++member) most_rows_ = std::max(most_rows_, ring.rows_of(member));
    k_width_ = program.width_of(k), v_width_ = program.width_of(v);
    storage_ = program.dtype_of(k);
  }

  const std::vector<Piece>& pieces() const { return pieces_; }
  bool nested() const { return node_ < ring_.size(); }
  std::int64_t rows_of(int owner) const { return ring_.rows_of(owner); }
  std::int64_t most_rows() const { return most_rows_; }

  /// One view a piece.
  Block cut(View k, View v) const {
    Block block;
    for (const Piece& piece : pieces_)
      block.push_back({k.heads_at(piece.kv_head, piece.kv_heads), v.heads_at(piece.kv_head, piece.kv_heads)});
    return block;
  }
  /// The own block: in place where messages can be sent from there. It is never received into, backward needs it.
  Block own_block(View k, View v) {
    Block block = cut(k, v);
    for (std::size_t i = 0; i < block.size() && ring_.size() > 1; ++i) {
      const std::string piece = i > 0 ? fmt::format(".piece{}", i) : "";
      block[i] = {program_.sendable(block[i].k, ring_.name + "k.packed" + piece),
                  program_.sendable(block[i].v, ring_.name + "v.packed" + piece)};
    }
    return block;
  }
  Spare spare_blocks(std::string_view suffix, bool two_ways) { return spare("k", "v", suffix, two_ways, storage_); }
  Spare spare_sums(std::string_view suffix, bool two_ways, DType accumulator) { return spare("dk", "dv", suffix, two_ways, accumulator); }
  Block scratch_block(std::string_view suffix, DType dtype) {
    Block block;
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      const std::string name = std::string(suffix).append(i > 0 ? fmt::format(".piece{}", i) : "");
      block.push_back({program_.scratch(ring_.name + "dk." + name, dtype, most_rows_, heads_[i], k_width_),
                       program_.scratch(ring_.name + "dv." + name, dtype, most_rows_, heads_[i], v_width_)});
    }
    return block;
  }

  Circle all_members() const {
    Circle circle{{ring_.members.begin(), ring_.members.end()}, {}, ring_.self, ways_of(ring_.size(), ring_.two_ways)};
    circle.owners.resize(circle.ranks.size());
    std::iota(circle.owners.begin(), circle.owners.end(), 0);
    return circle;
  }
  /// Members at the same place of all nodes.
  Circle between_nodes() const {
    const int nodes = ring_.size() / node_;
    Circle circle{{}, {}, ring_.self / node_, ways_of(nodes, false)};
    for (int node = 0; node < nodes; ++node) add_member(circle, node * node_ + ring_.self % node_, 0);
    return circle;
  }
  /// Members of this node, when each holds the block of the member at its place in the node of `owner`.
  Circle inside_node(int owner) const {
    const int first = ring_.self / node_ * node_;
    Circle circle{{}, {}, ring_.self - first, ways_of(node_, ring_.two_ways)};
    for (int place = 0; place < node_; ++place) add_member(circle, first + place, owner / node_ * node_ - first);
    return circle;
  }

  std::span<const Band> bands_with(int owner) const { return ring_.bands_with(owner); }

 private:
  void add_member(Circle& circle, int member, int owner_offset) const {
    circle.ranks.push_back(ring_.members[static_cast<std::size_t>(member)]);
    circle.owners.push_back(member + owner_offset);
  }
  Spare spare(std::string_view k, std::string_view v, std::string_view suffix, bool two_ways, DType dtype) {
    const auto full = [&](std::string_view name) { return std::string(ring_.name).append(name).append(suffix); };
    return Spare(program_, full(k), full(v), two_ways ? 2 : 1, {dtype, most_rows_, k_width_, v_width_, heads_});
  }

  ProgramBuilder& program_;
  const Ring& ring_;
  std::vector<Piece> pieces_;
  int node_;
  std::vector<std::int64_t> heads_;
  std::int64_t most_rows_ = 0, k_width_ = 0, v_width_ = 0;
  DType storage_ = DType::f32;
};

}  // namespace

void ring_forward(ProgramBuilder& program, const RingForward& on, const Ring& ring) {
  Voyage voyage(program, ring, on.k, on.v);
  const auto rows_of = [&](int owner) { return voyage.rows_of(owner); };
  Mode mode = Mode::write;  // of the first visit, which is the own block
  const auto attend = [&](int hop, std::size_t, int owner, const Block& block, PieceRange pieces) {
    const std::span<const Band> bands = voyage.bands_with(owner);
    for (std::size_t i = pieces.begin; i < pieces.end; ++i) {
      const Piece& piece = voyage.pieces()[i];
      for (const HeadPart& part : piece.parts) {
        const auto of_queries = [&](const View& view) { return view.heads_at(part.q_head, part.q_heads); };
        const auto of_keys = [&](const View& view) { return view.heads_at(part.kv_head - piece.kv_head, part.kv_heads); };
        program.attend({"hop", hop},
                       {of_queries(on.q), of_keys(block[i].k), of_keys(block[i].v), of_queries(on.state_out), of_queries(on.state_lse)},
                       bands, ring.scale, ring.softcap, mode);
      }
    }
    mode = Mode::add;
  };

  const Block own = voyage.own_block(on.k, on.v);
  Spare spare = voyage.spare_blocks("", ring.two_ways);
  if (!voyage.nested()) {
    circulate(program, voyage.all_members(), kBlockLane, own, 0, spare, rows_of, attend);
    return;
  }
  Spare spare_outer = voyage.spare_blocks(".node", false);
  circulate(program, voyage.between_nodes(), kNodeLane, own, 0, spare_outer, rows_of,
            [&](int, std::size_t, int owner, const Block& block, PieceRange) {
              circulate(program, voyage.inside_node(owner), kBlockLane, block, 0, spare, rows_of, attend);
            });
}

void ring_backward(ProgramBuilder& program, const RingBackward& on, const Ring& ring) {
  Voyage voyage(program, ring, on.k, on.v);
  const DType accumulator = program.dtype_of(on.dk);
  const auto rows_of = [&](int owner) { return voyage.rows_of(owner); };
  const auto add_piece = [&](const Pair& part, std::int64_t rows, const Pair& sum) {
    program.add({"dk of the rank"}, part.k.rows_at(0, rows), sum.k);
    program.add({"dv of the rank"}, part.v.rows_at(0, rows), sum.v);
  };

  const Block part_block = voyage.scratch_block("part", accumulator);
  std::vector<Mode> dq_modes(voyage.pieces().size(), Mode::write);
  const auto visit = [&](int hop, int owner, const Block& block, const Block& sum, PieceRange pieces, bool first) {
    const std::span<const Band> bands = voyage.bands_with(owner);
    // The first part is written where the sum starts; later ones are made apart and added to what has arrived.
    if (!first && bands.empty()) return;
    for (std::size_t i = pieces.begin; i < pieces.end; ++i) {
      const Piece& piece = voyage.pieces()[i];
      const Pair& to = first ? sum[i] : part_block[i];
      const std::int64_t rows = block[i].k.rows;
      for (const HeadPart& part : piece.parts) {
        const auto of_queries = [&](const View& view) { return view.heads_at(part.q_head, part.q_heads); };
        const auto of_keys = [&](const View& view) { return view.heads_at(part.kv_head - piece.kv_head, part.kv_heads); };
        program.attend_backward({"hop", hop},
                                {of_queries(on.q), of_keys(block[i].k), of_keys(block[i].v), of_queries(on.dout), of_queries(on.lse),
                                 of_queries(on.delta), of_queries(on.dq), of_keys(to.k.rows_at(0, rows)), of_keys(to.v.rows_at(0, rows))},
                                bands, ring.scale, ring.softcap, dq_modes[i]);
      }
      dq_modes[i] = Mode::add;
      if (!first) add_piece(part_block[i], rows, sum[i]);  // at once: the sum of this piece can travel on
    }
  };

  const Block own = voyage.own_block(on.k, on.v), home = voyage.cut(on.dk, on.dv);
  const std::size_t kept = (own.size() + 1) / 2;
  Spare spare = voyage.spare_blocks("", ring.two_ways), sums = voyage.spare_sums("", ring.two_ways, accumulator);
  if (!voyage.nested()) {
    circulate_with_sums(program, voyage.all_members(), kBlockLane, kResultLane, own, kept, home, spare, sums, rows_of, visit);
    return;
  }
  Spare spare_outer = voyage.spare_blocks(".node", false), sums_outer = voyage.spare_sums(".node", false, accumulator);
  const Block window = voyage.scratch_block("node.part", accumulator);
  circulate_with_sums(program, voyage.between_nodes(), kNodeLane, kNodeLane, own, 0, home, spare_outer, sums_outer, rows_of,
                      [&](int, int owner, const Block& block, const Block& sum, PieceRange, bool first) {
                        Block target = first ? sum : window;
                        const std::int64_t rows = rows_of(owner);
                        for (Pair& pair : target) pair = {pair.k.rows_at(0, rows), pair.v.rows_at(0, rows)};
                        circulate_with_sums(program, voyage.inside_node(owner), kBlockLane, kResultLane, block, kept, target, spare, sums,
                                            rows_of, visit);
                        for (std::size_t i = 0; i < block.size() && !first; ++i) add_piece(window[i], rows, sum[i]);
                      });
}

std::int64_t ring_bytes(const AttentionProblem& problem, Pass pass, std::int64_t members, std::int64_t rows, std::int64_t kv_heads) {
  const std::int64_t elements = rows * kv_heads * (problem.head_size + problem.value());
  const auto storage = static_cast<std::int64_t>(size_of(problem.dtype));
  const auto accumulator = static_cast<std::int64_t>(size_of(accumulator_of(problem.dtype)));
  return (members - 1) * elements * (pass == Pass::forward ? storage : storage + accumulator);
}

namespace {

enum class Route { one_way, two_ways, nested };

/// Members of a node of a nested ring: as told, or the largest divisor of the rank count up to its square root.
int node_size(const AttentionProblem& problem, const AttentionOptions& options) {
  const int ranks = problem.layout.ranks();
  if (options.ranks_per_node > 0) return options.ranks_per_node;
  int node = 1;
  for (int size = 1; size * size <= ranks; ++size) {
    if (ranks % size == 0) node = size;
  }
  return node;
}

std::string refusal(const AttentionProblem& problem, const AttentionOptions& options) {
  if (options.pieces > problem.kv_heads)
    return fmt::format("{} pieces of {} KV heads; use at most {}", options.pieces, problem.kv_heads, problem.kv_heads);
  const int ranks = problem.layout.ranks();
  if (options.ranks_per_node > 0 && ranks % options.ranks_per_node != 0)
    return fmt::format("{} ranks are not a multiple of {} ranks_per_node; use a divisor, or strategy ring", ranks, options.ranks_per_node);
  return {};
}

/// The ring of all ranks of the problem, as one of them sees it.
template <Route route, class Fragment>
void with_ring(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions& options, Fragment&& fragment) {
  const int self = program.rank();
  std::vector<plan::Rank> members(static_cast<std::size_t>(problem.layout.ranks()));
  std::iota(members.begin(), members.end(), 0);
  Ring ring{.members = members, .self = self};
  ring.rows_of = [&](int member) { return problem.layout.rows_of(member); };
  ring.bands_with = [&](int member) { return program.bands_between(problem.layout, problem.mask, self, member); };
  ring.heads = {0, problem.q_heads, problem.q_heads / problem.kv_heads};
  ring.scale = problem.scale_or_default(), ring.softcap = problem.softcap;
  ring.pieces = options.pieces;
  ring.two_ways = route == Route::two_ways;
  if (route == Route::nested) ring.node = node_size(problem, options);
  fragment(ring);
}

template <Route route>
void plan_forward(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions& options, const ForwardSlots& on) {
  const RunningState running = running_state(program, on);
  const View state_out = running.out, state_lse = running.lse;
  with_ring<route>(program, problem, options, [&](const Ring& ring) {
    ring_forward(program, {on.q, on.k, on.v, state_out, state_lse}, ring);
  });
  program.finish({"finish"}, state_out, state_lse, on.sink, on.out, on.lse);
}

template <Route route>
void plan_backward(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions& options, const BackwardSlots& on) {
  const View dq = sum_of(program, on.dq, "dq.sum"), dk = sum_of(program, on.dk, "dk.sum"), dv = sum_of(program, on.dv, "dv.sum");
  with_ring<route>(program, problem, options, [&](const Ring& ring) {
    ring_backward(program, {on.q, on.k, on.v, on.dout, on.lse, on.delta, dq, dk, dv}, ring);
  });
  settle(program, dq, on.dq);
  settle(program, dk, on.dk);
  settle(program, dv, on.dv);
}

std::int64_t bytes_sent(const AttentionProblem& problem, const AttentionOptions&, Pass pass) {
  return ring_bytes(problem, pass, problem.layout.ranks(), problem.layout.tokens(), problem.kv_heads);
}

template <Route route>
Strategy row(std::string_view name, std::string_view summary, unsigned knobs) {
  return {name, summary, knobs, refusal, plan_forward<route>, plan_backward<route>, bytes_sent};
}

}  // namespace

Strategy ring_strategy() {
  return row<Route::one_way>("ring", "K,V travel round a ring of all ranks; their gradients follow one hop behind", kPieces);
}
Strategy bidirectional_ring_strategy() {
  return row<Route::two_ways>("bidirectional_ring", "the ring in both directions at once: half the hops where links are full duplex",
                              kPieces);
}
Strategy double_ring_strategy() {
  return row<Route::nested>("double_ring",
                            "a ring of nodes around rings of ranks_per_node ranks: one hop between nodes hides behind a node's",
                            kPieces | kRanksPerNode);
}

}  // namespace periplus::strategy
