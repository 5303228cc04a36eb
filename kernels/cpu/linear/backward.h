// A run of one head in falling order of its chunks: gradients (algorithms.md 5.3 and 6.3). Included by runs.h.
//
// A chunk needs the state before it and the gradient of the one behind it. States are kept every few chunks in a first
// sweep, and those between are made again, stretch by stretch, when backward comes to it. With both at hand the gradient of a decay
// is a sum over the chunk alone: what later chunks contribute is the product of the state behind the chunk and its gradient. So its
// rounding errors do not grow with the sequence, as those of one sum over all of it would. What a token has from itself cancels in that
// sum if dq and dk round the same numbers. So queries are used as they are stored, and the scale is a factor of all results: under strong
// decay the gradient is far smaller than what cancels.
#pragma once

#include "kernels/cpu/linear/sweep.h"

namespace periplus::kernels::cpu {
namespace {

/// Gradients of a chunk.
struct ChunkGradients {
  Matrix dq;
  Matrix dk;        ///< Through the uses of a key by later tokens: with decay behind it.
  Matrix dk_early;  ///< Delta rule: through its use as query of earlier tokens, with decay before it.
  Matrix dadded;    ///< At last that of v.
  Matrix dp;
  Matrix dwanted;  ///< Delta rule.
  Matrix dearly;   ///< dwanted S^T, of the state before the chunk.
  Matrix doverlap;
  float* dbeta;
};

inline ChunkGradients carve_gradients(const LinearShape& shape, const Sizes& sizes, Carver& carver) {
  constexpr std::int64_t kChunk = linear::kChunk;
  ChunkGradients on = {};
  on.dq = carve_matrix(carver, kChunk, sizes.padded_qk);
  on.dk = carve_matrix(carver, kChunk, sizes.padded_qk);
  on.dadded = carve_matrix(carver, kChunk, sizes.columns());
  on.dp = carve_matrix(carver, kChunk, kChunk);
  if (shape.transition == Transition::dense) {
    on.dk_early = carve_matrix(carver, kChunk, sizes.padded_qk);
    on.dwanted = carve_matrix(carver, kChunk, sizes.padded_v);
    on.dearly = carve_matrix(carver, kChunk, sizes.padded_qk);
    on.doverlap = carve_matrix(carver, kChunk, kChunk);
    on.dbeta = carver.take(kChunk);
  }
  return on;
}

/// to = p^T dout + keys decayed to the end of the chunk, times the gradient of the state there.
template <class P>
void added_backward(P& products, const Sizes& sizes, Matrix dstate, Chunk& chunk, Matrix to) {
  const std::int64_t rows = chunk.rows, columns = sizes.columns();
  const Matrix keys = decayed(chunk.decay, chunk.decay.down, chunk.k, rows, sizes.padded_qk, chunk.sunk);
  const std::int64_t mark = products.mark();
  products.template multiply<false>(products.left(keys, rows, sizes.padded_qk), {0, rows}, products.right(dstate, sizes.padded_qk, columns),
                                    {0, columns}, {0, sizes.padded_qk}, to);
  multiply_upper<true>(products, products.left_transposed(chunk.p, rows, rows), products.right(chunk.dout, rows, columns), rows, columns,
                       to);
  products.release(mark);
}

/// The gradient of the state before the chunk, from that behind it.
template <class P>
void retreat(P& products, const Sizes& sizes, bool delta_rule, Matrix dwanted, Chunk& chunk, Matrix dstate) {
  const std::int64_t rows = chunk.rows, columns = sizes.columns(), qk = sizes.padded_qk;
  const Matrix queries = decayed(chunk.decay, chunk.decay.up, chunk.q, rows, qk, chunk.grown);
  decay_state(chunk.decay, rows, qk, columns, dstate);
  const std::int64_t mark = products.mark();
  products.template multiply<true>(products.left_transposed(queries, qk, rows), {0, qk}, products.right(chunk.dout, rows, columns),
                                   {0, columns}, {0, rows}, dstate);
  if (delta_rule) {
    scale_rows(chunk.delta.beta, decayed(chunk.decay, chunk.decay.up, chunk.k, rows, qk, chunk.delta.early), rows, qk, chunk.delta.early,
               -1.0f);
    products.template multiply<true>(products.left_transposed(chunk.delta.early, qk, rows), {0, qk}, products.right(dwanted, rows, columns),
                                     {0, columns}, {0, rows}, dstate);
  }
  products.release(mark);
}

template <class P, class S>
void run_states_backward(const LinearProblem<S, float>& problem, Strided<const S> dout, Strided<float> elements, const linear::Item& item) {
  Run<S> run{problem, item, sizes_of<P>(problem.shape, true)};
  run.first_chunk = run.chunks() - 1;
  Carver carver(item.scratch);
  Sweep<P> on = carve_sweep<P>(problem.shape, run.sizes, carver);
  P products(on.copies, on.copies_size, item.progress);
  start_state(run.sizes, on.state);
  for (std::int64_t index = run.chunks() - 1; index >= 0; --index) {
    look_ahead<P>(run, problem.q, index - 1, run.sizes.qk, products.pulse().ahead[0]);
    look_ahead<P>(run, dout, index - 1, run.sizes.v, products.pulse().ahead[1]);
    if (run.delta_rule()) look_ahead<P>(run, problem.k, index - 1, run.sizes.qk, products.pulse().ahead[2]);
    start_chunk<P>(run, index, on.chunk);
    load_matrix<P>(run, problem.q, index, static_cast<float>(problem.scale), on.chunk.q);
    load_values<P>(run, dout, index, on.chunk.dout);
    if (run.delta_rule()) {
      load_matrix<P>(run, problem.k, index, 1.0f, on.chunk.k);
      const std::int64_t mark = products.mark();
      prepare(products, on.chunk.decay, on.chunk.k,
              across_rows(products, on.chunk.decay, on.chunk.k, on.chunk.rows, run.sizes.padded_qk, on.chunk.space.far), on.chunk.rows,
              run.sizes.padded_qk, on.chunk.space, on.chunk.delta);
      products.release(mark);
      scores(products, on.chunk.decay, on.chunk.q, on.chunk.k, on.chunk.rows, run.sizes.padded_qk, on.chunk.space, on.chunk.p);
      added_backward(products, run.sizes, on.state, on.chunk, on.chunk.out);
      solve_backward(products, on.chunk.out, on.chunk.rows, run.sizes.columns(), on.chunk.delta, on.chunk.delta.wanted);
    }
    retreat(products, run.sizes, run.delta_rule(), on.chunk.delta.wanted, on.chunk, on.state);
  }
  store_element(run, on.state, true, elements);
}

/// dq, dk and dadded of the linear part: out = q S + p added, S' = S + k^T added.
template <class P>
void attend_backward(P& products, const Sizes& sizes, Matrix state, Matrix dstate, Chunk& chunk, const ChunkGradients& on) {
  const std::int64_t rows = chunk.rows, v = sizes.padded_v, qk = sizes.padded_qk;
  scores(products, chunk.decay, chunk.q, chunk.k, rows, qk, chunk.space, chunk.p);
  added_backward(products, sizes, dstate, chunk, on.dadded);
  const std::int64_t mark = products.mark();
  const auto douts = products.left(chunk.dout, rows, v);
  products.template multiply<false>(douts, {0, rows}, products.right_transposed(state, v, qk), {0, qk}, {0, v}, on.dq);
  multiply_to_lower<false>(products, douts, products.right_transposed(chunk.added, v, rows), rows, v, on.dp);
  products.release(mark);
  products.template multiply<false>(products.left(chunk.added, rows, v), {0, rows}, products.right_transposed(dstate, v, qk), {0, qk},
                                    {0, v}, on.dk);
  products.release(mark);
  decayed(chunk.decay, chunk.decay.up, on.dq, rows, qk, on.dq);
  decayed(chunk.decay, chunk.decay.down, on.dk, rows, qk, on.dk);
  scores_backward(products, chunk.decay, on.dp, chunk.q, chunk.k, rows, qk, chunk.space, on.dq, on.dk);
}

/// What the delta rule adds: from dadded, which becomes the gradient of v, that of beta and, in dk_early and dk, those of the keys
/// through what they read of the state and of each other.
template <class P>
void delta_backward(P& products, const Sizes& sizes, Matrix state, Chunk& chunk, const ChunkGradients& on) {
  const std::int64_t rows = chunk.rows, v = sizes.padded_v, qk = sizes.padded_qk;
  solve_backward(products, on.dadded, rows, v, chunk.delta, on.dwanted);
  const std::int64_t mark = products.mark();
  const auto dwanted = products.left(on.dwanted, rows, v);
  products.template multiply<false>(dwanted, {0, rows}, products.right_transposed(state, v, qk), {0, qk}, {0, v}, on.dearly);
  multiply_to_lower<false>(products, dwanted, products.right_transposed(chunk.added, v, rows), rows, v, on.doverlap);
  products.release(mark);
  const Matrix grown = decayed(chunk.decay, chunk.decay.up, chunk.k, rows, qk, chunk.grown);
  for (std::int64_t i = 0; i < rows; ++i) {
    float sum = dot(on.dwanted.row(i), chunk.v.row(i), sizes.padded_v) - dot(on.dearly.row(i), grown.row(i), qk);
    const float beta = chunk.delta.beta[i];
    for (std::int64_t j = 0; j < rows; ++j) {
      float& at = on.doverlap.row(i)[j];
      if (j < i) sum -= at * chunk.delta.overlap.row(i)[j];
      at = j < i ? -beta * at : 0;
    }
    on.dbeta[i] = sum;
  }
  scale_rows(chunk.delta.beta, on.dearly, rows, qk, on.dk_early, -1.0f);
  decayed(chunk.decay, chunk.decay.up, on.dk_early, rows, qk, on.dk_early);
  scores_backward(products, chunk.decay, on.doverlap, chunk.k, chunk.k, rows, qk, chunk.space, on.dk_early, on.dk);
  scale_rows(chunk.delta.beta, on.dwanted, rows, v, on.dadded);
}

/// The gradient of the decay at token i: everything that a token from i on, or the state behind the chunk, has from before it. In
/// dq and dk are all tokens pairs of which the earlier or later is such a token: those that are both cancel.
inline void decay_backward(const Sizes& sizes, bool delta_rule, Matrix state_behind, Matrix dstate, const Chunk& chunk,
                           const ChunkGradients& on, Matrix sums) {
  const std::int64_t qk = sizes.padded_qk;
  for (std::int64_t d = 0; d < qk; d += kLanes) {
    Vec sum;
    for (std::int64_t lane = 0; lane < kLanes; ++lane) sum[lane] = dot(state_behind.row(d + lane), dstate.row(d + lane), sizes.padded_v);
    for (std::int64_t i = chunk.rows - 1; i >= 0; --i) {
      Vec dk = load(on.dk.row(i) + d);
      if (delta_rule) dk -= load(on.dk_early.row(i) + d);
      sum += load(chunk.q.row(i) + d) * load(on.dq.row(i) + d) - load(chunk.k.row(i) + d) * dk;
      store(sums.row(i) + d, sum);
    }
  }
}

/// Scratch of a backward sweep.
template <class P>
struct BackwardSweep {
  Sweep<P> forward;
  ChunkGradients gradients;
  Matrix dstate;
  std::int64_t stretch;  ///< Chunks.
  float *kept, *inside;  ///< States before each stretch, and before each chunk of one and behind the last.
};

/// Chunks between states that are kept. Those of a short stretch stay in the second-level cache; what is kept grows with the run, up
/// to 512 states (32 MiB for heads of 128), from where on stretches grow.
inline std::int64_t stretch_of(std::int64_t chunks) {
  constexpr std::int64_t kShortest = 8, kMostKept = 512;
  return larger(kShortest, (chunks + kMostKept - 1) / kMostKept);
}

template <class P>
BackwardSweep<P> carve_backward(const LinearShape& shape, const Sizes& sizes, std::int64_t chunks, Carver& carver) {
  BackwardSweep<P> on;
  on.forward = carve_sweep<P>(shape, sizes, carver);
  on.gradients = carve_gradients(shape, sizes, carver);
  on.dstate = carve_matrix(carver, sizes.padded_qk, sizes.columns());
  on.stretch = stretch_of(chunks);
  const std::int64_t state = sizes.padded_qk * on.dstate.stride;
  on.inside = carver.take((on.stretch + 1) * state);
  on.kept = carver.take((chunks + on.stretch - 1) / on.stretch * state);
  return on;
}

template <class P, class S>
std::int64_t backward_scratch_bytes(const LinearShape& shape, std::int64_t most_rows) {
  const Sizes sizes = sizes_of<P>(shape, false);
  const std::int64_t chunks = (most_rows + linear::kChunk - 1) / linear::kChunk;
  Carver carver(nullptr), of_groups(nullptr);
  carve_backward<P>(shape, sizes, chunks, carver);
  carve_sweep<P>(shape, sizes, of_groups);
  GroupsBackward<P, S>(shape, sizes, chunks, of_groups);
  return larger(carver.bytes(), of_groups.bytes());
}

/// The backward pass of one run of one head.
template <class P, class S>
class RunBackward {
 public:
  RunBackward(const Run<S>& run, const BackwardSweep<P>& on, P& products, const Strided<const S>& dout,
              const LinearResults<S, float>& results)
      : run_(run), on_(on), chunk_(on_.forward.chunk), products_(products), dout_(dout), results_(results) {
    constexpr float kMost = 1e9f;  // A gradient that comes from outside is divided by the scale, and must not overflow.
    const auto scale = static_cast<float>(run.problem.scale);
    if (-kMost < 1 / scale && 1 / scale < kMost) query_scale_ = 1, result_scale_ = scale;
  }

