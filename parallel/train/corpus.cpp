// Finds the files of the training text and reads pieces of them.
#include "parallel/train/corpus.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <iterator>
#include <numeric>

#include <fcntl.h>
#include <fmt/format.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

#include "parallel/train/random.h"
#include "runtime/error.h"
#include "runtime/file.h"
#include "runtime/file_descriptor.h"

namespace periplus::train {
namespace {

namespace fs = std::filesystem;

/// Of the effective user, who will open the file (access() asks about the real one).
bool readable(const fs::path& path) { return ::faccessat(AT_FDCWD, path.c_str(), R_OK, AT_EACCESS) == 0; }

class FileCollector {
 public:
  explicit FileCollector(std::string_view key) : key_(key) {}

  InvalidArgument cannot_use(const fs::path& path, std::string_view reason) const {
    return InvalidArgument(fmt::format("corpus: {}: {}; correct {}", path.string(), reason, key_));
  }

  void add(const std::string& entry) {
    std::error_code error;
    const fs::file_status status = fs::status(entry, error);
    if (fs::exists(status)) {
      add_named(entry, status);
    } else if (status.type() != fs::file_type::not_found) {
      throw cannot_use(entry, error.message());
    } else if (entry.find_first_of("*?[") != std::string::npos) {
      add_glob(entry);
    } else {
      throw cannot_use(entry, "there is no such file or folder");
    }
  }

  std::vector<fs::path> take_sorted() {
    std::sort(files_.begin(), files_.end());
    files_.erase(std::unique(files_.begin(), files_.end()), files_.end());
    return std::move(files_);
  }
  std::int64_t skipped() const { return skipped_; }

 private:
  void add_named(const fs::path& path, const fs::file_status& status) {
    if (fs::is_directory(status)) {
      walk(path);
    } else if (!fs::is_regular_file(status)) {
      throw cannot_use(path, "this is neither a regular file nor a folder");
    } else if (!readable(path)) {
      throw cannot_use(path, std::strerror(errno));
    } else {
      files_.push_back(fs::absolute(path).lexically_normal());
    }
  }

  void walk(const fs::path& folder) {
    std::error_code error;
    fs::directory_iterator entries(folder, error);
    if (error) throw cannot_use(folder, "the folder cannot be read: " + error.message());
    for (; entries != fs::directory_iterator(); entries.increment(error)) {
      const fs::file_status status = entries->symlink_status(error);
      if (fs::is_directory(status)) {
        walk(entries->path());
      } else if (fs::is_regular_file(status)) {
        add_walked(entries->path());
      }
    }
    if (error) throw cannot_use(folder, "the folder cannot be read: " + error.message());
  }

  void add_walked(const fs::path& file) {
    if (readable(file)) {
      files_.push_back(fs::absolute(file).lexically_normal());
    } else {
      ++skipped_;
    }
  }

  void add_glob(const std::string& pattern) {
    glob_t found{};
    const int status = ::glob(pattern.c_str(), GLOB_ERR, nullptr, &found);
    const std::vector<std::string> matches(found.gl_pathv, found.gl_pathv + found.gl_pathc);
    ::globfree(&found);
    if (status == GLOB_NOMATCH) throw cannot_use(pattern, "nothing matches this pattern");
    if (status != 0) throw cannot_use(pattern, "a folder of this pattern cannot be read");
    for (const std::string& match : matches) {
      const fs::file_status match_status = fs::status(match);
      // A pattern such as /data/* also meets sockets and devices; nobody asked for those by name.
      if (fs::is_directory(match_status) || fs::is_regular_file(match_status)) add_named(match, match_status);
    }
  }

