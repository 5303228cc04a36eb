#pragma once

#include <string>

#include "parallel/plan/plan.h"
#include "parallel/problem.h"
#include "parallel/simulate/machine.h"
#include "runtime/comm/pacing.h"

namespace periplus {

/// The links of a machine.
comm::Links links_of(const Machine& machine, int ranks_per_node);
/// What a step takes on a machine: its flops at the rate of kernels, or its bytes at the rate of memory.
double modelled_seconds(const Machine& machine, const plan::Program& program, const plan::Step& step);

/// Gives options of strategy "auto" the figures of a described machine for attention over blocks of `rows` tokens (a rank's), and its
/// nodes unless ranks_per_node names other ones. InvalidArgument if it has fewer devices than ranks.
void use_machine(AttentionOptions& options, const simulate::Machine& machine, int ranks, std::int64_t rows);

struct Choice {
  AttentionOptions options;  ///< With a strategy of the table in place of "auto".
  double seconds = 0;        ///< Forward and backward, modelled.
  std::string why;           ///< One line: the choice, its time, the next best.
};

/// Which strategy is fastest for a problem on options.machine: each that can plan it is simulated, forward and backward,
/// whole and in pieces. The same on every rank. Cost: two plans of all ranks for each candidate, some 20 ms for 8 ranks and
/// 2 s for 64. Throws InvalidArgument if no strategy can plan the problem (the ring always can).
Choice choose_strategy(const AttentionProblem& problem, const AttentionOptions& options);

/// The options themselves, or those that choose_strategy puts in place of "auto".
AttentionOptions resolved(const AttentionProblem& problem, const AttentionOptions& options);

}  // namespace periplus
