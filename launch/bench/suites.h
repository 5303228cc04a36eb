#pragma once

#include "launch/commands.h"

/// The suites of `periplus bench`. Each returns an exit code and throws for bad input and failures.
namespace periplus::launch::bench {

int bench_train(Arguments arguments);
int bench_attention(Arguments arguments);
int bench_memory(Arguments arguments);
int bench_kernels(Arguments arguments);
int bench_linear(Arguments arguments);
int bench_overlap(Arguments arguments);
int bench_strategies(Arguments arguments);
int bench_gpu(Arguments arguments);
int bench_planner(Arguments arguments);

}  // namespace periplus::launch::bench
