#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/train/model/parameters.h"

namespace periplus::train {

/// Who owns which elements of the flat buffers: every section of the parameters is cut into one part a rank, [floor(r n / P),
/// floor((r+1) n / P)) of its n elements, so that all ranks take equal part in summing a section. A rank keeps its parts one after the
/// other: its shard.
class Shards {
 public:
  struct Part {
    int rank = 0;
    std::int64_t begin = 0;   ///< In the flat buffers.
    std::int64_t count = 0;   ///< May be 0.
    std::int64_t offset = 0;  ///< In the rank's shard.
  };

  Shards(std::span<const Section> sections, int ranks);

  std::int64_t elements(int rank) const;
  /// By section, ascending.
  std::span<const Part> of_rank(int rank) const;
  const Part& part(std::size_t section, int rank) const { return of_rank(rank)[section]; }
  /// Elements of each rank's part.
  std::vector<std::int64_t> counts(std::size_t section) const;
  /// Of the largest part of all.
  std::int64_t largest_part() const;
  /// What the rank holds of elements [begin, begin + count), which are of one section; of count 0 if nothing.
  Part held(int rank, std::int64_t begin, std::int64_t count) const;
  /// What all ranks hold of them, in ascending order, without empty parts.
  std::vector<Part> owners(std::int64_t begin, std::int64_t count) const;

 private:
  std::size_t sections_;
  int ranks_;
  std::vector<Part> parts_;  // rank by rank
};

}  // namespace periplus::train
