#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/linear_attention.h"

/// Runs cut into segments that different blocks take. Knows nothing of CUDA.
namespace periplus::kernels::cuda {

inline constexpr std::int64_t kLinearChunk = 64;  ///< Tokens that a block takes at a time; segments begin at multiples of it in their run.

/// Tokens after which the gradient of the decay is worked out anew.
inline constexpr std::int64_t kDecayBlock = 4 * kLinearChunk;

/// Neighbouring tokens of one run, which one block takes in rising or (reverse) falling order. A state comes in from the segment that is
/// taken before it, and goes to the next.
struct Segment {
  static constexpr std::int32_t kZero = -1, kIncoming = -2;
  std::int64_t row0;
  std::int32_t rows, unit;
  std::int32_t before;  ///< Slot of the state it starts from; or kZero, or kIncoming: that of its unit.
  std::int32_t ends;    ///< Whether its last row is its run's.
  std::int32_t leaves;  ///< Whether that is so and the run leaves its unit.
  std::int32_t chunk0;  ///< Chunks of its run ahead of it.
  std::int32_t block0;  ///< Blocks of kDecayBlock tokens in the runs ahead of its run.
};

/// Segments in the order to take them in each run, and a state's slot for each whose state another one needs.
struct Segments {
  /// The slots of a run: first .. first + count - 1. A fold makes of each segment's own state the one behind it.
  struct Fold {
    std::int64_t first, count;
  };
  std::vector<Segment> all;
  std::vector<Segment> feeding;  ///< Slot by slot.
  std::vector<Fold> folds;
};

/// `blocks` is what a device runs at once. Few long runs are cut so that there are about as many segments; a cut costs a second pass
/// over keys and values.
///
/// For elements, which start from zero: every segment feeds, and folds[i] is that of runs[i], also of one slot or (no rows) none.
Segments cut_for_elements(std::span<const UnitRun> runs, std::int64_t heads, std::int64_t blocks, bool reverse);
/// For a pass over all tokens: the last segment of each run feeds nothing. Runs that enter (reverse: leave) their unit start from
/// kIncoming.
Segments cut_for_pass(std::span<const UnitRun> runs, std::int64_t heads, std::int64_t blocks, bool reverse);

/// kDecayBlock tokens of a run, or those left at its end.
struct DecayBlock {
  std::int64_t row0;
  std::int32_t rows;
  std::int32_t first, ends;  ///< Whether it is the first and the last of its run.
  std::int32_t begins;       ///< Whether a document begins with it.
};
std::vector<DecayBlock> decay_blocks(std::span<const UnitRun> runs);

}  // namespace periplus::kernels::cuda
