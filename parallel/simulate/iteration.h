#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/layout.h"
#include "parallel/linear_attention.h"
#include "parallel/problem.h"
#include "parallel/simulate/machine.h"
#include "parallel/simulate/shape.h"
#include "runtime/trace.h"

namespace periplus::simulate {

/// What backward runs again: nothing; all of a layer but its attention and the hidden values of its feed-forward part; all but attention,
/// whose results are kept (algorithms.md 10.7); all.
enum class Recompute { none, but_hidden, but_attention, all };
inline constexpr std::array kRecomputes = {Recompute::none, Recompute::but_hidden, Recompute::but_attention, Recompute::all};
std::string_view to_string(Recompute recompute) noexcept;

inline constexpr int kMostContext = 1024;  ///< Ranks of a sequence whose plans, which have steps for every pair, are quickly made.

/// How a model is trained: one sequence of `tokens` over `context` ranks, `replicas` of that, each with micro-batches.
struct Training {
  std::int64_t tokens = 0;              ///< Of a micro-batch of one replica.
  std::vector<std::int64_t> documents;  ///< That it is packed of; empty: one.
  bool causal = true;
  int context = 1, replicas = 1;
  /// Devices that share the matrices of a layer (Megatron, with sequence parallelism beside the matrices); the first dimension of
  /// ranks. Attention then runs over heads / tensor heads.
  int tensor = 1;
  bool split_norms = true;  ///< false: each device of a tensor group holds all rows beside the matrices. Memory only (memory_of).
  int micro_batches = 1;
  /// Of a pipeline's first stage, whose layers are then the model's: micro-batches whose values it holds at once. Memory only.
  int in_flight = 1;
  LayoutKind layout = LayoutKind::zigzag;
  AttentionOptions attention;     ///< Of S layers. strategy "auto": see estimate.h.
  LinearAttentionOptions linear;  ///< Of L layers.
  Recompute recompute = Recompute::but_attention;
  int zero = 1;  ///< Stage 0 to 3 (algorithms.md 10.6), over context x replicas.
  /// As our trainer: gradients are made in f32 and summed into a shard of their own, and nothing is computed beside collectives: weights
  /// of a section (the embedding, a layer, what is behind the layers) are gathered when it comes. Else as others: gradients have the
  /// model's elements, and the next layer's weights and the last one's gradients move beside compute.
  bool by_section = false;
  double optimizer_bytes = 12;       ///< Of a weight beside itself and its gradient: master weight and two moments.
  bool optimizer_on_host = false;    ///< Master weights and moments take no device memory; by_section: the host updates them.
  bool checkpoints_on_host = false;  ///< What layers keep for backward goes to the host and comes back.
  bool tiled_ffn = false;            ///< The feed-forward part runs in tiles of rows that take no memory to speak of.
  bool tiled_loss = false;
  bool narrow_sums = false;  ///< Partial results and gradients travel as bf16 (attention_time.h).
  bool overlap = true;       ///< Messages of attention move while it computes; false: all of them first or after.
  /// The chain of linear attention ("lasp") as the source of LASP-1 runs it (in_turn, attention_time.h), with a barrier before each
  /// forward.
  bool chain_in_turn = false;

  int devices() const noexcept { return context * replicas * tensor; }
};

/// Where the time of a rank goes; the parts add up to the iteration.
struct RankShare {
  double compute = 0;          ///< Kernels.
  double attention_wait = 0;   ///< Exposed messages of attention.
  double collective_wait = 0;  ///< Exposed gathers and reductions of weights, gradients and tensor-parallel activations.
  double imbalance = 0;        ///< For slower ranks of its group.
  double overhead = 0;         ///< For the host, where its own work (Shape) takes longer than all of the above.
};

/// Bytes that a rank holds at its peak.
struct Memory {
  double states = 0;       ///< Weights, gradients, optimizer.
  double checkpoints = 0;  ///< Kept for backward, all layers and micro-batches in flight.
  double working = 0;      ///< Of the layer at work: activations, their gradients, attention's workspace.
  double logits = 0;
  double host = 0;  ///< Beside the device's: checkpoints and optimizer states in host memory.
  double total() const noexcept { return states + checkpoints + (working > logits ? working : logits); }
};

struct Iteration {
  double seconds = 0;
  std::vector<RankShare> ranks;           ///< Of one context group.
  Memory memory;                          ///< Of the rank that needs most.
  double workspace = 0;                   ///< Bytes of attention's plans, of the rank that needs most.
  double link_bytes = 0, card_bytes = 0;  ///< That the busiest rank sends inside its node, and out of it.
  double flops = 0;                       ///< Of the model, all devices: masked pairs and recomputation not counted.
  double attention_forward_seconds = 0, attention_backward_seconds = 0;  ///< Of one layer.
  std::vector<Tracer> traces;                                            ///< Of one context group, for to_chrome_trace.

  double tokens_per_second(const Training& training) const noexcept;
  /// Of the devices' peak.
  double mfu(const Machine& machine, const Training& training) const noexcept;
};

/// One training step. Attention is simulated as its plan runs (simulate.h), with each rank starting when it has come to it; a
/// layer whose ranks come at the same distances as those of the layer before takes the same times. Matrices, norms and loss take
/// their flops and bytes at the kernels' rates. Weights that ZeRO-3 gathers and gradients that are reduced move beside compute,
/// one collective at a time, the next layer's while this one runs. Not modelled: that such collectives slow attention's messages.
///
/// Errors   InvalidArgument where the plan, the model and the machine do not go together.
/// Cost     Two plans, and as many simulations of each as layers differ: 0.1 s for 64 ranks.
Iteration simulate_iteration(const Shape& shape, const Machine& machine, const Training& training);

/// The memory alone; what simulate_iteration says if `workspace`, in bytes, is what the plans of attention need. Knows more: kept scores
/// (Shape), stages of a pipeline, tensor parallelism without split norms.
Memory memory_of(const Shape& shape, const Training& training, double workspace = 0);

/// Forward and backward flops of the model for the tokens of one iteration, all devices.
double model_flops(const Shape& shape, const Training& training);

}  // namespace periplus::simulate