  void run(const Strided<const float>& incoming, const Strided<const float>& doutgoing) {
    const std::int64_t chunks = run_.chunks(), stretch = on_.stretch;
    load_state(incoming, run_.item.run.enters, run_.item, run_.sizes, on_.forward.state);
    for (std::int64_t index = 0; index < chunks; ++index) {
      if (index % stretch == 0) copy(on_.forward.state, kept(index / stretch));
      if (index < (chunks - 1) / stretch * stretch) forward(index, on_.forward.state);
    }
    load_state(doutgoing, run_.item.run.leaves, run_.item, run_.sizes, on_.dstate, 1 / result_scale_);
    for (std::int64_t first = (chunks - 1) / stretch * stretch; first >= 0; first -= stretch) {
      const std::int64_t end = smaller(first + stretch, chunks);
      copy(kept(first / stretch), inside(0));
      for (std::int64_t index = first; index < end; ++index) {
        copy(inside(index - first), inside(index - first + 1));
        forward(index, inside(index - first + 1));
      }
      for (std::int64_t index = end - 1; index >= first; --index) backward(index, inside(index - first), inside(index - first + 1));
    }
  }

 private:
  Matrix kept(std::int64_t i) const { return {on_.kept + i * run_.sizes.padded_qk * on_.dstate.stride, on_.dstate.stride}; }
  Matrix inside(std::int64_t i) const { return {on_.inside + i * run_.sizes.padded_qk * on_.dstate.stride, on_.dstate.stride}; }
  void copy(Matrix from, Matrix to) const {
    __builtin_memcpy(to.data, from.data, static_cast<std::size_t>(run_.sizes.padded_qk * from.stride) * sizeof(float));
  }

