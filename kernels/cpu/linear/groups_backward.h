// Gradients of a run by groups of chunks, on tiles (algorithms.md 5.3). Included by level_amx.cpp and its twin after groups.h.
//
// Each gradient is linear attention itself, under the same decays:
//   dq = scan(dout, v, k) from S^T;  dv = falling scan(k, q, dout) from dS;  dk = falling scan(v, dout, q) from dS^T,
// dS being the gradient of the state behind the run. So there is one kernel for both passes, and no state is kept for it. The gradient of
// a decay is the sum of q dq - k dk over its own and all later tokens of the run; it begins anew where a state was kept, with the
// product of this and its gradient: rounding errors of a sum over all of a sequence would grow with its length. Most of the sum cancels:
// so the scans make those products themselves, from gradients before they are rounded and operands as the other scan rounds them.
#pragma once

#include "kernels/cpu/linear/groups.h"

namespace periplus::kernels::cpu {
namespace {

/// to[columns][rows] = from[rows][columns], in whole vectors.
inline void transpose_matrix(Matrix from, std::int64_t rows, std::int64_t columns, Matrix to) {
  for (std::int64_t row = 0; row < rows; row += kLanes) {
    for (std::int64_t column = 0; column < columns; column += kLanes) {
      Vec block[kLanes];
      for (std::int64_t i = 0; i < kLanes; ++i) block[i] = load(from.row(row + i) + column);
      transpose(block);
      for (std::int64_t i = 0; i < kLanes; ++i) store(to.row(column + i) + row, block[i]);
    }
  }
}

template <class S>
class GroupsBackward<TileProducts, S> {
 public:
  GroupsBackward(const LinearShape& shape, const Sizes& sizes, std::int64_t chunks, Carver& carver) {
    const std::int64_t qk = sizes.padded_qk, v = sizes.padded_v, widest = larger(qk, v);
    decay_ = carve_group_decay(shape, carver);
    scan_ = carve_scan(widest, widest, decay_.width > 1, carver);
    for (float*& tail : tails_) tail = carver.take(kScanRows * widest / 2);
    products_ = carver.take(shape.decay_width > 1 ? kScanRows * widest : shape.decay_width * kGroupRows * kLanes);
    dstate_ = carve_state(qk, v, carver);
    transposed_ = carve_state(v, qk, carver);
    sums_ = carver.take(qk);
    starts_ = carver.take<std::int64_t>(chunks + 1);
    constexpr std::int64_t kMostKept = 512;
    most_kept_ = smaller(chunks / 4 + 1, kMostKept);
    kept_ = carver.take(shape.decay_width > 0 ? most_kept_ * v * transposed_.state.stride : 0);
  }

  bool run(TileProducts& products, const Run<S>& run, const Strided<const float>& incoming, const Strided<const S>& dout,
           const Strided<const float>& doutgoing, const LinearResults<S, float>& results) const {
    const std::int64_t groups = find_groups(run);
    if (groups == 0) return false;
    const auto& p = run.problem;
    const std::int64_t qk = run.sizes.qk, v = run.sizes.v;
    const float scale = static_cast<float>(p.scale);
    const std::int64_t interval = (groups + most_kept_ - 1) / most_kept_;
    Pulse& pulse = products.pulse();
    pulse = {pulse.progress};

    load_state(incoming, run.item.run.enters, run.item, run.sizes, dstate_.state);
    transpose_matrix(dstate_.state, qk, v, transposed_.state);
    pack_state(transposed_, v, qk);
    for (std::int64_t group = 0; group < groups; ++group) {
      const GroupPlace at = place_of(run, group);
      fill_factors<false>(run, at, decay_);
      scan_group<false>(run, at, {dout, p.v, p.k, results.dq, v, qk, 1.0f, scale, p.q, scale}, results.dlog_decay, transposed_, pulse);
      if (p.shape.decay_width == 1) keep_products(at, head_rows(results.dlog_decay, at.row0, run.item.head));
      if (p.shape.decay_width > 0 && ends_interval(group, groups, interval)) copy_rows(transposed_.state, v, qk, kept(group / interval, v));
    }

    load_state(doutgoing, run.item.run.leaves, run.item, run.sizes, dstate_.state);
    transpose_matrix(dstate_.state, qk, v, transposed_.state);
    pack_state(dstate_, qk, v);
    pack_state(transposed_, v, qk);
    for (std::int64_t group = groups - 1; group >= 0; --group) {
      const GroupPlace at = place_of(run, group);
      if (p.shape.decay_width > 0 && ends_interval(group, groups, interval)) start_sums(kept(group / interval, v), v, qk);
      fill_factors<true>(run, at, decay_);
      scan_group<true>(run, at, {p.v, dout, p.q, results.dk, v, qk, scale, 1.0f, p.k, 1.0f}, results.dlog_decay, transposed_, pulse);
      if (p.shape.decay_width > 0) decay_gradient(run, at, head_rows(results.dlog_decay, at.row0, run.item.head));
      scan_group<true>(run, at, {p.k, p.q, dout, results.dv, qk, v, scale, 1.0f}, {}, dstate_, pulse);
    }
    return true;
  }

