#include "launch/exam/exam.h"

#include <algorithm>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "launch/descriptions.h"
#include "launch/exam/flexsp_baselines.h"

namespace periplus::launch::exam {
namespace {

TEST(Exam, EveryRowIsThereOnce) {
  std::set<std::string> ids;
  for (const Row& row : rows()) ids.insert(row.id);
  EXPECT_EQ(ids.size(), 32u);
  EXPECT_EQ(rows().size(), 32u);
  EXPECT_STREQ(rows().front().id, "S1");
  EXPECT_STREQ(rows().back().id, "S32");
}

TEST(Exam, TolerancesHoldOnTheirBorder) {
  EXPECT_TRUE(inside({"", 100, 110}, {Tolerance::relative, 0.1}));
  EXPECT_FALSE(inside({"", 100, 110.01}, {Tolerance::relative, 0.1}));
  EXPECT_TRUE(inside({"", -25, -26}, {Tolerance::absolute, 1}));
  EXPECT_FALSE(inside({"", -25, -26.01}, {Tolerance::absolute, 1}));
  EXPECT_TRUE(inside({"", 2.3, 0.1}, {Tolerance::at_most, 2.3}));
  EXPECT_FALSE(inside({"", 2.3, 2.31}, {Tolerance::at_most, 2.3}));
}

TEST(Exam, AMissingFigureOrOrderIsNoPass) {
  Result result;
  result.tolerance = {Tolerance::relative, 1};
  EXPECT_FALSE(passed(result)) << "no figures";
  result.figures = {{"", 1, 1}};
  EXPECT_TRUE(passed(result));
  result.wrong = "order";
  EXPECT_FALSE(passed(result));
  result.wrong.clear(), result.not_simulated = "unknown";
  EXPECT_FALSE(passed(result));
}

/// Each sequence once, no group above what it holds, none empty where there are sequences enough.
TEST(FlexSpBaselines, RowsHoldEachSequenceOnce) {
  const planner::CostModel cost(load_model("gpt-7b"), load_machine("a100x64"), {.devices = 64, .ulysses_only = true});
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < 300; ++i) lengths.push_back(128 * (1 + i * i % 97));
  lengths.push_back(90'112);
  const planner::Batch batch(cost, lengths);
  for (std::size_t kind = 0; kind < cost.kinds().size(); ++kind) {
    const planner::Kind& about = cost.kinds()[kind];
    const auto found = packed_as_released(batch, static_cast<int>(kind));
    EXPECT_EQ(found.has_value(), about.capacity >= 90'112) << about.degree;
    if (!found) continue;
    std::vector<int> members;
    for (const planner::MicroBatch& micro_batch : *found) {
      EXPECT_EQ(micro_batch.groups.size(), 64u / static_cast<std::size_t>(about.degree)) << about.degree;
      for (const planner::Group& group : micro_batch.groups) {
        EXPECT_LE(group.tokens, about.capacity);
        EXPECT_LE(group.seconds, micro_batch.seconds);
        members.insert(members.end(), group.members.begin(), group.members.end());
      }
    }
    std::ranges::sort(members);
    ASSERT_EQ(members.size(), lengths.size());
    for (std::size_t k = 0; k < members.size(); ++k) EXPECT_EQ(members[k], static_cast<int>(k));
  }
}

/// Rows that are quick. A change of the simulator that loses one must be meant.
TEST(Exam, QuickRowsPass) {
  for (const Row& row : rows()) {
    if (std::set<std::string>{"S7", "S8", "S9", "S10", "S12", "S14", "S15", "S16", "S19", "S20", "S24", "S25", "S31", "S32"}.contains(
            row.id)) {
      EXPECT_TRUE(passed(row.run())) << row.id;
    }
  }
}

TEST(Exam, FittedRowsSaySo) {
  for (const Row& row : rows()) {
    if (row.id == std::string("S29")) {
      EXPECT_TRUE(row.run().fitted) << row.id;
    }
  }
}

}  // namespace
}  // namespace periplus::launch::exam
