// A run of one head in rising order of its chunks: states and outputs. Included by runs.h.
#pragma once

#include "kernels/cpu/linear/delta.h"

namespace periplus::kernels::cpu {
namespace {

/// Sizes of an item. For elements of the delta rule the state has more columns: the transition, made by pushing the identity through
/// the chunks with values of zero, stands before the values' own.
struct Sizes {
  std::int64_t qk, v;                ///< D, E
  std::int64_t padded_qk, padded_v;  ///< In matrices.
  std::int64_t lead;                 ///< Columns of the transition.

  std::int64_t columns() const { return lead + padded_v; }
};

template <class P>
Sizes sizes_of(const LinearShape& shape, bool elements) {
  const std::int64_t padded_qk = round_up(shape.width_qk, P::kPad);
  return {shape.width_qk, shape.width_v, padded_qk, round_up(shape.width_v, P::kPad),
          elements && shape.transition == Transition::dense ? padded_qk : 0};
}

/// Everything about a chunk in f32.
struct Chunk {
  Matrix q, k, v, dout;  ///< q times the scale; v and dout behind `lead` columns of zeros.
  Decay decay;
  DeltaRule delta;
  Matrix added;  ///< n: what tokens add to the state under their keys; v itself without the delta rule.
  Matrix p;      ///< Scores of q and k.
  Matrix out;
  Matrix grown, sunk;  ///< Space for operands with the decay before and behind them.
  ScoreSpace space;
  std::int64_t rows;  ///< Of its matrices: whole vectors, or tiles.
};

template <class P>
Chunk carve_chunk(const LinearShape& shape, const Sizes& sizes, Carver& carver) {
  constexpr std::int64_t kChunk = linear::kChunk;
  Chunk chunk;
  chunk.q = carve_matrix(carver, kChunk, sizes.padded_qk);
  chunk.k = carve_matrix(carver, kChunk, sizes.padded_qk);
  chunk.v = carve_matrix(carver, kChunk, sizes.columns());
  chunk.dout = carve_matrix(carver, kChunk, sizes.columns());
  chunk.decay = carve_decay(shape, sizes.padded_qk, carver);
  chunk.added = chunk.v;
  if (shape.transition == Transition::dense) {
    chunk.delta = carve_delta_rule(sizes.padded_qk, sizes.columns(), carver);
    chunk.added = carve_matrix(carver, kChunk, sizes.columns());
  }
  chunk.p = carve_matrix(carver, kChunk, kChunk);
  chunk.out = carve_matrix(carver, kChunk, sizes.columns());
  chunk.grown = carve_matrix(carver, kChunk, sizes.padded_qk);
  chunk.sunk = carve_matrix(carver, kChunk, sizes.padded_qk);
  chunk.space = {carve_matrix(carver, kChunk, sizes.padded_qk), carve_matrix(carver, kChunk, sizes.padded_qk),
                 carve_matrix(carver, kStripRows, sizes.padded_qk), carve_matrix(carver, kStripRows, sizes.padded_qk)};
  return chunk;
}

/// What memory for copies of operands must hold: `largest` operands at once are alive.
template <class P>
std::int64_t copies_floats(const Sizes& sizes, std::int64_t largest) {
  const std::int64_t longest = larger(linear::kChunk, sizes.padded_qk);
  return largest * P::floats(longest, larger(longest, sizes.columns()));
}

/// A run of one head of a problem.
template <class S>
struct Run {
  const LinearProblem<S, float>& problem;
  const linear::Item& item;
  Sizes sizes;
  std::int64_t first_chunk = 0;  ///< That the item loads.

