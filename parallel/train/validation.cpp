#include "parallel/train/validation.h"

#include <algorithm>

#include <fmt/format.h>

#include "runtime/error.h"

namespace periplus::train {

Validation::Validation(const Config& config, const Corpus& corpus)
    : run_(config.run), corpus_(corpus), packing_(config.data.packing, corpus.lengths(), config.data.context) {
  const std::int64_t wanted = config.data.validation_rows;
  const std::int64_t rows = wanted == 0 ? packing_.rows() : std::min(wanted, packing_.rows());
  RowOrder order(packing_, config.run.seed);
  for (std::int64_t i = 1; i <= rows; ++i) picked_.push_back(order.row_of_step(i));
  std::sort(picked_.begin(), picked_.end());
  for (std::int64_t i = 0; i < rows; ++i) {
    for (const Piece& piece : row(i)) labels_ += piece.length - 1;
  }
  if (labels_ == 0)
    throw InvalidArgument(
        fmt::format("validation: {} rows of data.validation_paths hold documents of one token only, where nothing is predicted", rows));
}

StepPlan Validation::plan(std::int64_t index, int ranks) const {
  StepPlan plan;
  plan.micro_batches = {{{.first_rank = 0, .ranks = ranks, .attention = {}, .pieces = {row(index).begin(), row(index).end()}}}};
  return plan;
}

std::string Validation::description() const {
  return fmt::format("validation: {} documents, {} tokens; {} of {} rows {}", corpus_.documents().size(), corpus_.tokens(), rows(),
                     packing_.rows(),
                     run_.validate_every > 0 ? fmt::format("every {} steps and at the end", run_.validate_every) : "at the end");
}

}  // namespace periplus::train
