#pragma once

#include <cstddef>
#include <vector>

#include "parallel/layout.h"
#include "parallel/mask.h"

namespace periplus {

/// The keys of a set of ranks that grows, to ask which queries see any of them. Strategies in which queries travel ask
/// this of "all ranks that a packet has yet to visit": a set of each rank alone would cost the square of the rank count.
/// Refers to the layout and the mask.
class KeySet {
 public:
  KeySet(const SequenceLayout& layout, const Mask& mask);

  /// Takes in the keys of one more rank. Cost: its segments times the runs that the keys of a document form.
  void add(int rank);
  void clear();
  /// Smallest range of a rank's rows that holds every query which may see a key of the set; empty if none does. Looks from
  /// both ends inward, without making the bands.
  RowRange rows_that_see(int q_rank) const;

 private:
  /// Keys first, first + stride, ... below end, one after the last of them.
  struct Run {
    std::int64_t first, end, stride;
  };
  RowRange rows_of(const Segment& q) const;

  const SequenceLayout& layout_;
  const Mask& mask_;
  std::vector<std::size_t> first_band_;  ///< Of each document, in the mask; one more at the end.
  std::vector<std::vector<Run>> runs_;   ///< By document; of unit-stride runs no two touch.
  mutable std::vector<Band> found_;      ///< Of one segment and run; kept for its memory.
};

}  // namespace periplus
