#include "runtime/trace.h"

#include <set>
#include <thread>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace periplus {
namespace {

using Json = nlohmann::json;

std::vector<Json> events_with(const Json& trace, const std::string& phase) {
  std::vector<Json> result;
  for (const Json& event : trace.at("traceEvents")) {
    if (event.at("ph") == phase) result.push_back(event);
  }
  return result;
}

TEST(Trace, EveryRankIsAProcessAndEveryTrackAThread) {
  Tracer first(0);
  Tracer second(3);
  first.record({"attend", "compute", 1.5, 2.25, 7, 0});
  first.record({"exchange", "lane 0", 2, 3, 8, 4096});
  first.record({"merge", "compute", 4, 1, 9, 0});
  second.record({"attend", "compute", 1, 1, 7, 0});
  const Json trace = Json::parse(to_chrome_trace({&first, &second}));
  const std::vector<Json> work = events_with(trace, "X");
  ASSERT_EQ(work.size(), 4U);
  EXPECT_EQ(work[0].at("name"), "attend");
  EXPECT_DOUBLE_EQ(work[0].at("ts").get<double>(), 1.5);
  EXPECT_DOUBLE_EQ(work[0].at("dur").get<double>(), 2.25);
  EXPECT_EQ(work[0].at("args"), Json({{"step", 7}, {"bytes", 0}}));
  EXPECT_EQ(work[1].at("args"), Json({{"step", 8}, {"bytes", 4096}}));
  EXPECT_EQ(work[0].at("tid"), work[2].at("tid"));
  EXPECT_NE(work[0].at("tid"), work[1].at("tid"));
  EXPECT_EQ(work[3].at("pid"), 3);
  std::set<std::string> names;
  for (const Json& event : events_with(trace, "M")) {
    if (event.at("args").contains("name"))
      names.insert(std::to_string(event.at("pid").get<int>()) + event.at("args").at("name").get<std::string>());
  }
  EXPECT_EQ(names, (std::set<std::string>{"0rank 0", "0compute", "0lane 0", "3rank 3", "3compute"}));
}

TEST(Trace, TracksOfSeveralTracersOfOneRankStayApart) {
  Tracer forward(1);
  Tracer backward(1);
  forward.record({"a", "compute"});
  backward.record({"b", "lane 0"});
  backward.record({"c", "compute"});
  const std::vector<Json> work = events_with(Json::parse(to_chrome_trace({&forward, &backward})), "X");
  ASSERT_EQ(work.size(), 3U);
  EXPECT_NE(work[0].at("tid"), work[1].at("tid"));
  EXPECT_EQ(work[0].at("tid"), work[2].at("tid"));
}

TEST(Trace, AnyTextIsEscapedIntoValidJson) {
  const std::string name = "quote \" backslash \\ newline \n tab \t bell \a umlaut \xc3\xa4";
  Tracer tracer(0);
  tracer.record({name, "track \"1\""});
  tracer.record({"not utf-8: \xff\xfe", "compute"});
  tracer.record({std::string("nul \0 inside", 12), "compute"});
  const std::vector<Json> work = events_with(Json::parse(to_chrome_trace({&tracer})), "X");
  ASSERT_EQ(work.size(), 3U);
  EXPECT_EQ(work[0].at("name"), name);
  EXPECT_EQ(work[1].at("name").get<std::string>().substr(0, 11), "not utf-8: ");
  EXPECT_EQ(work[2].at("name"), std::string("nul \0 inside", 12));
}

TEST(Trace, OfNothingIsValidJson) {
  EXPECT_TRUE(Json::parse(to_chrome_trace({})).at("traceEvents").empty());
  const Tracer idle(2);
  EXPECT_EQ(events_with(Json::parse(to_chrome_trace({&idle})), "M").at(0).at("args").at("name"), "rank 2");
}

TEST(Trace, TimeCountsFromTheEpoch) {
  Tracer tracer(0, Tracer::Clock::now() - std::chrono::seconds(2));
  const double before = tracer.now_us();
  EXPECT_GE(before, 2e6);
  EXPECT_LT(before, 60e6);
  EXPECT_GE(tracer.now_us(), before);
  tracer.record({"a", "compute"});
  tracer.clear();
  EXPECT_TRUE(tracer.events().empty());
}

}  // namespace
}  // namespace periplus