  std::int64_t chunks() const { return (item.run.rows + linear::kChunk - 1) / linear::kChunk; }
  std::int64_t first_row(std::int64_t chunk) const { return item.run.row0 + chunk * linear::kChunk; }
  std::int64_t rows(std::int64_t chunk) const { return smaller(linear::kChunk, item.run.rows - chunk * linear::kChunk); }
  bool delta_rule() const { return problem.shape.transition == Transition::dense; }
};

template <class P, class S>
Extent extent_of(const Run<S>& run, std::int64_t index, std::int64_t width, std::int64_t padded_width) {
  return {run.rows(index), width, round_up(run.rows(index), P::kPad), padded_width};
}

template <class P, class S>
Matrix load_matrix(const Run<S>& run, const Strided<const S>& from, std::int64_t index, float factor, Matrix to) {
  load_rows(head_rows(from, run.first_row(index), run.item.head), extent_of<P>(run, index, run.sizes.qk, run.sizes.padded_qk), factor, to);
  return to;
}
/// Behind `lead` columns of zeros.
template <class P, class S>
Matrix load_values(const Run<S>& run, const Strided<const S>& from, std::int64_t index, Matrix to) {
  const Extent extent = extent_of<P>(run, index, run.sizes.v, run.sizes.padded_v);
  clear(to, extent.padded_rows, run.sizes.lead);
  load_rows(head_rows(from, run.first_row(index), run.item.head), extent, 1.0f, to.beside(run.sizes.lead));
  return to;
}
/// What is not a matrix: decays, beta, and how many rows there are.
template <class P, class S>
void start_chunk(const Run<S>& run, std::int64_t index, Chunk& chunk) {
  const auto& p = run.problem;
  const Extent extent = extent_of<P>(run, index, run.sizes.qk, run.sizes.padded_qk);
  const std::int64_t row0 = run.first_row(index), head = run.item.head;
  chunk.rows = extent.padded_rows;
  if (p.shape.decay_width > 0) {
    load_decay(head_rows(p.log_decay, row0, head), extent, chunk.decay);
  } else if (index == run.first_chunk) {
    load_decay({nullptr, 0}, {0, 0, linear::kChunk, 0}, chunk.decay);
  }
  for (std::int64_t i = 0; i < extent.padded_rows && run.delta_rule(); ++i) {
    chunk.delta.beta[i] = i < extent.rows ? p.beta.data[(row0 + i) * p.beta.row + head * p.beta.head] : 0;
  }
}
/// Calls use(k), or use(q, k), with the rows of a chunk as products take them: only strips need them as matrices.
template <class P, class S, class Use>
void with_keys(const Run<S>& run, std::int64_t index, Chunk& chunk, const Use& use) {
  if (chunk.decay.in_strips()) return use(load_matrix<P>(run, run.problem.k, index, 1.0f, chunk.k));
  use(P::rows(head_rows(run.problem.k, run.first_row(index), run.item.head), extent_of<P>(run, index, run.sizes.qk, run.sizes.padded_qk),
              chunk.k));
}
template <class P, class S, class Use>
void with_queries_and_keys(const Run<S>& run, std::int64_t index, Chunk& chunk, const Use& use) {
  with_keys<P>(run, index, chunk, [&](const auto& k) {
    using Rows = std::remove_cvref_t<decltype(k)>;
    const auto& q = run.problem.q;
    if constexpr (std::is_same_v<Rows, Matrix>) {
      use(load_matrix<P>(run, q, index, 1.0f, chunk.q), k);
    } else {
      use(P::rows(head_rows(q, run.first_row(index), run.item.head), extent_of<P>(run, index, run.sizes.qk, run.sizes.padded_qk), chunk.q),
          k);
    }
  });
}
/// Values as products take them; beside a transition as a matrix.
template <class P, class S, class Use>
void with_values(const Run<S>& run, std::int64_t index, Chunk& chunk, const Use& use) {
  if (run.sizes.lead > 0) return use(load_values<P>(run, run.problem.v, index, chunk.v));
  use(P::rows(head_rows(run.problem.v, run.first_row(index), run.item.head), extent_of<P>(run, index, run.sizes.v, run.sizes.padded_v),
              chunk.v));
}

/// Calls use(added) with what the chunk's tokens add to the state before it, of which `state` is the operand: v itself without the
/// delta rule.
template <class P, class S, class Rows, class Values, class Use>
void with_news(P& products, const Run<S>& run, const Rows& k, const typename P::Right& across, const Values& v,
               const typename P::Right& state, Chunk& chunk, const Use& use) {
  if (!run.delta_rule()) return use(v);
  const std::int64_t qk = run.sizes.padded_qk;
  prepare(products, chunk.decay, k, across, chunk.rows, qk, chunk.space, chunk.delta);
  solve(products, chunk.decay, k, v, state, chunk.rows, qk, run.sizes.columns(), chunk.delta, chunk.added);
  use(chunk.added);
}

/// Matrices stand for keys in strips only.
template <class P, class Rows>
typename P::Left left_transposed(P& products, const Rows& k, const typename P::Right& across, std::int64_t rows, std::int64_t depth) {
  if constexpr (std::is_same_v<Rows, typename P::Rows>) {
    return products.left_transposed(k, across, rows, depth);
  } else {
    return products.left_transposed(k, rows, depth);
  }
}

/// The state behind the chunk, and its operand if there is one. A decay per head is a factor of `added`, else of the keys.
template <class P, class Rows, class Added>
void advance(P& products, const Sizes& sizes, const Rows& k, const typename P::Right& across, const Added& added, Chunk& chunk,
             Matrix state, const typename P::Right* packed) {
  const std::int64_t rows = chunk.rows, qk = sizes.padded_qk, columns = sizes.columns();
  const std::int64_t mark = products.mark();
  const auto left = chunk.decay.per_channel() ? products.left_transposed_scaled(chunk.decay.down, k, qk, rows, chunk.sunk)
                                              : left_transposed(products, k, across, qk, rows);
  const RowFactors down{chunk.decay.down.data};
  const auto right =
      chunk.decay.per_head() ? products.right_scaled(down, added, rows, columns, chunk.out) : products.right(added, rows, columns);
  typename P::Right rest = {};
  if constexpr (std::is_same_v<Added, Matrix>) {
    // The delta rule's errors add up in the state, and come back through what it reads.
    rest = chunk.decay.per_head() ? products.right_rest(down, added, right, rows, columns)
                                  : products.right_rest(NoFactors{}, added, right, rows, columns);
  }
  const StateDecay decay = state_decay(chunk.decay, rows);
  products.advance(state, decay.factors, decay.next, left, right, rest, qk, rows, columns, packed);
  products.release(mark);
}

/// Moves the state past a chunk.
template <class P, class S>
void advance_over(P& products, const Run<S>& run, std::int64_t index, Chunk& chunk, Matrix state) {
  start_chunk<P>(run, index, chunk);
  const std::int64_t mark = products.mark();
  typename P::Right packed = {};
  if (run.delta_rule()) packed = products.right(state, run.sizes.padded_qk, run.sizes.columns());
  with_keys<P>(run, index, chunk, [&](const auto& k) {
    const auto across = across_rows(products, chunk.decay, k, chunk.rows, run.sizes.padded_qk, chunk.space.far);
    with_values<P>(run, index, chunk, [&](const auto& v) {
      with_news(products, run, k, across, v, packed, chunk,
                [&](const auto& added) { advance(products, run.sizes, k, across, added, chunk, state, nullptr); });
    });
  });
  products.release(mark);
}

/// out = q decayed from the start of the chunk times the state, and scores times what was added: store(block, row, column, rows, columns)
/// gets it block by block.
template <class P, class Rows, class Added, class Store>
void attend(P& products, const Sizes& sizes, const Rows& q, const Rows& k, const typename P::Right& across, const typename P::Right& state,
            const Added& added, Chunk& chunk, const Store& store) {
  const std::int64_t rows = chunk.rows, qk = sizes.padded_qk, columns = sizes.columns();
  const std::int64_t mark = products.mark();
  const auto grown = grown_rows(products, chunk.decay, q, rows, qk, chunk.grown);
  if (chunk.decay.in_strips()) {
    scores(products, chunk.decay, q, k, across, rows, qk, chunk.space, chunk.p);
  } else {
    whole_scores(products, chunk.decay, grown, across, rows, qk, chunk.p);
  }
  const auto queries = chunk.decay.per_head() ? products.left_scaled(RowFactors{chunk.decay.up.data}, q, rows, qk, chunk.grown) : grown;
  products.multiply_both(queries, state, qk, products.left(chunk.p, rows, rows), products.right(added, rows, columns), rows, columns,
                         chunk.out, store);
  products.release(mark);
}

/// From zero if there is nothing to continue.
inline void load_state(const Strided<const float>& states, bool continues, const linear::Item& item, const Sizes& sizes, Matrix to,
                       float scale = 1.0f) {
  const float* from = states.data + item.run.unit * states.row + item.head * states.head;
  load_rows<float>({from, sizes.v}, {continues ? sizes.qk : 0, sizes.v, sizes.padded_qk, sizes.padded_v}, scale, to);
}

/// The identity in the columns of the transition, and zeros.
inline void start_state(const Sizes& sizes, Matrix state) {
  clear(state, sizes.padded_qk, sizes.columns());
  for (std::int64_t d = 0; d < sizes.lead; ++d) state.row(d)[d] = 1;
}

/// Rows ahead of the sweep come closer while products run.
template <class P, class S>
void look_ahead(const Run<S>& run, const Strided<const S>& tensor, std::int64_t index, std::int64_t width, RowsAhead& ahead) {
  ahead = {};
  if (tensor.data == nullptr || index < 0 || index >= run.chunks()) return;
  ahead = rows_ahead(tensor, run.first_row(index), run.first_row(index) + run.rows(index), run.item.head, width, P::kPace);
}

/// The transition of a run without the delta rule: exp of the sum of its decays, in f64 as it may be long.
template <class S>
void store_decay(const Run<S>& run, float* to) {
  const LinearProblem<S, float>& p = run.problem;
  for (std::int64_t d = 0; d < p.shape.decay_width; d += kLanes) {
    const float* at = p.log_decay.data + run.item.run.row0 * p.log_decay.row + run.item.head * p.log_decay.head + d;
    const std::int64_t count = smaller(kLanes, p.shape.decay_width - d);
    double sums[kLanes] = {};
    for (std::int64_t row = 0; row < run.item.run.rows; ++row, at += p.log_decay.row) {
      for (std::int64_t i = 0; i < count; ++i) sums[i] += static_cast<double>(at[i]);
    }
    for (std::int64_t i = 0; i < count; ++i) to[d + i] = static_cast<float>(__builtin_exp(sums[i]));
  }
}

/// Transition, or its transpose, and state.
template <class S>
void store_element(const Run<S>& run, Matrix state, bool transposed, const Strided<float>& elements) {
  const Sizes& sizes = run.sizes;
  float* to = elements.data + run.item.run.unit * elements.row + run.item.head * elements.head;
  if (run.delta_rule()) {
    for (std::int64_t i = 0; i < sizes.qk; ++i) {
      for (std::int64_t j = 0; j < sizes.qk; ++j) *to++ = transposed ? state.row(j)[i] : state.row(i)[j];
    }
  } else {
    store_decay(run, to);
    to += run.problem.shape.decay_width;
  }
  store_rows<float>(state.beside(sizes.lead), sizes.qk, sizes.v, 1.0f, {to, sizes.v});
}

/// Scratch of a sweep.
template <class P>
struct Sweep {
  Chunk chunk;
  Matrix state;
  float* copies;
  std::int64_t copies_size;
};

template <class P>
Sweep<P> carve_sweep(const LinearShape& shape, const Sizes& sizes, Carver& carver) {
  Sweep<P> sweep;
  sweep.state = carve_matrix(carver, sizes.padded_qk, sizes.columns());
  sweep.chunk = carve_chunk<P>(shape, sizes, carver);
  sweep.copies_size = copies_floats<P>(sizes, P::kLargestOperands);
  sweep.copies = carver.take(sweep.copies_size);
  return sweep;
}

/// Outputs of several chunks at a time, where products can (groups.h).
template <class P, class S>
class Groups {
 public:
  Groups(const LinearShape& /*shape*/, const Sizes& /*sizes*/, Carver& /*carver*/) {}
  /// Moves the state, and its operand, past some chunks from `index` on; returns how many.
  std::int64_t apply(P& /*products*/, const Run<S>& /*run*/, std::int64_t /*index*/, const Strided<S>& /*out*/, Matrix /*state*/,
                     const typename P::Right& /*packed*/) const {
    return 0;
  }
};

/// Gradients of a run by groups. False: it must be done chunk by chunk.
template <class P, class S>
class GroupsBackward {
 public:
  GroupsBackward(const LinearShape& /*shape*/, const Sizes& /*sizes*/, std::int64_t /*chunks*/, Carver& /*carver*/) {}
  bool run(P& /*products*/, const Run<S>& /*run*/, const Strided<const float>& /*incoming*/, const Strided<const S>& /*dout*/,
           const Strided<const float>& /*doutgoing*/, const LinearResults<S, float>& /*results*/) const {
    return false;
  }
};

template <class P, class S>
std::int64_t scratch_bytes(const LinearShape& shape) {
  Carver carver(nullptr);
  const Sizes sizes = sizes_of<P>(shape, true);
  carve_sweep<P>(shape, sizes, carver);
  Groups<P, S>(shape, sizes, carver);
  return carver.bytes();
}

template <class P, class S>
void run_states(const LinearProblem<S, float>& problem, Strided<float> elements, const linear::Item& item) {
  const Run<S> run{problem, item, sizes_of<P>(problem.shape, true)};
  Carver carver(item.scratch);
  Sweep<P> on = carve_sweep<P>(problem.shape, run.sizes, carver);
  P products(on.copies, on.copies_size, item.progress);
  start_state(run.sizes, on.state);
  for (std::int64_t index = 0; index < run.chunks(); ++index) {
    look_ahead<P>(run, problem.k, index + 1, run.sizes.qk, products.pulse().ahead[0]);
    look_ahead<P>(run, problem.v, index + 1, run.sizes.v, products.pulse().ahead[1]);
    advance_over(products, run, index, on.chunk, on.state);
  }
  store_element(run, on.state, false, elements);
}

/// Stores a block of the result of a chunk.
template <class S>
auto store_out(const Run<S>& run, std::int64_t index, const Strided<S>& out) {
  const auto to = head_rows(out, run.first_row(index), run.item.head);
  return [=, rows = run.rows(index), width = run.sizes.v, scale = static_cast<float>(run.problem.scale)](
             Matrix block, std::int64_t row, std::int64_t column, std::int64_t block_rows, std::int64_t columns) {
    store_rows(block, smaller(block_rows, rows - row), smaller(columns, width - column), scale,
               HeadRows<S>{to.data + row * to.stride + column, to.stride});
  };
}

template <class P, class S>
void run_apply(const LinearProblem<S, float>& problem, Strided<const float> incoming, Strided<S> out, const linear::Item& item) {
  const Run<S> run{problem, item, sizes_of<P>(problem.shape, false)};
  Carver carver(item.scratch);
  Sweep<P> on = carve_sweep<P>(problem.shape, run.sizes, carver);
  const Groups<P, S> groups(problem.shape, run.sizes, carver);
  P products(on.copies, on.copies_size, item.progress);
  load_state(incoming, item.run.enters, item, run.sizes, on.state);
  const auto state = products.right(on.state, run.sizes.padded_qk, run.sizes.columns());
  for (std::int64_t index = 0; index < run.chunks(); ++index) {
    if (const std::int64_t done = groups.apply(products, run, index, out, on.state, state); done > 0) {
      index += done - 1;
      continue;
    }
    look_ahead<P>(run, problem.q, index + 1, run.sizes.qk, products.pulse().ahead[0]);
    look_ahead<P>(run, problem.k, index + 1, run.sizes.qk, products.pulse().ahead[1]);
    look_ahead<P>(run, problem.v, index + 1, run.sizes.v, products.pulse().ahead[2]);
    look_ahead<P>(run, Strided<const S>{out.data, out.row, out.head}, index + 1, run.sizes.v, products.pulse().ahead[3]);
    start_chunk<P>(run, index, on.chunk);
    const std::int64_t mark = products.mark();
    const auto apply = [&](const auto& q, const auto& k, const auto& v) {
      const auto across = across_rows(products, on.chunk.decay, k, on.chunk.rows, run.sizes.padded_qk, on.chunk.space.far);
      with_news(products, run, k, across, v, state, on.chunk, [&](const auto& added) {
        attend(products, run.sizes, q, k, across, state, added, on.chunk, store_out(run, index, out));
        if (index + 1 < run.chunks()) advance(products, run.sizes, k, across, added, on.chunk, on.state, &state);
      });
    };
    with_queries_and_keys<P>(run, index, on.chunk, [&](const auto& q, const auto& k) {
      with_values<P>(run, index, on.chunk, [&](const auto& v) { apply(q, k, v); });
    });
    products.release(mark);
  }
}

}  // namespace
}  // namespace periplus::kernels::cpu
