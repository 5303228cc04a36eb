#include "parallel/strategy/ring.h"

#include <algorithm>
#include <numeric>

namespace periplus::strategy {
namespace {

using plan::Message;
using plan::Mode;
using plan::ProgramBuilder;
using plan::RotatingScratch;
using plan::View;

// Accumulators follow their keys one hop behind, on a lane of their own: on one lane each hop would wait for both.
constexpr int kBlockLane = 0;
constexpr int kAccumulatorLane = 1;

/// Two tensors that travel together: keys and values, or their gradients.
struct Pair {
  View k, v;
};

/// Two rotating pairs: one arrives while the other is in use.
class RotatingPair {
 public:
  RotatingPair(ProgramBuilder& program, std::string_view k_name, std::string_view v_name, DType dtype, const Pair& like, const Ring& ring,
               std::int64_t k_width, std::int64_t v_width)
      : k_(program.rotating_scratch(k_name, 2, dtype, ring.most_rows(), like.k.heads, k_width)),
        v_(program.rotating_scratch(v_name, 2, dtype, ring.most_rows(), like.v.heads, v_width)) {}
  Pair next(std::int64_t rows) { return {k_.next(rows), v_.next(rows)}; }

 private:
  RotatingScratch k_, v_;
};

void pass_on(ProgramBuilder& program, plan::Label label, int lane, const Ring& ring, const Pair& leaving, const Pair& arriving) {
  const Message sends[] = {{ring.next(), leaving.k}, {ring.next(), leaving.v}};
  const Message receives[] = {{ring.previous(), arriving.k}, {ring.previous(), arriving.v}};
  program.exchange(label, lane, sends, receives);
}

}  // namespace

std::int64_t Ring::most_rows() const {
  std::int64_t most = 0;
  for (int member = 0; member < size(); ++member) most = std::max(most, rows_of(member));
  return most;
}

void ring_forward(ProgramBuilder& program, const RingForward& on, const Ring& ring) {
  RotatingPair spare(program, "k", "v", program.dtype_of(on.k), {on.k, on.v}, ring, program.width_of(on.k), program.width_of(on.v));
  // Hop 0 reads the rank's own block in place; it is never received into, backward needs it.
  Pair current = ring.size() > 1 ? Pair{program.sendable(on.k, "k.packed"), program.sendable(on.v, "v.packed")} : Pair{on.k, on.v};
  std::vector<Band> bands;
  for (int hop = 0; hop < ring.size(); ++hop) {
    Pair arriving;
    if (hop + 1 < ring.size()) {
      arriving = spare.next(ring.rows_of(ring.origin_at(hop + 1)));
      pass_on(program, {"kv to hop", hop + 1}, kBlockLane, ring, current, arriving);
    }
    bands.clear();
    ring.bands_with(ring.origin_at(hop), bands);
    program.attend({"hop", hop}, {on.q, current.k, current.v, on.state_out, on.state_lse}, bands, ring.scale, ring.softcap,
                   hop == 0 ? Mode::write : Mode::add);
    current = arriving;
  }
}

void ring_backward(ProgramBuilder& program, const RingBackward& on, const Ring& ring) {
  const std::int64_t k_width = program.width_of(on.k), v_width = program.width_of(on.v);
  const DType accumulator = program.dtype_of(on.dk);
  const Pair home{on.dk, on.dv};
  RotatingPair spare(program, "k", "v", program.dtype_of(on.k), {on.k, on.v}, ring, k_width, v_width);
  RotatingPair travelling(program, "dk", "dv", accumulator, home, ring, k_width, v_width);
  const View part_k = program.scratch("dk.part", accumulator, ring.most_rows(), on.dk.heads, k_width);
  const View part_v = program.scratch("dv.part", accumulator, ring.most_rows(), on.dv.heads, v_width);

  Pair current = ring.size() > 1 ? Pair{program.sendable(on.k, "k.packed"), program.sendable(on.v, "v.packed")} : Pair{on.k, on.v};
  Pair sum = ring.size() > 1 ? travelling.next(on.dk.rows) : home;
  std::vector<Band> bands;
  for (int hop = 0; hop < ring.size(); ++hop) {
    Pair arriving;
    if (hop + 1 < ring.size()) {
      arriving = spare.next(ring.rows_of(ring.origin_at(hop + 1)));
      pass_on(program, {"kv to hop", hop + 1}, kBlockLane, ring, current, arriving);
    }
    bands.clear();
    ring.bands_with(ring.origin_at(hop), bands);
    // The first block starts the sum that travels; later ones are added to the sum that arrived.
    Pair part = sum;
    if (hop > 0) part.k.slot = part_k.slot, part.v.slot = part_v.slot;
    if (hop == 0 || !bands.empty()) {
      program.attend_backward({"hop", hop}, {on.q, current.k, current.v, on.dout, on.lse, on.delta, on.dq, part.k, part.v}, bands,
                              ring.scale, ring.softcap, hop == 0 ? Mode::write : Mode::add);
    }
    if (hop > 0 && !bands.empty()) {
      program.add({"dk of hop", hop}, part.k, sum.k);
      program.add({"dv of hop", hop}, part.v, sum.v);
    }
    if (ring.size() > 1) {
      const bool last = hop + 1 == ring.size();
      const Pair coming = last ? home : travelling.next(ring.rows_of(ring.origin_at(hop + 1)));
      pass_on(program, {"dkdv to hop", hop + 1}, kAccumulatorLane, ring, sum, coming);
      sum = coming;
    }
    current = arriving;
  }
}

namespace {

std::string never_refuses(const AttentionProblem&, const AttentionOptions&) { return {}; }

/// The ring of all ranks of the problem, as one of them sees it.
template <class Fragment>
void with_ring(const AttentionProblem& problem, int self, Fragment&& fragment) {
  std::vector<plan::Rank> members(static_cast<std::size_t>(problem.layout.ranks()));
  std::iota(members.begin(), members.end(), 0);
  fragment(Ring{members, self, [&](int member) { return problem.layout.rows_of(member); },
                [&](int member, std::vector<Band>& bands) { append_bands_between(problem.layout, problem.mask, self, member, bands); },
                problem.scale_or_default(), problem.softcap});
}

void plan_forward(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions&, const ForwardSlots& on) {
  const DType accumulator = accumulator_of(problem.dtype);
  const View state_out = program.scratch("state.out", accumulator, on.out.rows, on.out.heads, program.width_of(on.out));
  const View state_lse = program.scratch("state.lse", accumulator, on.lse.rows, on.lse.heads, 1);
  with_ring(problem, program.rank(), [&](const Ring& ring) { ring_forward(program, {on.q, on.k, on.v, state_out, state_lse}, ring); });
  program.finish({"finish"}, state_out, state_lse, on.sink, on.out, on.lse);
}

void plan_backward(ProgramBuilder& program, const AttentionProblem& problem, const AttentionOptions&, const BackwardSlots& on) {
  const View dq = sum_of(program, on.dq, "dq.sum"), dk = sum_of(program, on.dk, "dk.sum"), dv = sum_of(program, on.dv, "dv.sum");
  with_ring(problem, program.rank(), [&](const Ring& ring) {
    ring_backward(program, {on.q, on.k, on.v, on.dout, on.lse, on.delta, dq, dk, dv}, ring);
  });
  settle(program, dq, on.dq);
  settle(program, dk, on.dk);
  settle(program, dv, on.dv);
}

std::int64_t bytes_sent(const AttentionProblem& problem, const AttentionOptions&, Pass pass) {
  const std::int64_t ranks = problem.layout.ranks();
  const std::int64_t elements = problem.layout.tokens() * problem.kv_heads * (problem.head_size + problem.value());
  const auto storage = static_cast<std::int64_t>(size_of(problem.dtype));
  const auto accumulator = static_cast<std::int64_t>(size_of(accumulator_of(problem.dtype)));
  const std::int64_t blocks = (ranks - 1) * elements * storage;
  return pass == Pass::forward || ranks == 1 ? blocks : blocks + ranks * elements * accumulator;
}

}  // namespace

Strategy ring_strategy() {
  return {"ring", "K,V travel round a ring of all ranks; their gradients follow one hop behind", 0, never_refuses, plan_forward,
          plan_backward, bytes_sent};
}

}  // namespace periplus::strategy