  void forward(std::int64_t index, Matrix state) {
    look_ahead<P>(run_, run_.problem.k, index + 1, run_.sizes.qk, products_.pulse().ahead[0]);
    look_ahead<P>(run_, run_.problem.v, index + 1, run_.sizes.v, products_.pulse().ahead[1]);
    advance_over(products_, run_, index, chunk_, state);
  }

  void backward(std::int64_t index, Matrix state, Matrix state_behind) {
    const Sizes& sizes = run_.sizes;
    const ChunkGradients& on = on_.gradients;
    const bool delta_rule = run_.delta_rule();
    look_ahead<P>(run_, run_.problem.q, index - 1, sizes.qk, products_.pulse().ahead[0]);
    look_ahead<P>(run_, run_.problem.k, index - 1, sizes.qk, products_.pulse().ahead[1]);
    look_ahead<P>(run_, run_.problem.v, index - 1, sizes.v, products_.pulse().ahead[2]);
    look_ahead<P>(run_, dout_, index - 1, sizes.v, products_.pulse().ahead[3]);
    start_chunk<P>(run_, index, chunk_);
    load_matrix<P>(run_, run_.problem.q, index, query_scale_, chunk_.q);
    load_matrix<P>(run_, run_.problem.k, index, 1.0f, chunk_.k);
    load_values<P>(run_, run_.problem.v, index, chunk_.v);
    load_values<P>(run_, dout_, index, chunk_.dout);
    const std::int64_t mark = products_.mark();
    if (delta_rule) {
      const auto across = across_rows(products_, chunk_.decay, chunk_.k, chunk_.rows, sizes.padded_qk, chunk_.space.far);
      with_news(products_, run_, chunk_.k, across, chunk_.v, products_.right(state, sizes.padded_qk, sizes.columns()), chunk_,
                [](Matrix) {});
    }
    products_.release(mark);
    attend_backward(products_, sizes, state, on_.dstate, chunk_, on);
    if (delta_rule) delta_backward(products_, sizes, state, chunk_, on);
    if (run_.problem.shape.decay_width > 0) {
      decay_backward(sizes, delta_rule, state_behind, on_.dstate, chunk_, on, chunk_.grown);
      store_decay_gradient(index, chunk_.grown);
    }
    retreat(products_, sizes, delta_rule, on.dwanted, chunk_, on_.dstate);
    store_gradients(index);
  }

