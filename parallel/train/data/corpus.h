#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/train/config.h"
#include "runtime/file_descriptor.h"

namespace periplus::train {

/// What files hold: token ids one after the other, the lowest byte of each first, as numpy's tofile writes them.
struct TokenFormat {
  int bytes = 1;                   ///< Of an id: 1, 2 or 4.
  std::int64_t document_end = -1;  ///< The id that is the last token of a document; -1: a file is a document.
  std::int64_t vocabulary = 256;   ///< All ids are below it.
};

/// Text to train on, or to validate with. Only names and lengths are held; tokens are read when asked for, by one thread at a time: the
/// file read last stays open for the next document in it.
class Corpus {
 public:
  struct Document {
    std::int32_t file = 0;
    std::int64_t first = 0;  ///< Tokens of the file before it.
    std::int64_t tokens = 0;
  };

  /// Documents of the files that find_files() finds, without those of another corpus, by whatever path. Empty files hold none. With
  /// document_end every file is read once. Errors: as find_files(); InvalidArgument if nothing is left, for a file that ends inside an id,
  /// and for an id, if read, that is not below the vocabulary.
  explicit Corpus(std::span<const std::string> paths, const TokenFormat& format = {}, std::string_view key = "data.paths",
                  const Corpus* without = nullptr);

  std::span<const Document> documents() const noexcept { return documents_; }
  const std::filesystem::path& path_of(const Document& document) const { return files_.at(static_cast<std::size_t>(document.file)); }
  const TokenFormat& format() const noexcept { return format_; }
  std::vector<std::int64_t> lengths() const;
  std::int64_t tokens() const noexcept { return tokens_; }
  std::int64_t skipped_files() const noexcept { return skipped_files_; }  ///< Unreadable files met while walking.
  /// Over paths, sizes and, with document_end, lengths of documents; not over contents.
  const std::string& digest() const noexcept { return digest_; }

  /// Reads tokens [offset, offset + to.size()) of a document. DeviceError if the file no longer has them; InvalidArgument for an id that
  /// is not below the vocabulary.
  void read(std::size_t document, std::int64_t offset, std::span<std::int32_t> to) const;

 private:
  void add_documents(std::int32_t file, std::int64_t tokens);
  void read_bytes(std::int32_t file, std::int64_t offset, std::span<std::byte> to) const;

  struct OpenFile {
    std::int32_t number = -1;
    FileDescriptor descriptor{};
  };

  TokenFormat format_;
  mutable OpenFile open_;
  std::vector<std::filesystem::path> files_;
  std::vector<Document> documents_;
  std::int64_t tokens_ = 0;
  std::int64_t skipped_files_ = 0;
  std::string digest_;
};

/// The text of a run: what it trains on, and what it only measures losses on.
struct Corpora {
  Corpus training;
  std::optional<Corpus> validation;
};
/// data.validation_paths, and data.paths without its files.
Corpora open_corpora(const Config& config);

/// Entropies in nats per token. Pairs of tokens are counted inside documents only.
struct Entropy {
  double unigram = 0;
  std::optional<double> order1 = {};  ///< Given the token before; of bytes only, since larger vocabularies have too many pairs to count.
  std::int64_t counted_tokens = 0;
};
/// Counts whole documents in an order that only the seed decides, up to `limit` tokens; all tokens if they fit.
Entropy sampled_entropy(const Corpus& corpus, std::uint64_t seed, std::int64_t limit = std::int64_t{64} << 20);

}  // namespace periplus::train
