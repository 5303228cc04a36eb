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
  chunk.q = carver.matrix(kChunk, sizes.padded_qk);
  chunk.k = carver.matrix(kChunk, sizes.padded_qk);
  chunk.v = carver.matrix(kChunk, sizes.columns());
  chunk.dout = carver.matrix(kChunk, sizes.columns());
  chunk.decay = carve_decay(shape, sizes.padded_qk, carver);
  chunk.added = chunk.v;
  if (shape.transition == Transition::dense) {
    chunk.delta = carve_delta_rule(sizes.padded_qk, sizes.columns(), carver);
    chunk.added = carver.matrix(kChunk, sizes.columns());
  }
  chunk.p = carver.matrix(kChunk, kChunk);
  chunk.out = carver.matrix(kChunk, sizes.columns());
  chunk.grown = carver.matrix(kChunk, sizes.padded_qk);
  chunk.sunk = carver.matrix(kChunk, sizes.padded_qk);
  chunk.space = {carver.matrix(kChunk, sizes.padded_qk), carver.matrix(kStripRows, sizes.padded_qk),
                 carver.matrix(kStripRows, sizes.padded_qk)};
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
void load_queries(const Run<S>& run, std::int64_t index, Chunk& chunk) {
  load_rows(head_rows(run.problem.q, run.first_row(index), run.item.head), extent_of<P>(run, index, run.sizes.qk, run.sizes.padded_qk),
            static_cast<float>(run.problem.scale), chunk.q);
}
template <class P, class S>
void load_values(const Run<S>& run, std::int64_t index, const Strided<const S>& from, Matrix to) {
  const Extent extent = extent_of<P>(run, index, run.sizes.v, run.sizes.padded_v);
  clear(to, extent.padded_rows, run.sizes.lead);
  load_rows(head_rows(from, run.first_row(index), run.item.head), extent, 1.0f, to.beside(run.sizes.lead));
}
/// Decays, and keys if there are any, with what the delta rule makes of them.
template <class P, class S>
void load_keys(P& products, const Run<S>& run, std::int64_t index, Chunk& chunk) {
  const auto& p = run.problem;
  const Extent extent = extent_of<P>(run, index, run.sizes.qk, run.sizes.padded_qk);
  const std::int64_t row0 = run.first_row(index), head = run.item.head;
  chunk.rows = extent.padded_rows;
  if (p.shape.decay_width > 0) {
    load_decay(head_rows(p.log_decay, row0, head), extent, chunk.decay);
  } else if (index == run.first_chunk) {
    load_decay({nullptr, 0}, {0, 0, linear::kChunk, 0}, chunk.decay);
  }
  if (p.k.data != nullptr) load_rows(head_rows(p.k, row0, head), extent, 1.0f, chunk.k);
  if (!run.delta_rule()) return;
  for (std::int64_t i = 0; i < extent.padded_rows; ++i) {
    chunk.delta.beta[i] = i < extent.rows ? p.beta.data[(row0 + i) * p.beta.row + head * p.beta.head] : 0;
  }
  prepare(products, chunk.decay, chunk.k, chunk.rows, run.sizes.padded_qk, chunk.space, chunk.delta);
}

/// What the chunk's tokens add to the state before it.
template <class P, class S>
void add_news(P& products, const Run<S>& run, Matrix state, Chunk& chunk) {
  if (!run.delta_rule()) return;
  solve(products, chunk.v, state, chunk.rows, run.sizes.padded_qk, run.sizes.columns(), chunk.delta, chunk.added);
}

/// The state behind the chunk; `added` is chunk.added as an operand.
template <class P>
void advance(P& products, const Sizes& sizes, const typename P::Right& added, Chunk& chunk, Matrix state) {
  const Matrix keys = decayed(chunk.decay, chunk.decay.down, chunk.k, chunk.rows, sizes.padded_qk, chunk.sunk);
  decay_state(chunk.decay, chunk.rows, sizes.padded_qk, sizes.columns(), state);
  const std::int64_t mark = products.mark();
  products.template multiply<true>(products.left_transposed(keys, sizes.padded_qk, chunk.rows), {0, sizes.padded_qk}, added,
                                   {0, sizes.columns()}, {0, chunk.rows}, state);
  products.release(mark);
}

/// Loads a chunk of keys and values, and moves the state past it.
template <class P, class S>
void advance_over(P& products, const Run<S>& run, std::int64_t index, Chunk& chunk, Matrix state) {
  load_keys(products, run, index, chunk);
  load_values<P>(run, index, run.problem.v, chunk.v);
  add_news(products, run, state, chunk);
  const std::int64_t mark = products.mark();
  advance(products, run.sizes, products.right(chunk.added, chunk.rows, run.sizes.columns()), chunk, state);
  products.release(mark);
}

