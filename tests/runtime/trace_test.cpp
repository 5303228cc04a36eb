#include "runtime/trace.h"

#include <map>
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

TEST(Trace, ThreadsOfARankAreInTheOrderOfTheirNames) {
  Tracer tracer(0);
  tracer.record({"a", "lane 1"});
  tracer.record({"b", "compute"});
  tracer.record({"c", "lane 0"});
  std::map<int, std::string> threads;
  for (const Json& event : events_with(Json::parse(to_chrome_trace({&tracer})), "M")) {
    if (event.at("name") == "thread_name") threads[event.at("tid")] = event.at("args").at("name");
  }
  EXPECT_EQ(threads, (std::map<int, std::string>{{0, "compute"}, {1, "lane 0"}, {2, "lane 1"}}));
}

TEST(Trace, ArrowsPairTheKthSendWithTheKthReceiveOfATrack) {
  Tracer first(0), second(1);
  // Two messages on lane 0, one on lane 1 that starts between them, and one whose end lies outside of the trace.
  first.record({"send a", "lane 0", 1, 4, 1, 8, {{1, true}}});
  first.record({"send b", "lane 1", 2, 4, 2, 8, {{1, true}}});
  first.record({"send c, receive", "lane 0", 5, 4, 3, 8, {{1, true}, {1, false}}});
  second.record({"receive a", "lane 0", 3, 2, 1, 8, {{0, false}}});
  second.record({"receive c", "lane 0", 6, 3, 3, 8, {{0, false}}});
  second.record({"receive b", "lane 1", 4, 3, 2, 8, {{0, false}}});
  const Json trace = Json::parse(to_chrome_trace({&first, &second}));
  const std::vector<Json> starts = events_with(trace, "s"), ends = events_with(trace, "f");
  ASSERT_EQ(starts.size(), 3U);
  ASSERT_EQ(ends.size(), 3U);
  std::set<std::pair<double, double>> arrows;  // begins of the two events
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(starts[i].at("id"), ends[i].at("id"));
    EXPECT_EQ(starts[i].at("pid"), 0);
    EXPECT_EQ(ends[i].at("pid"), 1);
    const auto begin_of_event_at = [&](const Json& end) {
      for (const Json& event : events_with(trace, "X")) {
        const double begin = event.at("ts"), at = end.at("ts");
        if (event.at("pid") == end.at("pid") && event.at("tid") == end.at("tid") && begin <= at &&
            at < begin + event.at("dur").get<double>())
          return begin;
      }
      ADD_FAILURE() << "lies in no event: " << end;
      return -1.0;
    };
    arrows.emplace(begin_of_event_at(starts[i]), begin_of_event_at(ends[i]));
  }
  EXPECT_EQ(arrows, (std::set<std::pair<double, double>>{{1, 3}, {2, 4}, {5, 6}}));
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
  tracer.restart();
  EXPECT_TRUE(tracer.events().empty());
  EXPECT_LT(tracer.now_us(), 1e6);
}

}  // namespace
}  // namespace periplus
