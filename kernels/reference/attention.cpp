#include "kernels/reference/attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/band_tiles.h"
#include "kernels/cpu/parallel.h"
#include "kernels/operands.h"

namespace periplus::kernels::reference {
namespace {

constexpr double kEmpty = -std::numeric_limits<double>::infinity();
constexpr std::int64_t kTileRows = 16;

template <class X, class Y>
double dot(const X* x, const Y* y, std::int64_t count) {
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
  return sum;
}

template <class X>
void add_scaled(double factor, const X* x, std::int64_t count, double* sum) {
  for (std::int64_t i = 0; i < count; ++i) sum[i] += factor * static_cast<double>(x[i]);
}

template <class A>
void store(const double* from, std::int64_t count, double factor, bool overwrite, A* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<A>((overwrite ? 0 : static_cast<double>(to[i])) + factor * from[i]);
}

double cap(double score, double softcap) { return softcap > 0 ? softcap * std::tanh(score / softcap) : score; }

struct Scratch {
  std::vector<double> scores, row, keys;
};

Scratch& thread_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

template <class S, class A>
void attend_row(const ForwardProblem<S, A>& p, std::span<const Band> bands, std::int64_t head, std::int64_t q, Scratch& scratch) {
  const std::int64_t kv = head / (p.shape.heads / p.shape.kv_heads);
  const S* query = at(p.q, q, head);
  A* out = at(p.out, q, head);
  A& lse = *at(p.lse, q, head);
  const double old = p.overwrite ? kEmpty : static_cast<double>(lse);
  double top = old;
  scratch.scores.clear();
  for (const Band& band : bands) {
    if (q < band.q0 || q >= band.q1) continue;
    const KeyRange keys = keys_of(band, q);
    for (std::int64_t k = keys.begin; k < keys.end; ++k) {
      const double score = cap(p.scale * dot(query, at(p.k, k, kv), p.shape.width_qk), p.softcap);
      scratch.scores.push_back(score);
      top = std::max(top, score);
    }
  }
  if (scratch.scores.empty() && !p.overwrite) return;
  const double origin = top == kEmpty ? 0 : top;
  double sum = std::exp(old - origin);
  scratch.row.assign(static_cast<std::size_t>(p.shape.width_v), 0);
  if (sum != 0) add_scaled(sum, out, p.shape.width_v, scratch.row.data());
  std::size_t next = 0;
  for (const Band& band : bands) {
    if (q < band.q0 || q >= band.q1) continue;
    const KeyRange keys = keys_of(band, q);
    for (std::int64_t k = keys.begin; k < keys.end; ++k) {
      const double weight = std::exp(scratch.scores[next++] - origin);
      sum += weight;
      add_scaled(weight, at(p.v, k, kv), p.shape.width_v, scratch.row.data());
    }
  }
  // Compare with zero, not "> 0": a NaN must stay visible.
  store(scratch.row.data(), p.shape.width_v, sum == 0 ? 0 : 1 / sum, true, out);
  lse = static_cast<A>(sum == 0 ? kEmpty : top + std::log(sum));
}

template <class S, class A>
void backward_row(const BackwardProblem<S, A>& p, std::span<const Band> bands, std::int64_t head, std::int64_t q, Scratch& scratch) {
  const AttentionShape& shape = p.shape;
  const std::int64_t kv = head / (shape.heads / shape.kv_heads);
  const S* query = at(p.q, q, head);
  const S* dout = at(p.dout, q, head);
  const double lse = static_cast<double>(*at(p.lse, q, head));
  const double delta = static_cast<double>(*at(p.delta, q, head));
  double* dk = scratch.keys.data();
  double* dv = dk + shape.key_rows * shape.width_qk;
  scratch.row.assign(static_cast<std::size_t>(shape.width_qk), 0);
  for (const Band& band : bands) {
    if (q < band.q0 || q >= band.q1 || lse == kEmpty) continue;
    const KeyRange keys = keys_of(band, q);
    for (std::int64_t k = keys.begin; k < keys.end; ++k) {
      const S* key = at(p.k, k, kv);
      const double score = cap(p.scale * dot(query, key, shape.width_qk), p.softcap);
      const double weight = std::exp(score - lse);
      add_scaled(weight, dout, shape.width_v, dv + k * shape.width_v);
      double dscore = weight * (dot(dout, at(p.v, k, kv), shape.width_v) - delta);
      if (p.softcap > 0) dscore *= 1 - (score / p.softcap) * (score / p.softcap);
      add_scaled(dscore, key, shape.width_qk, scratch.row.data());
      add_scaled(dscore, query, shape.width_qk, dk + k * shape.width_qk);
    }
  }
  store(scratch.row.data(), shape.width_qk, p.scale, p.overwrite_dq, at(p.dq, q, head));
}

}  // namespace

template <class S, class A>
void attend(const ForwardProblem<S, A>& problem, std::span<const Band> bands, StreamView stream) {
  const BandTiles tiles(bands, BandTiles::Axis::query, problem.shape.query_rows, kTileRows);
  const std::int64_t heads = problem.shape.heads;
  const double flop = 2.0 * static_cast<double>((problem.shape.width_qk + problem.shape.width_v) * heads * tiles.area());
  cpu::for_each_item(tiles.tiles() * heads, flop, stream, [&](std::int64_t item, const cpu::Progress& progress) {
    const std::int64_t begin = item / heads * kTileRows;
    const std::int64_t end = std::min(begin + kTileRows, problem.shape.query_rows);
    for (std::int64_t q = begin; q < end; ++q) {
      attend_row(problem, tiles.of(item / heads), item % heads, q, thread_scratch());
      progress();
    }
  });
}

template <class S, class A>
void attend_backward(const BackwardProblem<S, A>& problem, std::span<const Band> bands, StreamView stream) {
  const AttentionShape& shape = problem.shape;
  const BandTiles tiles(bands, BandTiles::Axis::query, shape.query_rows, kTileRows);
  const std::int64_t group = shape.heads / shape.kv_heads;
  const double flop = static_cast<double>((6 * shape.width_qk + 4 * shape.width_v) * shape.heads * tiles.area());
  cpu::for_each_item(shape.kv_heads, flop, stream, [&](std::int64_t kv, const cpu::Progress& progress) {
    Scratch& scratch = thread_scratch();
    scratch.keys.assign(static_cast<std::size_t>(shape.key_rows * (shape.width_qk + shape.width_v)), 0);
    for (std::int64_t head = kv * group; head < (kv + 1) * group; ++head) {
      for (std::int64_t q = 0; q < shape.query_rows; ++q) {
        backward_row(problem, tiles.of(q / kTileRows), head, q, scratch);
        progress();
      }
    }
    const double* dk = scratch.keys.data();
    const double* dv = dk + shape.key_rows * shape.width_qk;
    for (std::int64_t k = 0; k < shape.key_rows; ++k) {
      store(dk + k * shape.width_qk, shape.width_qk, problem.scale, problem.overwrite_dkdv, at(problem.dk, k, kv));
      store(dv + k * shape.width_v, shape.width_v, 1, problem.overwrite_dkdv, at(problem.dv, k, kv));
    }
  });
}

template void attend(const ForwardProblem<double, double>&, std::span<const Band>, StreamView);
template void attend(const ForwardProblem<float, float>&, std::span<const Band>, StreamView);
template void attend(const ForwardProblem<bfloat16, float>&, std::span<const Band>, StreamView);
template void attend_backward(const BackwardProblem<double, double>&, std::span<const Band>, StreamView);
template void attend_backward(const BackwardProblem<float, float>&, std::span<const Band>, StreamView);
template void attend_backward(const BackwardProblem<bfloat16, float>&, std::span<const Band>, StreamView);

}  // namespace periplus::kernels::reference