  std::string key_;
  std::vector<fs::path> files_;
  std::int64_t skipped_ = 0;
};

double entropy_of(std::span<const std::int64_t> counts, double total) {
  double sum = 0;
  for (const std::int64_t count : counts) {
    if (count > 0) sum -= static_cast<double>(count) / total * std::log(static_cast<double>(count) / total);
  }
  return sum;
}

}  // namespace

Corpus::Corpus(std::span<const std::string> paths, std::string_view key) {
  FileCollector collector(key);
  for (const std::string& path : paths) collector.add(path);
  skipped_files_ = collector.skipped();
  for (fs::path& path : collector.take_sorted()) {
    std::error_code error;
    const auto bytes = static_cast<std::int64_t>(fs::file_size(path, error));
    if (error) throw collector.cannot_use(path, error.message());
    if (bytes > 0) documents_.push_back({std::move(path), bytes});
  }
  if (documents_.empty()) {
    throw InvalidArgument(fmt::format("corpus: {} ({} given, first {}) hold no readable file that is not empty ({} unreadable skipped)",
                                      key, paths.size(), paths.empty() ? "none" : paths.front(), skipped_files_));
  }
  count();
}

void Corpus::count() {
  std::string listing;
  bytes_ = 0;
  for (const Document& document : documents_) {
    listing += fmt::format("{}\n{}\n", document.path.string(), document.bytes);
    bytes_ += document.bytes;
  }
  digest_ = digest_of_bytes(listing);
}

void Corpus::leave_out(const Corpus& other) {
  const auto by_path = [](const Document& a, const Document& b) { return a.path < b.path; };
  std::vector<Document> kept;
  std::set_difference(documents_.begin(), documents_.end(), other.documents_.begin(), other.documents_.end(), std::back_inserter(kept),
                      by_path);
  if (kept.empty()) {
    throw InvalidArgument(
        fmt::format("corpus: all {} files of data.paths are data.validation_paths too, which are not trained on; keep some out of those",
                    documents_.size()));
  }
  documents_ = std::move(kept);
  count();
}

Corpora open_corpora(const DataConfig& data) {
  Corpora corpora{Corpus(data.paths), std::nullopt};
  if (!data.validation_paths.empty()) {
    corpora.validation.emplace(data.validation_paths, "data.validation_paths");
    corpora.training.leave_out(*corpora.validation);
  }
  return corpora;
}

std::vector<std::int64_t> Corpus::lengths() const {
  std::vector<std::int64_t> lengths;
  lengths.reserve(documents_.size());
  for (const Document& document : documents_) lengths.push_back(document.bytes);
  return lengths;
}

void Corpus::read(std::size_t document, std::int64_t offset, std::span<std::uint8_t> to) const {
  const fs::path& path = documents_.at(document).path;
  std::uint64_t size = 0;
  const FileDescriptor file = open_regular_file(path, size);
  std::size_t filled = 0;
  while (filled < to.size()) {
    const ssize_t got = ::pread(file.get(), to.data() + filled, to.size() - filled, offset + static_cast<std::int64_t>(filled));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_system_error("read", path);
    if (got == 0) {
      throw DeviceError(
          fmt::format("corpus: {} had {} bytes when the run started and now ends at {}; do not change the data of a running job",
                      path.string(), documents_[document].bytes, offset + static_cast<std::int64_t>(filled)));
    }
    filled += static_cast<std::size_t>(got);
  }
}

Entropy sampled_entropy(const Corpus& corpus, std::uint64_t seed, std::int64_t limit_bytes) {
  std::vector<std::size_t> order(corpus.documents().size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (corpus.bytes() > limit_bytes) {
    std::mt19937_64 engine = engine_for(seed, "entropy sample");
    shuffle(std::span(order), engine);
  }
  constexpr std::size_t kValues = 256;
  constexpr std::int64_t kChunk = std::int64_t{1} << 20;
  std::vector<std::int64_t> single(kValues), before(kValues), pairs(kValues * kValues);
  Entropy result;
  std::vector<std::uint8_t> chunk;
  for (const std::size_t document : order) {
    const std::int64_t wanted = std::min(corpus.documents()[document].bytes, limit_bytes - result.counted_bytes);
    int previous = -1;
    for (std::int64_t offset = 0; offset < wanted; offset += kChunk) {
      chunk.resize(static_cast<std::size_t>(std::min(kChunk, wanted - offset)));
      corpus.read(document, offset, chunk);
      for (const std::uint8_t byte : chunk) {
        ++single[byte];
        if (previous >= 0) {
          ++before[static_cast<std::size_t>(previous)];
          ++pairs[static_cast<std::size_t>(previous) * kValues + byte];
        }
        previous = byte;
      }
    }
    result.counted_bytes += wanted;
  }
  const auto total_pairs = static_cast<double>(std::accumulate(before.begin(), before.end(), std::int64_t{0}));
  result.unigram = entropy_of(single, static_cast<double>(result.counted_bytes));
  if (total_pairs > 0) result.order1 = entropy_of(pairs, total_pairs) - entropy_of(before, total_pairs);
  return result;
}

}  // namespace periplus::train
