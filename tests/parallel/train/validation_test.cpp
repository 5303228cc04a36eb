#include "parallel/train/validation.h"

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
