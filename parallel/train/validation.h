#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/train/config.h"
#include "parallel/train/data/corpus.h"
#include "parallel/train/data/packing.h"
#include "parallel/train/step_plan.h"

namespace periplus::train {

/// Rows of the validation text, packed as the training text is: all, or the data.validation_rows that the seed picks, the same ones
/// whenever losses are measured.
class Validation {
 public:
  /// Config and corpus outlive it. Reads the rows, so that errors of Corpus::read() come before training. InvalidArgument if no row has a
  /// label.
  Validation(const Config& config, const Corpus& corpus);

  std::int64_t rows() const noexcept { return std::ssize(picked_); }
  /// All ranks on row `index`.
  StepPlan plan(std::int64_t index, int ranks) const;
  std::int64_t labels() const noexcept { return labels_; }  ///< Of all rows: the loss is a mean over them.
  /// For people: how much there is, and when it is used.
  std::string description() const;
  bool due(std::int64_t step) const noexcept { return step == run_.steps || (run_.validate_every > 0 && step % run_.validate_every == 0); }

 private:
  std::span<const Piece> row(std::int64_t index) const { return packing_.row(picked_.at(static_cast<std::size_t>(index))); }

  const RunConfig& run_;
  const Corpus& corpus_;
  Packing packing_;
  std::vector<std::int64_t> picked_;
  std::int64_t labels_ = 0;
};

}  // namespace periplus::train
