#pragma once

#include "parallel/layout.h"
#include "parallel/mask.h"

namespace periplus {

/// A layout of any kind for the documents of a mask. LayoutKind::balanced needs the mask itself: the sequence is cut into
/// chunks of one size, some 32 for each rank, and every rank gets equally many (to within one), so dealt that all have nearly
/// equal attention work: chunks by falling area go to the least loaded rank that is not full (MagiAttention's dispatch,
/// algorithms.md 8.6). For masks whose work lies anywhere; group_cast then fetches what each rank needs.
SequenceLayout make_layout(LayoutKind kind, int ranks, const Mask& mask);

}  // namespace periplus
