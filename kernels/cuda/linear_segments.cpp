#include "kernels/cuda/linear_segments.h"

#include <algorithm>

namespace periplus::kernels::cuda {
namespace {

std::int64_t blocks_of(const UnitRun& run) { return (run.rows + kDecayBlock - 1) / kDecayBlock; }
std::int64_t chunks_of(const UnitRun& run) { return (run.rows + kLinearChunk - 1) / kLinearChunk; }

/// Decides into how many segments each run goes.
class Cutter {
 public:
  Cutter(std::span<const UnitRun> runs, std::int64_t heads, std::int64_t blocks) {
    std::int64_t total = 0, longest = 0;
    for (const UnitRun& run : runs) {
      total += chunks_of(run) * heads;
      longest = std::max(longest, chunks_of(run));
    }
    // In chunks: what a block has to do if all have as much, and about how long uncut runs take. Cutting costs half as much again, and
    // something for the states; segments that are too short would move more states than tokens.
    constexpr double kCostOfCut = 1.5, kCostOfStates = 6, kShortest = 8;
    const double share = static_cast<double>(total) / static_cast<double>(blocks);
    const double uncut = std::max(static_cast<double>(longest), share);
    share_ = std::max(share, kShortest);
    cuts_ = kCostOfCut * share_ + kCostOfStates < uncut;
  }
  std::int64_t segments(const UnitRun& run) const {
    if (!cuts_) return 1;
    return std::max<std::int64_t>(1, static_cast<std::int64_t>(static_cast<double>(chunks_of(run)) / share_));
  }

 private:
  double share_;
  bool cuts_;
};

/// visit(segment, is last) in the order to take them.
template <class Visit>
void for_each_segment(const UnitRun& run, std::int64_t count, std::int64_t blocks_ahead, bool reverse, const Visit& visit) {
  const std::int64_t rows = (chunks_of(run) + count - 1) / count * kLinearChunk;
  const std::int64_t pieces = (run.rows + rows - 1) / rows;
  for (std::int64_t i = 0; i < pieces; ++i) {
    const std::int64_t piece = reverse ? pieces - 1 - i : i, first = piece * rows, end = std::min(first + rows, run.rows);
    Segment segment{};
    segment.row0 = run.row0 + first;
    segment.rows = static_cast<std::int32_t>(end - first);
    segment.unit = static_cast<std::int32_t>(run.unit);
    segment.before = Segment::kZero;
    segment.ends = end == run.rows ? 1 : 0;
    segment.leaves = end == run.rows && run.leaves ? 1 : 0;
    segment.chunk0 = static_cast<std::int32_t>(first / kLinearChunk);
    segment.block0 = static_cast<std::int32_t>(blocks_ahead);
    visit(segment, i + 1 == pieces);
  }
}

}  // namespace

Segments cut_for_elements(std::span<const UnitRun> runs, std::int64_t heads, std::int64_t blocks, bool reverse) {
  const Cutter cutter(runs, heads, blocks);
  Segments segments;
  for (const UnitRun& run : runs) {
    const std::int64_t first = std::ssize(segments.feeding);
    if (run.rows > 0) {
      for_each_segment(run, cutter.segments(run), 0, reverse, [&](const Segment& segment, bool) { segments.feeding.push_back(segment); });
    }
    segments.folds.push_back({first, std::ssize(segments.feeding) - first});
  }
  return segments;
}

Segments cut_for_pass(std::span<const UnitRun> runs, std::int64_t heads, std::int64_t blocks, bool reverse) {
  const Cutter cutter(runs, heads, blocks);
  Segments segments;
  std::int64_t blocks_ahead = 0;
  for (const UnitRun& run : runs) {
    const std::int64_t first = std::ssize(segments.feeding);
    std::int32_t before = (reverse ? run.leaves : run.enters) ? Segment::kIncoming : Segment::kZero;
    for_each_segment(run, cutter.segments(run), blocks_ahead, reverse, [&](Segment segment, bool last) {
      segment.before = before;
      segments.all.push_back(segment);
      if (last) return;
      // Of the feeding ones only the first takes in the run's state; the fold carries it on.
      if (before >= 0) segment.before = Segment::kZero;
      before = static_cast<std::int32_t>(std::ssize(segments.feeding));
      segments.feeding.push_back(segment);
    });
    blocks_ahead += blocks_of(run);
    const std::int64_t count = std::ssize(segments.feeding) - first;
    if (count > 1) segments.folds.push_back({first, count});
  }
  return segments;
}

std::vector<DecayBlock> decay_blocks(std::span<const UnitRun> runs) {
  std::vector<DecayBlock> blocks;
  for (const UnitRun& run : runs) {
    for (std::int64_t first = 0; first < run.rows; first += kDecayBlock) {
      const std::int64_t rows = std::min(kDecayBlock, run.rows - first);
      blocks.push_back({run.row0 + first, static_cast<std::int32_t>(rows), first == 0 ? 1 : 0, first + rows == run.rows ? 1 : 0,
                        first == 0 && !run.enters ? 1 : 0});
    }
  }
  return blocks;
}

}  // namespace periplus::kernels::cuda
