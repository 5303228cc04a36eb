#include "parallel/train/data/corpus.h"

#include <cmath>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/error.h"
#include "tests/parallel/train/scenario.h"

namespace periplus::train {
namespace {

namespace fs = std::filesystem;

Corpus open(const std::vector<std::string>& paths) { return Corpus(paths); }

std::vector<std::string> names_of(const Corpus& corpus) {
  std::vector<std::string> names;
  for (const auto& document : corpus.documents()) names.push_back(corpus.path_of(document).filename().string());
  return names;
}

void expect_refused(const std::vector<std::string>& paths, const std::string& part_of_message) {
  try {
    open(paths);
    FAIL() << "accepted " << paths.front();
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find(part_of_message), std::string::npos) << error.what();
  }
}

/// Permissions do not bind root: act as another user while it lives.
class AsOrdinaryUser {
 public:
  AsOrdinaryUser() : was_root_(::geteuid() == 0 && ::seteuid(65534) == 0) {}
  ~AsOrdinaryUser() { EXPECT_TRUE(!was_root_ || ::seteuid(0) == 0); }

 private:
  bool was_root_;
};

TEST(Corpus, WalksFoldersAndExpandsGlobsSortedWithoutDuplicates) {
  const TemporaryFolder folder;
  write_text(folder / "text/b.txt", "bb");
  write_text(folder / "text/deep/er/a.txt", "aaa");
  write_text(folder / "text/c.md", "c");
  write_text(folder / "text/empty.txt", "");
  fs::create_symlink(folder / "text/b.txt", folder / "text/link.txt");
  ASSERT_EQ(::mkfifo((folder / "text/pipe").c_str(), 0600), 0);
  const Corpus walked = open({(folder / "text").string()});
  EXPECT_EQ(names_of(walked), (std::vector<std::string>{"b.txt", "c.md", "a.txt"}));
  EXPECT_EQ(walked.tokens(), 6);
  EXPECT_EQ(names_of(open({(folder / "text/*.txt").string()})), (std::vector<std::string>{"b.txt", "link.txt"}));
  EXPECT_EQ(names_of(open({(folder / "text").string(), (folder / "text/c.md").string(), (folder / "text/deep").string()})),
            names_of(walked));
}

TEST(Corpus, ReadsPiecesAndDigestsPathsAndSizes) {
  const TemporaryFolder folder;
  write_text(folder / "text/a.txt", "0123456789");
  const Corpus corpus = open({(folder / "text").string()});
  std::vector<std::int32_t> bytes(4);
  corpus.read(0, 3, bytes);
  EXPECT_EQ(std::string(bytes.begin(), bytes.end()), "3456");
  EXPECT_EQ(open({(folder / "text/a.txt").string()}).digest(), corpus.digest());
  write_text(folder / "text/a.txt", "012345678");
  EXPECT_NE(open({(folder / "text").string()}).digest(), corpus.digest());
  bytes.resize(10);
  EXPECT_THROW(corpus.read(0, 0, bytes), DeviceError);  // the file became shorter
}

TEST(Corpus, ValidationFilesAreLeftOutOfTheTrainingText) {
  const TemporaryFolder folder;
  for (const char* const name : {"a.txt", "b.txt", "c.txt"}) write_text(folder / "text" / name, name);
  write_text(folder / "other/d.txt", "d");
  const std::string text = (folder / "text").string(), b = (folder / "text/b.txt").string(), other = (folder / "other").string();
  Config config;
  DataConfig& data = config.data;
  data.paths = {text};
  EXPECT_FALSE(open_corpora(config).validation);
  data.validation_paths = {b, other};
  const Corpora corpora = open_corpora(config);
  EXPECT_EQ(names_of(corpora.training), (std::vector<std::string>{"a.txt", "c.txt"}));
  EXPECT_EQ(names_of(*corpora.validation), (std::vector<std::string>{"d.txt", "b.txt"}));
  EXPECT_EQ(corpora.training.tokens(), 10);
  EXPECT_EQ(corpora.training.digest(), open({(folder / "text/[ac].txt").string()}).digest());

  const auto refusal = [&] {
    try {
      open_corpora(config);
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  data.validation_paths = {(folder / "missing").string()};
  EXPECT_NE(refusal().find("correct data.validation_paths"), std::string::npos) << refusal();
  data.validation_paths = {folder.path().string()};
  EXPECT_NE(refusal().find("all 3 files of data.paths are data.validation_paths"), std::string::npos) << refusal();
}

TEST(Corpus, RefusesWhatIsNotThereAndNamesIt) {
  const TemporaryFolder folder;
  expect_refused({(folder / "missing").string()}, "missing");
  expect_refused({(folder / "*.none").string()}, "*.none");
  write_text(folder / "text/empty.txt", "");
  expect_refused({(folder / "text").string()}, "no readable file");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_refused({(folder / "pipe").string()}, "neither a regular file nor a folder");
  expect_refused({"/dev/null"}, "/dev/null");
}

TEST(Corpus, LinksToValidationFilesAreLeftOutToo) {
  const TemporaryFolder folder;
  for (const char* const name : {"a.txt", "b.txt"}) write_text(folder / "text" / name, name);
  fs::create_symlink(folder / "text/b.txt", folder / "link");
  fs::create_directory_symlink(folder / "text", folder / "other");
  Config config;
  config.data.validation_paths = {(folder / "link").string()};
  for (const char* const name : {"text", "other", "other/../text", "*/b.txt"}) {
    config.data.paths = {(folder / "text/a.txt").string(), (folder / name).string()};
    for (const std::string& kept : names_of(open_corpora(config).training)) EXPECT_EQ(kept, "a.txt") << name;
  }
}

TEST(Corpus, ParentOfALinkedFolderIsWhereItReallyIs) {
  const TemporaryFolder folder;
  write_text(folder / "far/a.txt", "far");
  write_text(folder / "a.txt", "near one");
  fs::create_directories(folder / "far/deep");
  fs::create_directory_symlink(folder / "far/deep", folder / "link");
  EXPECT_EQ(open({(folder / "link/../a.txt").string()}).tokens(), 3);
  EXPECT_EQ(open({(folder / "link/..").string()}).tokens(), 3);
  EXPECT_EQ(open({(folder / "far/../a.txt").string()}).digest(), open({(folder / "a.txt").string()}).digest());
}

TEST(Corpus, UnreadableIsSkippedIfWalkedAndRefusedIfNamed) {
  const TemporaryFolder folder;
  fs::permissions(folder.path(), fs::perms::all);
  write_text(folder / "text/a.txt", "a");
  write_text(folder / "text/secret.txt", "s");
  write_text(folder / "locked/b.txt", "b");
  fs::permissions(folder / "text/secret.txt", fs::perms::none);
  fs::permissions(folder / "locked", fs::perms::none);
  {
    const AsOrdinaryUser ordinary;
    const Corpus corpus = open({(folder / "text").string()});
    EXPECT_EQ(names_of(corpus), std::vector<std::string>{"a.txt"});
    EXPECT_EQ(corpus.skipped_files(), 1);
    expect_refused({(folder / "text/secret.txt").string()}, "secret.txt");
    expect_refused({(folder / "locked").string()}, "locked");
    expect_refused({folder.path().string()}, "locked");
  }
  fs::permissions(folder / "locked", fs::perms::owner_all);
}

TEST(Corpus, AFileThatCannotBeLookedAtIsRefusedAndNotLeftOut) {
  const TemporaryFolder folder;
  write_text(folder / "text/a", "aa");
  // A folder whose path is as long as paths may be: it can be listed, and what is in it has no path.
  fs::path deep = folder / "text";
  while (deep.native().size() < 3900) deep /= std::string(100, 'd');
  deep /= std::string(4090 - deep.native().size(), 'e');
  fs::create_directories(deep);
  const int descriptor = ::open(deep.c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_GE(descriptor, 0);
  const std::string name = "unreachable";
  ::close(::openat(descriptor, name.c_str(), O_CREAT | O_WRONLY, 0600));
  expect_refused({(folder / "text").string()}, "unreachable: File name too long");
  EXPECT_EQ(::unlinkat(descriptor, name.c_str(), 0), 0);
  ::close(descriptor);
}

/// Ids as numpy's tofile writes them.
template <class T>
void write_ids(const fs::path& path, const std::vector<T>& ids) {
  write_text(path, std::string(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(T)));
}

TEST(Corpus, HoldsTokenIdsAndFindsWhereDocumentsEnd) {
  const TemporaryFolder folder;
  write_ids<std::uint16_t>(folder / "a.bin", {7, 300, 9, 9, 40000, 1, 9, 2});
  write_ids<std::uint16_t>(folder / "b.bin", {5, 9});
  const std::vector<std::string> paths = {(folder / "*.bin").string()};
  const TokenFormat format{.bytes = 2, .document_end = 9, .vocabulary = 40001};
  const Corpus corpus(paths, format);
  EXPECT_EQ(corpus.lengths(), (std::vector<std::int64_t>{3, 1, 3, 1, 2}));
  EXPECT_EQ(corpus.tokens(), 10);
  EXPECT_EQ(names_of(corpus), (std::vector<std::string>{"a.bin", "a.bin", "a.bin", "a.bin", "b.bin"}));
  std::vector<std::int32_t> tokens(2);
  corpus.read(2, 0, tokens);
  EXPECT_EQ(tokens, (std::vector<std::int32_t>{40000, 1}));
  corpus.read(4, 0, tokens);
  EXPECT_EQ(tokens, (std::vector<std::int32_t>{5, 9}));

  TokenFormat whole = format;
  whole.document_end = -1;
  EXPECT_EQ(Corpus(paths, whole).lengths(), (std::vector<std::int64_t>{8, 2}));
  // The same sizes with other borders are other data.
  write_ids<std::uint16_t>(folder / "a.bin", {7, 300, 8, 9, 40000, 1, 9, 2});
  EXPECT_NE(Corpus(paths, format).digest(), corpus.digest());
  EXPECT_EQ(Corpus(paths, whole).digest(), Corpus(std::vector{(folder / "a.bin").string(), (folder / "b.bin").string()}, whole).digest());

  // More than is read at a time.
  std::vector<std::uint32_t> many(3'000'000, 1);
  const std::vector<std::size_t> ends = {0, (1 << 20) - 1, 1 << 20, (1 << 21) + 5};
  for (const std::size_t end : ends) many[end] = 1u << 20;
  write_ids(folder / "many", many);
  const Corpus long_one(std::vector{(folder / "many").string()}, {.bytes = 4, .document_end = 1 << 20, .vocabulary = (1 << 20) + 1});
  EXPECT_EQ(long_one.lengths(), (std::vector<std::int64_t>{1, (1 << 20) - 1, 1, (1 << 20) + 5, 3'000'000 - (1 << 21) - 6}));
}

TEST(Corpus, RefusesIdsThatAreNone) {
  const TemporaryFolder folder;
  const std::vector<std::string> paths = {(folder / "a.bin").string()};
  const auto refusal = [&](const TokenFormat& format) {
    try {
      const Corpus corpus(paths, format);
      std::vector<std::int32_t> tokens(2);
      corpus.read(0, 1, tokens);
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  write_ids<std::uint32_t>(folder / "a.bin", {1, 2, 0x80000003u});
  EXPECT_NE(refusal({.bytes = 4, .vocabulary = 1 << 24}).find("token 2 is 2147483651, and model.vocabulary is 16777216"),
            std::string::npos);
  write_ids<std::uint16_t>(folder / "a.bin", {1, 9, 300, 9});
  try {
    const Corpus corpus(paths, {.bytes = 2, .document_end = 9, .vocabulary = 300});
    FAIL() << "accepted an id that it has read";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("token 2 is 300, and model.vocabulary is 300"), std::string::npos) << error.what();
  }
  write_ids<std::uint8_t>(folder / "a.bin", {1, 2, 3});
  EXPECT_NE(refusal({.bytes = 2, .vocabulary = 65536}).find("has 3 bytes, no whole number of tokens of 2"), std::string::npos);
}

TEST(Entropy, OfTokenIdsHasNoPairs) {
  const TemporaryFolder folder;
  write_ids<std::uint16_t>(folder / "a.bin", {1, 1000, 1, 1000});
  const Entropy entropy = sampled_entropy(Corpus(std::vector{(folder / "a.bin").string()}, {.bytes = 2, .vocabulary = 1001}), 1);
  EXPECT_NEAR(entropy.unigram, std::log(2), 1e-12);
  EXPECT_FALSE(entropy.order1);
}

TEST(Entropy, MatchesHandMadeTexts) {
  const TemporaryFolder folder;
  std::string alternating;
  for (int i = 0; i < 500; ++i) alternating += "ab";
  write_text(folder / "text/a.txt", alternating);
  Entropy entropy = sampled_entropy(open({(folder / "text").string()}), 1);
  EXPECT_NEAR(entropy.unigram, std::log(2), 1e-12);
  EXPECT_NEAR(entropy.order1.value(), 0, 1e-12);  // the byte before decides
  EXPECT_EQ(entropy.counted_tokens, 1000);

  // aabb repeated: each byte is followed by itself or the other one equally often, but for the last.
  std::string pairs;
  for (int i = 0; i < 500; ++i) pairs += "aabb";
  write_text(folder / "text/a.txt", pairs);
  entropy = sampled_entropy(open({(folder / "text").string()}), 1);
  EXPECT_NEAR(entropy.order1.value(), std::log(2), 1e-3);
}

TEST(Entropy, SampleIsCappedAndSeeded) {
  const TemporaryFolder folder;
  for (int i = 0; i < 20; ++i) write_text(folder / ("text/" + std::to_string(i)), seeded_text(1000, static_cast<std::uint64_t>(i)));
  const Corpus corpus = open({(folder / "text").string()});
  const Entropy first = sampled_entropy(corpus, 1, 2500), same = sampled_entropy(corpus, 1, 2500), other = sampled_entropy(corpus, 2, 2500);
  EXPECT_EQ(first.counted_tokens, 2500);
  EXPECT_EQ(first.unigram, same.unigram);
  EXPECT_NE(first.unigram, other.unigram);
}

}  // namespace
}  // namespace periplus::train
