#include "parallel/train/start.h"

#include <array>
#include <optional>
#include <sstream>

#include <fmt/format.h>

#include "parallel/train/agree.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus::train {

void check_on_all_ranks(const Config& config, bool resume, const comm::Communicator& communicator) {
  all_or_none(communicator, [&] { check(config); });
  std::string text = resume ? "resume = true" : "resume = false";
  for (const auto& [key, value] : key_values(config)) text += fmt::format("\n{} = {}", key, value);
  const std::vector<std::string> texts = communicator.all_gather_bytes(text, Stream());
  for (std::size_t rank = 1; rank < texts.size(); ++rank) {
    std::istringstream first(texts.front()), other(texts[rank]);
    std::string wanted, found;
    while (wanted == found && std::getline(first, wanted) && std::getline(other, found)) {
    }
    if (wanted == found) continue;
    throw InvalidArgument(
        fmt::format("train: rank {} of {} was given {}, rank 0 {}; every rank must be given the same", rank, texts.size(), found, wanted));
  }
}

Corpora open_on_all_ranks(const Config& config, const comm::Communicator& communicator) {
  std::optional<Corpora> corpora;
  all_or_none(communicator, [&] { corpora.emplace(open_corpora(config)); });
  const std::string digests = corpora->training.digest() + (corpora->validation ? corpora->validation->digest() : "");
  comm::require_same_on_all_ranks(communicator, hash64(digests), "the list of training and validation files", Stream());
  return std::move(*corpora);
}

Entropy entropy_on_all_ranks(const Corpus& corpus, std::uint64_t seed, const comm::Communicator& communicator) {
  std::array<double, 4> values{};
  on_rank0(communicator, [&] {
    const Entropy entropy = sampled_entropy(corpus, seed);
    values = {entropy.unigram, entropy.order1.value_or(0), entropy.order1 ? 1.0 : 0.0, static_cast<double>(entropy.counted_tokens)};
  });
  all_reduce(communicator, values, comm::Reduce::sum);
  return {.unigram = values[0],
          .order1 = values[2] > 0 ? std::optional(values[1]) : std::nullopt,
          .counted_tokens = static_cast<std::int64_t>(values[3])};
}

std::string description_of_layers(const ModelConfig& model) {
  std::string text;
  for (std::int64_t layer = 0; layer < model.layers; ++layer) text += model.letter_of(layer);
  if (!model.gate.empty()) text += fmt::format(" with {} gates", model.gate);
  return text;
}

}  // namespace periplus::train
