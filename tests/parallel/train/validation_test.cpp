#include "parallel/train/validation.h"

#include <set>

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "tests/parallel/train/scenario.h"

namespace periplus::train {
namespace {

Corpus text_of(const TemporaryFolder& folder, const TokenFormat& format = {}) {
  return Corpus(std::vector{(folder / "text").string()}, format, "data.validation_paths");
}

std::string refusal(const Config& config, const Corpus& corpus) {
  try {
    const Validation validation(config, corpus);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "";
}

TEST(Validation, SeedPicksAmongRowsOfAllSizes) {
  const TemporaryFolder folder;
  for (int i = 0; i < 32; ++i) write_text(folder / "text" / std::to_string(i), seeded_text(i % 2 == 0 ? 16 : 64, 1));
  const Corpus corpus = text_of(folder);
  Config config = tiny_config(folder.path());
  config.data.packing = "decompose";
  config.data.validation_rows = 1;
  std::set<std::int64_t> sizes;
  for (config.run.seed = 1; config.run.seed <= 20; ++config.run.seed)
    sizes.insert(Validation(config, corpus).plan(0, 1).micro_batches.front().front().pieces.front().length);
  EXPECT_EQ(sizes, (std::set<std::int64_t>{16, 64}));

  config.data.validation_rows = 0;
  const Validation all(config, corpus);
  EXPECT_EQ(all.rows(), 16 + 4);
  EXPECT_EQ(all.labels(), 16 * 15 + 16 * 63);
}

TEST(Validation, TextThatCannotBeMeasuredIsRefusedBeforeTraining) {
  const TemporaryFolder folder;
  Config config = tiny_config(folder.path());
  write_text(folder / "text/a", std::string("\1\0\2\0\7\0\3\0", 8));
  EXPECT_EQ(refusal(config, text_of(folder, {.bytes = 2, .vocabulary = 8})), "");
  EXPECT_NE(refusal(config, text_of(folder, {.bytes = 2, .vocabulary = 7})).find("token 2 is 7"), std::string::npos);
  config.data.packing = "decompose";
  const std::string too_short = refusal(config, text_of(folder));
  EXPECT_NE(too_short.find("data.validation_paths"), std::string::npos) << too_short;
  EXPECT_NE(too_short.find("the longest of 1 documents has 8"), std::string::npos) << too_short;
}

}  // namespace
}  // namespace periplus::train
