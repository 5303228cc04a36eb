#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "parallel/planner/batch.h"

namespace periplus::planner {

/// What filling one micro-batch gives.
struct Filling {
  double seconds = 0;         ///< Of the longest group.
  double work = 0;            ///< Least device-seconds of what it took.
  std::int64_t tokens = 0;    ///< Taken.
  std::vector<int> choice;    ///< By group, of the menu.
  std::vector<int> group_of;  ///< By position in the list that was offered; -1: left over.
  std::vector<int> rest;      ///< Left over, in order.
};

/// Fills one micro-batch of at most `limit` seconds from a list of sequences in descending length: dual approximation in the
/// manner of Hochbaum and Shmoys, for bins of several sizes. Each sequence goes where it costs least device-seconds: into an
/// open group that has time and memory for it, the emptiest of its degree, or into a new group while devices are left.
/// Reusable, so that its buffers are. Cost: O(sequences x degrees), and the moves that keep groups in order.
class Filler {
 public:
  Filler(const Batch& batch, const Menu& menu);
  void fill(std::span<const int> offered, double limit, Filling& result);

 private:
  struct Open {
    double seconds;
    std::int64_t tokens;
    int group;
  };
  /// Groups of one degree, by load.
  struct Class {
    std::vector<Open> groups;
    std::int64_t most_free = 0;  ///< No group has more free tokens.
  };
  struct Place {
    double work = std::numeric_limits<double>::infinity();
    int choice = -1, at = -1;  ///< -1: a new group.
  };
  Place cheapest(int sequence, double limit, int devices_left);
  void open(int choice, int group);
  int fitting(int choice, int sequence, double limit);
  void add(int choice, int position, double seconds, std::int64_t tokens);

  const Batch& batch_;
  const Menu& menu_;
  std::vector<Class> classes_;
};

/// Whether groups of these choices of a menu find places. Always so for powers of two, if there are devices enough.
bool fits_side_by_side(const Batch& batch, const Menu& menu, std::span<const int> choices);

}  // namespace periplus::planner
