// Where the documents of a text are, and their tokens.
#include "parallel/train/data/corpus.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>
#include <unistd.h>

#include "parallel/train/data/files.h"
#include "parallel/train/random.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus::train {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little, "files of token ids are read as they are");

constexpr std::int64_t kChunk = std::int64_t{1} << 20;  ///< Tokens read at a time where all are.

/// Calls work with a value of the type of an id.
template <class Work>
void visit_id(int bytes, const Work& work) {
  switch (bytes) {
    case 1:
      return work(std::uint8_t{});
    case 2:
      return work(std::uint16_t{});
    case 4:
      return work(std::uint32_t{});
  }
  throw InternalError(fmt::format("corpus: token ids of {} bytes", bytes));
}

/// Of documents, for a corpus whose files do not say where they end.
std::string digest_of(std::span<const Corpus::Document> documents) {
  std::string text;
  for (const Corpus::Document& document : documents) text += fmt::format("{} ", document.tokens);
  return digest_of_bytes(text);
}

/// Throws for the first of a file's ids, `first` of which come before, that is not below the vocabulary.
template <class T>
void require_below(std::int64_t vocabulary, std::span<const T> ids, const fs::path& path, std::int64_t first) {
  const auto found = std::find_if(ids.begin(), ids.end(), [&](T id) { return id >= vocabulary; });
  if (found == ids.end()) return;
  throw InvalidArgument(fmt::format("corpus: {}: token {} is {}, and model.vocabulary is {}; raise it, or correct data.token_type",
                                    path.string(), first + (found - ids.begin()), *found, vocabulary));
}

/// What symbolic links lead to.
std::vector<fs::path> targets_of(std::span<const fs::path> files) {
  std::vector<fs::path> targets;
  for (const fs::path& file : files) targets.push_back(fs::weakly_canonical(file));
  std::sort(targets.begin(), targets.end());
  return targets;
}

InvalidArgument nothing_left(std::span<const std::string> paths, std::string_view key, std::int64_t left_out, std::int64_t skipped) {
  if (left_out > 0)
    return InvalidArgument(fmt::format(
        "corpus: all {} files of {} are data.validation_paths too, which are not trained on; keep some out of those", left_out, key));
  return InvalidArgument(fmt::format("corpus: {} ({} given, first {}) hold no readable file that is not empty ({} unreadable skipped)", key,
                                     paths.size(), paths.empty() ? "none" : paths.front(), skipped));
}

double entropy_of(std::span<const std::int64_t> counts, double total) {
  double sum = 0;
  for (const std::int64_t count : counts) {
    if (count > 0) sum -= static_cast<double>(count) / total * std::log(static_cast<double>(count) / total);
  }
  return sum;
}

/// How often each token, and each pair of tokens that follow each other, is met.
class Counts {
 public:
  explicit Counts(const TokenFormat& format)
      : values_(format.bytes == 1 ? 256 : static_cast<std::size_t>(format.vocabulary)),
        single_(values_),
        before_(format.bytes == 1 ? values_ : 0),
        pairs_(before_.size() * values_) {}

  void begin_document() { previous_ = -1; }
  void add(std::span<const std::int32_t> tokens) {
    for (const std::int32_t token : tokens) {
      ++single_[static_cast<std::size_t>(token)];
      if (!pairs_.empty() && previous_ >= 0) {
        ++before_[static_cast<std::size_t>(previous_)];
        ++pairs_[static_cast<std::size_t>(previous_) * values_ + static_cast<std::size_t>(token)];
      }
      previous_ = token;
    }
  }
  Entropy entropy() const {
    const auto sum = [](const std::vector<std::int64_t>& counts) { return std::accumulate(counts.begin(), counts.end(), std::int64_t{0}); };
    Entropy result{.counted_tokens = sum(single_)};
    result.unigram = entropy_of(single_, static_cast<double>(result.counted_tokens));
    if (pairs_.empty()) return result;
    const auto total = static_cast<double>(sum(before_));
    result.order1 = total > 0 ? entropy_of(pairs_, total) - entropy_of(before_, total) : 0;
    return result;
  }

 private:
  std::size_t values_;
  std::vector<std::int64_t> single_, before_, pairs_;
  std::int32_t previous_ = -1;
};

}  // namespace

