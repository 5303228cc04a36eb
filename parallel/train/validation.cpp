#include "parallel/train/validation.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "parallel/train/random.h"
#include "runtime/error.h"

namespace periplus::train {
namespace {

Packing pack(const DataConfig& data, const Corpus& corpus) {
  try {
    return Packing(data.packing, corpus.lengths(), data.context);
  } catch (const InvalidArgument& error) {
    throw InvalidArgument(fmt::format("data.validation_paths: {}", error.what()));
  }
}

/// In ascending order. Not of the training's order, which has short pieces before long ones.
std::vector<std::int64_t> pick_rows(std::int64_t wanted, std::int64_t rows, std::uint64_t seed) {
  std::vector<std::int64_t> picked(static_cast<std::size_t>(rows));
  std::iota(picked.begin(), picked.end(), std::int64_t{0});
  if (wanted == 0 || wanted >= rows) return picked;
  std::mt19937_64 engine = engine_for(seed, "validation rows");
  shuffle(std::span(picked), engine);
  picked.resize(static_cast<std::size_t>(wanted));
  std::sort(picked.begin(), picked.end());
  return picked;
}

}  // namespace

Validation::Validation(const Config& config, const Corpus& corpus)
    : run_(config.run),
      corpus_(corpus),
      packing_(pack(config.data, corpus)),
      picked_(pick_rows(config.data.validation_rows, packing_.rows(), config.run.seed)) {
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < rows(); ++i) {
    for (const Piece& piece : row(i)) {
      labels_ += piece.length - 1;
      tokens.resize(static_cast<std::size_t>(piece.length));
      corpus.read(static_cast<std::size_t>(piece.document), piece.offset, tokens);  // now, not after hours of training
    }
  }
  if (labels_ == 0)
    throw InvalidArgument(
        fmt::format("validation: {} rows of data.validation_paths hold documents of one token only, where nothing is predicted", rows()));
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
