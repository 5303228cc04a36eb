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

namespace periplus::train {

/// The training text: one document per file, tokens are bytes. Only names and sizes are held; bytes are read when asked for.
class Corpus {
 public:
  struct Document {
    std::filesystem::path path;
    std::int64_t bytes = 0;
  };

  /// Expands files, folders (walked to the bottom) and globs to a sorted list of readable regular files without
  /// duplicates. Found by walking: symbolic links are not followed, unreadable files and all that is no regular file are
  /// skipped. Empty files are no documents.
  /// Errors: InvalidArgument naming the path, and `key` as what to correct, if it does not exist, cannot be read, matches nothing, or
  /// nothing is left.
  explicit Corpus(std::span<const std::string> paths, std::string_view key = "data.paths");

  /// Without the files that the other has. InvalidArgument if none is left.
  void leave_out(const Corpus& other);

  std::span<const Document> documents() const noexcept { return documents_; }
  std::vector<std::int64_t> lengths() const;
  std::int64_t bytes() const noexcept { return bytes_; }
  std::int64_t skipped_files() const noexcept { return skipped_files_; }  ///< Unreadable files met while walking.
  /// Over paths and sizes, not contents.
  const std::string& digest() const noexcept { return digest_; }

  /// Reads bytes [offset, offset + to.size()) of a document. DeviceError if the file no longer has them.
  void read(std::size_t document, std::int64_t offset, std::span<std::uint8_t> to) const;

 private:
  void count();

  std::vector<Document> documents_;
  std::int64_t bytes_ = 0;
  std::int64_t skipped_files_ = 0;
  std::string digest_;
};

/// The text of a run: what it trains on, and what it only measures losses on.
struct Corpora {
  Corpus training;
  std::optional<Corpus> validation;
};
/// data.validation_paths, and data.paths without its files.
Corpora open_corpora(const DataConfig& data);

/// Entropies in nats per byte. Pairs of bytes are counted inside documents only.
struct Entropy {
  double unigram = 0;
  double order1 = 0;  ///< Given the byte before.
  std::int64_t counted_bytes = 0;
};
/// Counts whole documents in an order that only the seed decides, up to `limit_bytes`; of all bytes if they fit.
Entropy sampled_entropy(const Corpus& corpus, std::uint64_t seed, std::int64_t limit_bytes = std::int64_t{64} << 20);

}  // namespace periplus::train
