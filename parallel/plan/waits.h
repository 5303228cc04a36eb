#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "parallel/plan/alike.h"
#include "parallel/plan/order.h"
#include "parallel/plan/plan.h"

namespace periplus::plan {

/// Finds out what the steps of a program have to wait for, and where its scratch slots can lie. Keeps memory from one program to
/// the next. Programs of a plan that use their slots alike have the same waits.
class Waits {
 public:
  /// Fills in `after` of all steps, offsets of scratch and size of the workspace. `earlier` are the programs of the plan, from
  /// rank 0 on, that went through here before and have not changed; none for the first.
  void write(Program& program, std::span<const Program> earlier);

 private:
  enum class Apart : std::uint8_t { unknown, yes, no };
  /// Where scratch slots of these sizes lie.
  struct Placement {
    std::vector<std::int64_t> bytes, offsets;
    std::int64_t workspace_bytes = 0;
  };
  /// What is known of programs that are alike. They may differ in the sizes of their slots.
  struct Known {
    Timeline timeline;
    std::vector<Placement> placements;
    std::vector<Apart> apart;  ///< By two of the scratch slots.
  };
  void order_steps(Program& program, Timeline& timeline);
  std::span<const Access> accesses_of(const Program& program, const Step& step);
  std::array<StepId, kQueues> latest_conflicts(StepId step, std::span<const Access> accesses, const StepOrders& orders) const;
  const Placement& place(Known& known);
  void place_scratch(Program& program, Known& known);

  KnownPrograms<Known> known_;
  Histories history_;
  std::vector<Access> touched_;       ///< Of the exchange at hand.
  std::vector<std::size_t> scratch_;  ///< Slots of the program at hand,
  std::vector<std::int64_t> bytes_;   ///< and their sizes.
};

}  // namespace periplus::plan