  void store_decay_gradient(std::int64_t index, Matrix sums) {
    const LinearShape& shape = run_.problem.shape;
    const std::int64_t rows = run_.rows(index);
    const auto to = head_rows(results_.dlog_decay, run_.first_row(index), run_.item.head);
    // Ahead of a document there is nothing to decay, but for what rounding leaves of it.
    const std::int64_t none = index == 0 && !run_.item.run.enters ? 1 : 0;
    clear(sums, none, run_.sizes.padded_qk);
    if (shape.decay_width > 1) return store_rows(sums, rows, shape.decay_width, result_scale_, to);
    for (std::int64_t i = 0; i < rows; ++i) {
      Vec sum = {};
      for (std::int64_t d = 0; d < run_.sizes.padded_qk; d += kLanes) sum += load(sums.row(i) + d);
      to.data[i * to.stride] = result_scale_ * sum_of(sum);
    }
  }

  void store_gradients(std::int64_t index) {
    const Sizes& sizes = run_.sizes;
    const ChunkGradients& on = on_.gradients;
    const std::int64_t row0 = run_.first_row(index), rows = run_.rows(index), head = run_.item.head;
    if (run_.delta_rule()) {
      add_rows(on.dk_early, rows, sizes.padded_qk, on.dk);
      const auto to = head_rows(results_.dbeta, row0, head);
      for (std::int64_t i = 0; i < rows; ++i) to.data[i * to.stride] = result_scale_ * on.dbeta[i];
    }
    store_rows(on.dq, rows, sizes.qk, static_cast<float>(run_.problem.scale), head_rows(results_.dq, row0, head));
    store_rows(on.dk, rows, sizes.qk, result_scale_, head_rows(results_.dk, row0, head));
    store_rows(on.dadded, rows, sizes.v, result_scale_, head_rows(results_.dv, row0, head));
  }

