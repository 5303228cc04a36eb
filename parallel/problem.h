#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "parallel/layout.h"
#include "parallel/mask.h"
#include "runtime/dtype.h"

namespace periplus {

/// One distributed softmax attention: what is computed. Equal on all ranks.
struct AttentionProblem {
  SequenceLayout layout;
  Mask mask;
  int q_heads = 1;
  int kv_heads = 1;  ///< Divides q_heads.
  int head_size = 64;
  int value_size = 0;         ///< 0: the head size.
  DType dtype = DType::f32;   ///< Storage type of q, k, v, out: f64, f32, bf16 or f16.
  double scale = 0;           ///< 0: 1/sqrt(head_size).
  double softcap = 0;         ///< 0: off.
  bool sink = false;          ///< A learnable logit per head takes part in every softmax.
  bool lse_gradient = false;  ///< The loss also depends on lse.
  bool contiguous_kv = true;  ///< k and v will be bound as dense tensors (else the plan copies them before they travel).

  int value() const noexcept { return value_size != 0 ? value_size : head_size; }
  double scale_or_default() const { return scale != 0 ? scale : 1 / std::sqrt(static_cast<double>(head_size)); }
  std::uint64_t digest() const;
};

/// A machine in a few numbers, for the strategy "auto" and for modelled times.
struct Machine {
  double rank_gflops = 1000;  ///< Rate of a rank's attention kernels.
  double memory_gbytes = 10;  ///< GB/s of a rank's copies and sums.
  double link_gbytes = 5;     ///< GB/s of a link between ranks (of one node).
  double link_latency_us = 5;
  double node_gbytes = 1;  ///< GB/s of a link between ranks of different nodes.
  double node_latency_us = 20;
  std::string link_sharing = "port";  ///< What shares a link: pair | port | half_duplex (runtime/comm/pacing.h).
  friend bool operator==(const Machine&, const Machine&) = default;
};

/// How it is computed. Equal on all ranks. A strategy that cannot do what is asked is refused when the plan is made, and
/// so is an option that the strategy does not listen to: those keep their defaults.
struct AttentionOptions {
  std::string strategy = "ring";  ///< A name of the strategy table, or "auto": the fastest on `machine` (choose.h).
  int pieces = 1;                 ///< Parts a block is cut into by KV heads, so that work starts when the first has arrived.
  int stages = 0;                 ///< Exchanges that fetched keys come in; 0: the strategy's own choice.
  int head_ranks = 0;             ///< Ranks that share heads in a two-dimensional strategy; 0: the most that the heads allow.
  /// Which ranks of a two-dimensional strategy stand next to each other, and so share a node (LoongTrain): head_first, those
  /// that share heads, so that the all-to-all stays in a node; context_first, those of one ring.
  std::string placement = "head_first";
  int ranks_per_node = 0;  ///< Ranks that a fast network joins; 0: all of them.
  Machine machine = {};    ///< For "auto" only.
  std::uint64_t digest() const;
};

enum class Pass { forward, backward };

}  // namespace periplus