/// out = q decayed from the start of the chunk times the state, and scores times what was added.
template <class P>
void attend(P& products, const Sizes& sizes, Matrix state, const typename P::Right& added, Chunk& chunk) {
  const std::int64_t rows = chunk.rows, qk = sizes.padded_qk, columns = sizes.columns();
  const std::int64_t mark = products.mark();
  const auto read_state = [&](const typename P::Left& queries) {
    products.template multiply<false>(queries, {0, rows}, products.right(state, qk, columns), {0, columns}, {0, qk}, chunk.out);
  };
  if (chunk.decay.per_channel()) {
    scores(products, chunk.decay, chunk.q, chunk.k, rows, qk, chunk.space, chunk.p);
    read_state(products.left(decayed(chunk.decay, chunk.decay.up, chunk.q, rows, qk, chunk.grown), rows, qk));
  } else {
    // One operand for both: decay is a factor of the results.
    const auto queries = products.left(chunk.q, rows, qk);
    head_scores(products, chunk.decay, queries, chunk.k, rows, qk, chunk.p);
    read_state(queries);
    decayed(chunk.decay, chunk.decay.up, chunk.out, rows, columns, chunk.out);
  }
  multiply_lower<true>(products, products.left(chunk.p, rows, rows), added, rows, columns, chunk.out);
  products.release(mark);
}

/// From zero if there is nothing to continue.
inline void load_state(const Strided<const float>& states, bool continues, const linear::Item& item, const Sizes& sizes, Matrix to) {
  const float* from = states.data + item.run.unit * states.row + item.head * states.head;
  load_rows<float>({from, sizes.v}, {continues ? sizes.qk : 0, sizes.v, sizes.padded_qk, sizes.padded_v}, 1.0f, to);
}

/// The identity in the columns of the transition, and zeros.
inline void start_state(const Sizes& sizes, Matrix state) {
  clear(state, sizes.padded_qk, sizes.columns());
  for (std::int64_t d = 0; d < sizes.lead; ++d) state.row(d)[d] = 1;
}

/// Rows ahead of the sweep come closer while products run.
template <class S>
void look_ahead(const Run<S>& run, const Strided<const S>& tensor, std::int64_t index, std::int64_t width, RowsAhead& ahead) {
  constexpr std::int64_t pace = 16;
  ahead = {};
  if (tensor.data == nullptr || index < 0 || index >= run.chunks()) return;
  ahead = rows_ahead(tensor, run.first_row(index), run.first_row(index) + run.rows(index), run.item.head, width, pace);
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
  sweep.state = carver.matrix(sizes.padded_qk, sizes.columns());
  sweep.chunk = carve_chunk<P>(shape, sizes, carver);
  sweep.copies_size = copies_floats<P>(sizes, P::kLargestOperands);
  sweep.copies = carver.take(sweep.copies_size);
  return sweep;
}

template <class P>
std::int64_t scratch_bytes(const LinearShape& shape) {
  Carver carver(nullptr);
  carve_sweep<P>(shape, sizes_of<P>(shape, true), carver);
  return carver.used() * 4;
}

template <class P, class S>
void run_states(const LinearProblem<S, float>& problem, Strided<float> elements, const linear::Item& item) {
  const Run<S> run{problem, item, sizes_of<P>(problem.shape, true)};
  Carver carver(reinterpret_cast<float*>(item.scratch));
  Sweep<P> on = carve_sweep<P>(problem.shape, run.sizes, carver);
  P products(on.copies, on.copies_size, item.progress);
  start_state(run.sizes, on.state);
  for (std::int64_t index = 0; index < run.chunks(); ++index) {
    look_ahead(run, problem.k, index + 1, run.sizes.qk, products.pulse().ahead[0]);
    look_ahead(run, problem.v, index + 1, run.sizes.v, products.pulse().ahead[1]);
    advance_over(products, run, index, on.chunk, on.state);
  }
  store_element(run, on.state, false, elements);
}

template <class P, class S>
void run_apply(const LinearProblem<S, float>& problem, Strided<const float> incoming, Strided<S> out, const linear::Item& item) {
  const Run<S> run{problem, item, sizes_of<P>(problem.shape, false)};
  Carver carver(reinterpret_cast<float*>(item.scratch));
  Sweep<P> on = carve_sweep<P>(problem.shape, run.sizes, carver);
  P products(on.copies, on.copies_size, item.progress);
  load_state(incoming, item.run.enters, item, run.sizes, on.state);
  for (std::int64_t index = 0; index < run.chunks(); ++index) {
    look_ahead(run, problem.q, index + 1, run.sizes.qk, products.pulse().ahead[0]);
    look_ahead(run, problem.k, index + 1, run.sizes.qk, products.pulse().ahead[1]);
    look_ahead(run, problem.v, index + 1, run.sizes.v, products.pulse().ahead[2]);
    load_queries<P>(run, index, on.chunk);
    load_keys(products, run, index, on.chunk);
    load_values<P>(run, index, problem.v, on.chunk.v);
    add_news(products, run, on.state, on.chunk);
    const std::int64_t mark = products.mark();
    const auto added = products.right(on.chunk.added, on.chunk.rows, run.sizes.columns());
    attend(products, run.sizes, on.state, added, on.chunk);
    if (index + 1 < run.chunks()) advance(products, run.sizes, added, on.chunk, on.state);
    products.release(mark);
    store_rows(on.chunk.out, run.rows(index), run.sizes.v, 1.0f, head_rows(out, run.first_row(index), item.head));
  }
}

}  // namespace
}  // namespace periplus::kernels::cpu
