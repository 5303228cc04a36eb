#pragma once

#include <string>
#include <vector>

#include "parallel/plan/plan.h"
#include "parallel/plan/provenance_slot.h"
#include "parallel/plan/provenance_truth.h"
#include "parallel/plan/provenance_twins.h"

namespace periplus::plan {

/// What proofs hand on to the next: memory, and what is known of the claim while layout and mask stay the same.
struct ProvenanceMemory {
  std::vector<std::vector<SlotPieces>> slots;  ///< by rank and slot; more than there are, perhaps
  TermStore terms;
  AttendRecords records;
  KnownPairs known;
  Twins twins;
  /// Empties it, for a plan of this claim, of what does not hold any more.
  void begin(const Plan& plan);
};

/// Part 4 of verify(): plays the plan with symbols in place of numbers. Returns the first thing that is wrong, or nothing.
/// The plan must have passed the checks of form, messages and races: then every order of steps gives the same result, and
/// playing phase by phase is one of them.
std::string check_provenance(const Plan& plan, ProvenanceMemory& memory);

}  // namespace periplus::plan
