#pragma once

#include <map>
#include <string>
#include <vector>

#include "parallel/plan/plan.h"
#include "runtime/comm/pacing.h"

/// What the simulator knows of a machine and of the kernels on it: data sheets and published or own measurements, read from
/// files (examples/machines, examples/kernels), which name the source of each number.
namespace periplus::simulate {

/// Rate of an attention kernel by the length of a square block, for causal and for full blocks.
struct AttentionCurve {
  std::vector<double> lengths;                                         ///< Ascending, tokens.
  std::vector<double> causal_flops_per_second, full_flops_per_second;  ///< Of each length; masked pairs are not counted.

  /// Between lengths by the logarithm of the length, beyond them the last; between causal (half the pairs) and full by time.
  /// `fill`: allowed pairs over all pairs of the block.
  double rate(double length, double fill) const;
};

/// Kernels of one device.
struct Kernels {
  double matmul_flops_per_second = 0;
  double memory_bytes_per_second = 0;  ///< Of copies, bytes read and written both counted.
  double launch_seconds = 0;           ///< What every step costs besides.
  AttentionCurve forward, backward;
  std::vector<double> head_sizes;  ///< Ascending: attention pads heads to the next of them. Empty: it pads none.
  /// Sizes of the tiles that attention computes whole if one pair of them is allowed. 0: pairs alone count.
  double tile_queries = 0, tile_keys = 0;
  /// How results of blocks are summed: passes over f32 rows of the result in memory for each block after a rank's first, beyond
  /// the kernel itself. 0: the kernel folds into the running state. `sliced`: where a block touches only part of the rows.
  double merge_passes = 0, sliced_merge_passes = 0;
  double first_merge_passes = 0;     ///< Of the first block.
  double merge_launches = 0;         ///< Small kernels of a merge that cost a launch and nothing else.
  double backward_merge_passes = 0;  ///< Of rows of dq, dk and dv.
  double merge_efficiency = 1;       ///< Of memory_bytes_per_second, that all these passes reach.
  /// Chunked linear attention: bytes that its steps must move over what they do move in the time, of memory_bytes_per_second.
  double linear_efficiency = 1, linear_backward_efficiency = 1;
};

/// A set of equal nodes.
struct Machine {
  std::string name;
  int devices = 0, devices_per_node = 0;
  double memory_bytes = 0;           ///< A device's, for all that a training run holds.
  double peak_flops_per_second = 0;  ///< Data sheet, for MFU; 0: the rate of matrix products stands in for it.
  comm::Links links;                 ///< By device.
  std::map<int, double> all_to_all;  ///< Measured, by size of the group (Costs); empty: what the links give.
  double node_bytes_per_second = 0;  ///< All network cards of a node together, each way.
  double collective_seconds = 0;     ///< What a gather or reduction costs besides its hops and bytes.
  double host_bytes_per_second = 0;  ///< Between a device and its host, each way; 0: not told, so that no estimate relies on it.
  double overlap_slowdown = 1;       ///< Of compute while messages move.
  /// Of the time that gathers and reductions of ZeRO-3 take, what compute does not hide; for cost models of a whole iteration.
  double exposed_gather_share = 0;
  Kernels kernels;

  int nodes_of(int group) const noexcept { return (group + devices_per_node - 1) / devices_per_node; }
};

/// Errors: InvalidArgument that names the file's key and value.
void check(const Machine& machine);

/// Seconds of a compute step: attention from the curves and the passes that merge it, linear attention from the slower of its
/// flops and its bytes (steps that make states and steps that apply them share the time of a kernel that does both), all else from its
/// bytes. For Costs::compute.
double step_seconds(const Kernels& kernels, const plan::Program& program, const plan::Step& step);

/// A collective over `group` devices with consecutive ranks, by the closed form of a ring that enters each node once: every one of its
/// links, also those between nodes, carries all parts but one.
/// `bytes`: what all devices hold together after an all-gather, or each before a reduce-scatter. `groups`: that run side by
/// side on the same nodes and share their network cards. All-reduce is both, one after the other.
double gather_seconds(const Machine& machine, int group, double bytes, int groups = 1);

}  // namespace periplus::simulate
