#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "launch/verify_subjects.h"
#include "parallel/plan/plan_maker.h"
#include "parallel/plan/verify.h"

namespace periplus::launch {

/// What came of the plans of one row of the table, or of all rows.
struct Tally {
  std::int64_t plans = 0, refused = 0, steps = 0, failures = 0;
  int numeric = 0;
  double largest_error = 0, seconds = 0;
  // Of a row.
  std::string first_refusal{};
  std::string unavailable{};  ///< Why a device was not asked for the fp64 comparison: it lacks kernels.

  bool ok() const noexcept { return failures == 0 && plans > 0; }
  void add(const Tally& other);
};

/// Plans made and proven one after another.
struct Prover {
  plan::PlanMaker maker;
  plan::Verifier verifier;
};

/// A row of the table as it fills.
struct VerifyEntry {
  VerifySubject::Strategy how{};
  std::string layout{}, kind{}, ranks{};
  Tally tally{};
  std::string strategy() const;
};

/// All strategies of a subject, each on the same problems: `ranks` as they were `told`. They follow each other on each problem, of
/// which the proofs know more and more. Without a device there is no fp64 comparison. Failures are complained of on stderr.
std::vector<VerifyEntry> verify_subject(const VerifySubject& subject, const std::set<int>& ranks, const std::string& told,
                                        std::optional<Device> device, Prover& prover);

struct VerifyWidths {
  std::size_t kind = 7, ranks = 5;
};
std::string verify_header(const VerifyWidths& widths);
/// The row, and below it what was refused and what a device lacks.
std::vector<std::string> verify_lines(const VerifyWidths& widths, const VerifyEntry& row);
nlohmann::json to_json(const VerifyEntry& row);

}  // namespace periplus::launch