  const Run<S>& run_;
  BackwardSweep<P> on_;
  Chunk& chunk_;
  P& products_;
  const Strided<const S>& dout_;
  const LinearResults<S, float>& results_;
  /// Factors of q when it is loaded and of what is made of it: their product is the scale.
  float query_scale_ = static_cast<float>(run_.problem.scale), result_scale_ = 1;
};

template <class P, class S>
void run_apply_backward(const LinearProblem<S, float>& problem, Strided<const float> incoming, Strided<const S> dout,
                        Strided<const float> doutgoing, const LinearResults<S, float>& results, const linear::Item& item) {
  const Run<S> run{problem, item, sizes_of<P>(problem.shape, false)};
  {
    Carver carver(item.scratch);
    const Sweep<P> on = carve_sweep<P>(problem.shape, run.sizes, carver);
    const GroupsBackward<P, S> groups(problem.shape, run.sizes, run.chunks(), carver);
    P products(on.copies, on.copies_size, item.progress);
    if (groups.run(products, run, incoming, dout, doutgoing, results)) return;
  }
  Carver carver(item.scratch);
  const BackwardSweep<P> on = carve_backward<P>(problem.shape, run.sizes, run.chunks(), carver);
  P products(on.forward.copies, on.forward.copies_size, item.progress);
  RunBackward<P, S>(run, on, products, dout, results).run(incoming, doutgoing);
}

}  // namespace
}  // namespace periplus::kernels::cpu