 private:
  static ScanState carve_state(std::int64_t rows, std::int64_t columns, Carver& carver) {
    return {carve_matrix(carver, rows, columns), carver.take<bfloat16>(rows * columns)};
  }
  Matrix kept(std::int64_t i, std::int64_t rows) const { return {kept_ + i * rows * transposed_.state.stride, transposed_.state.stride}; }
  static bool ends_interval(std::int64_t group, std::int64_t groups, std::int64_t interval) {
    return group + 1 == groups || (group + 1) % interval == 0;
  }

  /// Fills `starts`: the first chunk of each group, and the end. None unless all chunks have a group.
  std::int64_t find_groups(const Run<S>& run) const {
    std::int64_t groups = 0;
    for (std::int64_t index = 0; index < run.chunks(); ++groups) {
      const std::int64_t chunks = group_chunks(run, index, kGroupRows);
      if (chunks == 0) return 0;
      starts_[groups] = index;
      index += chunks;
    }
    starts_[groups] = run.chunks();
    return groups;
  }
  GroupPlace place_of(const Run<S>& run, std::int64_t group) const { return group_place(run, starts_[group], starts_[group + 1]); }

  struct Tensors {
    Strided<const S> q, k, v;
    Strided<S> out;
    std::int64_t width_qk, width_v;
    float value_scale, out_scale;
    Strided<const S> partner = {};  ///< None: the keys of the scan carry the decays, and no products are made.
    float partner_scale = 1;
  };
  template <bool kFalling>
  void scan_group(const Run<S>& run, GroupPlace at, const Tensors& of, const Strided<float>& products, const ScanState& state,
                  Pulse& pulse) const {
    const std::int64_t head = run.item.head;
    ScanTensors<S> tensors{group_operand(of.q, head, of.width_qk, at, tails_[0]),
                           group_operand(of.k, head, of.width_qk, at, tails_[1]),
                           group_operand(of.v, head, of.width_v, at, tails_[2]),
                           group_rows(of.out, head, of.width_v, at, tails_[3]),
                           of.width_qk,
                           of.width_v,
                           of.value_scale,
                           of.out_scale};
    const bool makes_products = of.partner.data != nullptr && run.problem.shape.decay_width > 0;
    if (makes_products) {
      tensors.partner = group_operand(of.partner, head, of.width_v, at, tails_[4]);
      tensors.partner_scale = of.partner_scale;
      tensors.products = decay_.width > 1 ? group_rows(products, head, of.width_v, at, products_) : ChunkRows<float>{{products_, kLanes}};
      if (kFalling) load_tail(tensors.products, of.width_v, at);
    }
    scan<kFalling>(tensors, of.partner.data == nullptr, decay_, at.rows, state, scan_, pulse);
    store_tail(tensors.out, of.width_v, at);
    if (makes_products) store_tail(tensors.products, of.width_v, at);
  }

  /// sums[d] = <S_d, dS_d>, S being the state behind a group; with one decay for the head, their sum.
  void start_sums(Matrix kept, std::int64_t v, std::int64_t qk) const {
    for (std::int64_t d = 0; d < qk; d += kLanes) {
      Vec sum = {};
      for (std::int64_t e = 0; e < v; ++e) sum += load(kept.row(e) + d) * load(transposed_.state.row(e) + d);
      store(sums_ + d, sum);
    }
    if (decay_.width > 1) return;
    for (std::int64_t d = kLanes; d < qk; d += kLanes) store(sums_, load(sums_) + load(sums_ + d));
    *sums_ = sum_of(load(sums_));
  }

  /// Of a row: one decay for the head.
  float product(std::int64_t row) const { return sum_of(load(products_ + row * kLanes)); }
  void keep_products(GroupPlace at, HeadRows<float> to) const {
    for (std::int64_t i = 0; i < at.rows; ++i) to.data[i * to.stride] = product(i);
  }

  /// From q dq, or q dq - k dk of each channel, over the total decay, in the place of the gradient.
  void decay_gradient(const Run<S>& run, GroupPlace at, HeadRows<float> to) const {
    const std::int64_t width = decay_.width;
    for (std::int64_t i = at.rows - 1; i >= 0; --i) {
      float* row = to.data + i * to.stride;
      if (width == 1) *row = *sums_ += *decay_.total * (*row - product(i));
      for (std::int64_t d = 0; width > 1 && d < width; d += kLanes) {
        const Vec sum = load(sums_ + d) + load(decay_.total + d) * load(row + d);
        store(sums_ + d, sum);
        store(row + d, sum);
      }
    }
    // Ahead of a document there is nothing to decay, but for what rounding leaves of it.
    if (at.row0 > run.item.run.row0 || run.item.run.enters) return;
    for (std::int64_t d = 0; d < width; ++d) to.data[d] = 0;
  }

  GroupDecay decay_;
  ScanSpace scan_;
  float* tails_[5];
  float* products_;  ///< Of a group's rows, or, with a decay per channel, of a last chunk that is not whole.
  ScanState dstate_, transposed_;
  float* sums_;
  std::int64_t* starts_;
  std::int64_t most_kept_;
  float* kept_;
};

}  // namespace
}  // namespace periplus::kernels::cpu
