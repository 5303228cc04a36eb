#include "parallel/train/corpus.h"

#include <cmath>

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "runtime/error.h"
#include "tests/parallel/train/scenario.h"

namespace periplus::train {
namespace {

namespace fs = std::filesystem;

Corpus open(const std::vector<std::string>& paths) { return Corpus(paths); }

std::vector<std::string> names_of(const Corpus& corpus) {
  std::vector<std::string> names;
  for (const auto& document : corpus.documents()) names.push_back(document.path.filename().string());
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
  EXPECT_EQ(walked.bytes(), 6);
  EXPECT_EQ(names_of(open({(folder / "text/*.txt").string()})), (std::vector<std::string>{"b.txt", "link.txt"}));
  EXPECT_EQ(names_of(open({(folder / "text").string(), (folder / "text/c.md").string(), (folder / "text/deep").string()})),
            names_of(walked));
}

TEST(Corpus, ReadsPiecesAndDigestsPathsAndSizes) {
  const TemporaryFolder folder;
  write_text(folder / "text/a.txt", "0123456789");
  const Corpus corpus = open({(folder / "text").string()});
  std::vector<std::uint8_t> bytes(4);
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
  DataConfig data{.paths = {text}};
  EXPECT_FALSE(open_corpora(data).validation);
  data.validation_paths = {b, other};
  const Corpora corpora = open_corpora(data);
  EXPECT_EQ(names_of(corpora.training), (std::vector<std::string>{"a.txt", "c.txt"}));
  EXPECT_EQ(names_of(*corpora.validation), (std::vector<std::string>{"d.txt", "b.txt"}));
  EXPECT_EQ(corpora.training.bytes(), 10);
  EXPECT_EQ(corpora.training.digest(), open({(folder / "text/[ac].txt").string()}).digest());

  const auto refusal = [&] {
    try {
      open_corpora(data);
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

TEST(Entropy, MatchesHandMadeTexts) {
  const TemporaryFolder folder;
  std::string alternating;
  for (int i = 0; i < 500; ++i) alternating += "ab";
  write_text(folder / "text/a.txt", alternating);
  Entropy entropy = sampled_entropy(open({(folder / "text").string()}), 1);
  EXPECT_NEAR(entropy.unigram, std::log(2), 1e-12);
  EXPECT_NEAR(entropy.order1, 0, 1e-12);  // the byte before decides
  EXPECT_EQ(entropy.counted_bytes, 1000);

  // aabb repeated: each byte is followed by itself or the other one equally often, but for the last.
  std::string pairs;
  for (int i = 0; i < 500; ++i) pairs += "aabb";
  write_text(folder / "text/a.txt", pairs);
  entropy = sampled_entropy(open({(folder / "text").string()}), 1);
  EXPECT_NEAR(entropy.order1, std::log(2), 1e-3);
}

TEST(Entropy, SampleIsCappedAndSeeded) {
  const TemporaryFolder folder;
  for (int i = 0; i < 20; ++i) write_text(folder / ("text/" + std::to_string(i)), seeded_text(1000, static_cast<std::uint64_t>(i)));
  const Corpus corpus = open({(folder / "text").string()});
  const Entropy first = sampled_entropy(corpus, 1, 2500), same = sampled_entropy(corpus, 1, 2500), other = sampled_entropy(corpus, 2, 2500);
  EXPECT_EQ(first.counted_bytes, 2500);
  EXPECT_EQ(first.unigram, same.unigram);
  EXPECT_NE(first.unigram, other.unigram);
}

}  // namespace
}  // namespace periplus::train
