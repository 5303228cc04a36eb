#pragma once

#include "kernels/cuda/linear_walk.h"

namespace periplus::kernels::cuda::hopper {

/// Results of walks without decay or with one per head, with notes for its gradient if there is room for them, over `segments` segments
/// and all heads, for capability 9.0. Of two walks, one's k and v are the other's v and k, and the second one's partner is the first one's
/// q. Two walks are falling ones, a single one rises; their scales are positive, scale_values is 1. Instantiated for the device's bf16 and
/// f16; widths of 72 to 128, multiples of 8, rows aligned to 16 bytes. One block takes a multiprocessor. Notes: dots come in two parts of
/// columns (of a set of two walks: one part) and from the second walk, ends in eight and from the first; states are theirs alone.
template <class T, int groups>
void launch_linear(const portable::WalkSet<T, groups>& set, std::int64_t segments, cudaStream_t stream);

}  // namespace periplus::kernels::cuda::hopper
