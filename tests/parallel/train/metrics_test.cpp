#include "parallel/train/metrics.h"

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "runtime/file.h"
#include "tests/runtime/scratch_folder.h"

namespace periplus::train {
namespace {

class Metrics : public testing::Test {
 protected:
  void write(const std::string& text) const { write_file_atomically(folder_.path() / "metrics.jsonl", text); }
  std::vector<StepMetrics> read() const { return read_metrics(folder_.path()); }
  std::string refusal(const std::string& line) const {
    write(to_json_line({.step = 1}) + "\n" + line + "\n");
    try {
      read();
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "";
  }
  test::ScratchFolder folder_;
};

TEST_F(Metrics, ReadBackAsWritten) {
  const StepMetrics step{.step = 7, .loss = 0.1, .tokens = 64, .peak_memory_bytes = 1 << 20, .ranks = 3, .predicted_seconds = 0.3};
  write(to_json_line(step) + "\n");
  ASSERT_EQ(read().size(), 1u);
  EXPECT_EQ(to_json_line(read()[0]), to_json_line(step));
  EXPECT_FALSE(read()[0].validation_loss);
  write(to_json_line({.step = 8, .validation_loss = 0.7}) + "\n");
  EXPECT_EQ(read()[0].validation_loss, 0.7);
}

TEST_F(Metrics, LeaveOutALineThatACrashCutShort) {
  const std::string line = to_json_line({.step = 1});
  write(line + "\n" + line.substr(0, line.size() / 2));
  EXPECT_EQ(read().size(), 1u);
}

TEST_F(Metrics, SayWhyALineCannotBeWritten) {
  std::filesystem::create_directory(folder_.path() / "run");
  MetricsFile file(folder_.path() / "run", 0);
  file.append({.step = 1});
  std::filesystem::remove_all(folder_.path() / "run");
  try {
    file.append({.step = 2});
    FAIL() << "wrote into a folder that is gone";
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("metrics.jsonl: No such file or directory"), std::string::npos) << error.what();
  }
}

TEST_F(Metrics, RefuseWhatTrainingDoesNotWrite) {
  EXPECT_EQ(refusal(R"({"step": 2, "loss": 5.1})"), "");
  EXPECT_NE(refusal(R"({"step": 2, "loss": "five"})").find("metrics.jsonl:2: loss is \"five\""), std::string::npos);
  for (const char* const line :
       {R"({"step": 0})", R"({"step": -9223372036854775808})", R"({"step": 18446744073709551615})", R"({"step": 1.5})", R"({"step": null})",
        R"({"step": 2, "ranks": 0})", R"({"step": 2, "ranks": 4294967297})", R"({"step": 2, "step_seconds": -1})",
        R"({"step": 2, "peak_memory_bytes": 1e300})", R"({"step": 2, "validation_loss": null})"}) {
    EXPECT_NE(refusal(line), "") << line;
  }
  std::filesystem::remove(folder_.path() / "metrics.jsonl");
  EXPECT_THROW(read(), InvalidArgument);
}

}  // namespace
}  // namespace periplus::train