Corpus::Corpus(std::span<const std::string> paths, const TokenFormat& format, std::string_view key, const Corpus* without)
    : format_(format) {
  FoundFiles found = find_files(paths, key);
  skipped_files_ = found.skipped;
  std::string listing;
  const std::vector<fs::path> others = without != nullptr ? targets_of(without->files_) : std::vector<fs::path>();
  std::int64_t left_out = 0;
  for (fs::path& path : found.paths) {
    std::error_code error;
    const auto bytes = static_cast<std::int64_t>(fs::file_size(path, error));
    if (error) throw InvalidArgument(fmt::format("corpus: {}: {}; correct {}", path.string(), error.message(), key));
    if (bytes == 0) continue;
    if (!others.empty() && std::binary_search(others.begin(), others.end(), fs::weakly_canonical(path))) {
      ++left_out;
      continue;
    }
    if (bytes % format.bytes != 0) {
      throw InvalidArgument(fmt::format("corpus: {} has {} bytes, no whole number of tokens of {}; correct {} or data.token_type",
                                        path.string(), bytes, format.bytes, key));
    }
    listing += fmt::format("{}\n{}\n", path.string(), bytes);
    files_.push_back(std::move(path));
    add_documents(static_cast<std::int32_t>(files_.size() - 1), bytes / format.bytes);
  }
  if (files_.empty()) throw nothing_left(paths, key, left_out, skipped_files_);
  if (std::ssize(documents_) > std::numeric_limits<std::int32_t>::max())
    throw InvalidArgument(
        fmt::format("corpus: {} hold {} documents, more than are numbered; correct {} or data.document_end", key, documents_.size(), key));
  if (format.document_end >= 0) listing += digest_of(documents_);
  digest_ = digest_of_bytes(listing);
}

void Corpus::add_documents(std::int32_t file, std::int64_t tokens) {
  tokens_ += tokens;
  std::int64_t begin = 0;
  const auto end_at = [&](std::int64_t end) {
    if (end > begin) documents_.push_back({file, begin, end - begin});
    begin = end;
  };
  if (format_.document_end >= 0) {
    visit_id(format_.bytes, [&]<class T>(T) {
      const T last = static_cast<T>(format_.document_end);
      std::vector<T> chunk;
      for (std::int64_t at = 0; at < tokens; at += kChunk) {
        chunk.resize(static_cast<std::size_t>(std::min(kChunk, tokens - at)));
        read_bytes(file, at * format_.bytes, std::as_writable_bytes(std::span(chunk)));
        require_below<T>(format_.vocabulary, chunk, files_.at(static_cast<std::size_t>(file)), at);
        for (auto found = std::find(chunk.begin(), chunk.end(), last); found != chunk.end();
             found = std::find(found + 1, chunk.end(), last))
          end_at(at + (found - chunk.begin()) + 1);
      }
    });
  }
  end_at(tokens);
}

std::vector<std::int64_t> Corpus::lengths() const {
  std::vector<std::int64_t> lengths;
  lengths.reserve(documents_.size());
  for (const Document& document : documents_) lengths.push_back(document.tokens);
  return lengths;
}

void Corpus::read_bytes(std::int32_t file, std::int64_t offset, std::span<std::byte> to) const {
  const fs::path& path = files_.at(static_cast<std::size_t>(file));
  if (open_.number != file) {
    std::uint64_t size = 0;
    open_ = {.number = file, .descriptor = open_regular_file(path, size)};
  }
  std::size_t filled = 0;
  while (filled < to.size()) {
    const std::int64_t at = offset + static_cast<std::int64_t>(filled);
    const ssize_t got = ::pread(open_.descriptor.get(), to.data() + filled, to.size() - filled, at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_system_error("read", path);
    if (got == 0)
      throw DeviceError(
          fmt::format("corpus: {} was longer when the run started and now ends at {} bytes; do not change the data of a running job",
                      path.string(), at));
    filled += static_cast<std::size_t>(got);
  }
}

void Corpus::read(std::size_t document, std::int64_t offset, std::span<std::int32_t> to) const {
  const Document& from = documents_.at(document);
  visit_id(format_.bytes, [&]<class T>(T) {
    std::vector<T> ids(to.size());
    read_bytes(from.file, (from.first + offset) * format_.bytes, std::as_writable_bytes(std::span(ids)));
    require_below<T>(format_.vocabulary, ids, path_of(from), from.first + offset);
    std::copy(ids.begin(), ids.end(), to.begin());
  });
}

Corpora open_corpora(const Config& config) {
  const DataConfig& data = config.data;
  const TokenFormat format{.bytes = data.token_bytes(), .document_end = data.document_end, .vocabulary = config.model.vocabulary};
  if (data.validation_paths.empty()) return {Corpus(data.paths, format), std::nullopt};
  Corpus validation(data.validation_paths, format, "data.validation_paths");
  return {Corpus(data.paths, format, "data.paths", &validation), std::move(validation)};
}

Entropy sampled_entropy(const Corpus& corpus, std::uint64_t seed, std::int64_t limit) {
  std::vector<std::size_t> order(corpus.documents().size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (corpus.tokens() > limit) {
    std::mt19937_64 engine = engine_for(seed, "entropy sample");
    shuffle(std::span(order), engine);
  }
  Counts counts(corpus.format());
  std::vector<std::int32_t> chunk;
  for (const std::size_t document : order) {
    if (limit == 0) break;
    const std::int64_t wanted = std::min(corpus.documents()[document].tokens, limit);
    counts.begin_document();
    for (std::int64_t offset = 0; offset < wanted; offset += kChunk) {
      chunk.resize(static_cast<std::size_t>(std::min(kChunk, wanted - offset)));
      corpus.read(document, offset, chunk);
      counts.add(chunk);
    }
    limit -= wanted;
  }
  return counts.entropy();
}

}  // namespace periplus::train
