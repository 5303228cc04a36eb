#include "launch/cores.h"

#include <fstream>
#include <tuple>

#include <gtest/gtest.h>
#include <omp.h>

#include "runtime/comm/thread_transport.h"
#include "tests/runtime/scratch_folder.h"

namespace periplus::launch {
namespace {

/// Two packages of two cores of two threads each, numbered as Linux does: the second threads of all cores come last. A GPU in each.
std::string two_packages() {
  std::string xml =
      "<?xml version=\"1.0\"?>\n<!DOCTYPE topology SYSTEM \"hwloc2.dtd\">\n<topology version=\"2.0\">\n"
      "<object type=\"Machine\" os_index=\"0\" cpuset=\"0xff\" complete_cpuset=\"0xff\" allowed_cpuset=\"0xff\" nodeset=\"0x3\" "
      "complete_nodeset=\"0x3\" allowed_nodeset=\"0x3\" gp_index=\"1\">\n";
  int next = 2;
  const auto object = [&](const std::string& type, int index, int cpus, int node, const std::string& more) {
    char sets[256];
    std::snprintf(sets, sizeof(sets), "cpuset=\"0x%x\" complete_cpuset=\"0x%x\" nodeset=\"0x%x\" complete_nodeset=\"0x%x\"", cpus, cpus,
                  1 << node, 1 << node);
    xml += "<object type=\"" + type + "\" os_index=\"" + std::to_string(index) + "\" " + sets + " gp_index=\"" + std::to_string(next++) +
           "\"" + more + ">\n";
  };
  for (int package = 0; package < 2; ++package) {
    const int cpus = package == 0 ? 0x33 : 0xcc;
    object("Package", package, cpus, package, "");
    object("NUMANode", package, cpus, package, " local_memory=\"1024\"");
    xml += "</object>\n";
    for (int core = 2 * package; core < 2 * package + 2; ++core) {
      object("Core", core, 0x11 << core, package, "");
      for (const int cpu : {core, core + 4}) {
        object("PU", cpu, 1 << cpu, package, "");
        xml += "</object>\n";
      }
      xml += "</object>\n";
    }
    const std::string bus = package == 0 ? "18" : "98";
    xml += "<object type=\"Bridge\" gp_index=\"" + std::to_string(next++) + "\" bridge_type=\"0-1\" depth=\"0\" bridge_pci=\"0000:[" + bus +
           "-" + bus + "]\">\n";
    xml += "<object type=\"PCIDev\" gp_index=\"" + std::to_string(next++) + "\" pci_busid=\"0000:" + bus +
           ":00.0\" pci_type=\"0302 [10de:2330] [10de:16c1] a1\" pci_link_speed=\"0.000000\"/>\n</object>\n";
    xml += "</object>\n";
  }
  return xml + "</object>\n</topology>\n";
}

class CoresNearGpu : public testing::Test {
 protected:
  CoresNearGpu() {
    std::ofstream(folder_ / "machine.xml") << two_packages();
    topology_.emplace((folder_ / "machine.xml").string());
    if (topology_->summary().empty()) knows_ = false;
  }
  void SetUp() override {
    if (!knows_) GTEST_SKIP() << "a build without hwloc";
  }
  Cpus place(const std::vector<RankCores>& ranks, int rank) const { return cores_near_gpu(ranks, rank, *topology_); }
  test::ScratchFolder folder_;
  std::optional<Topology> topology_;
  bool knows_ = true;
  const Cpus all_ = {0, 1, 2, 3, 4, 5, 6, 7}, first_ = {0, 1, 4, 5}, second_ = {2, 3, 6, 7};
};

TEST_F(CoresNearGpu, TheTopologyKnowsThem) {
  EXPECT_EQ(topology_->summary(), "2 packages, 2 NUMA nodes, 4 cores, 8 hardware threads");
  EXPECT_EQ(topology_->near("0000:18:00.0"), first_);
  EXPECT_EQ(topology_->near("0000:98:00.0"), second_);
  EXPECT_EQ(topology_->near("0000:19:00.0"), Cpus());
  EXPECT_EQ(topology_->near("no address"), Cpus());
  EXPECT_EQ(topology_->by_core({0, 1, 4}), (std::vector<Cpus>{{0, 4}, {1}}));
}

TEST_F(CoresNearGpu, RanksThatAreNotBoundShareThem) {
  const std::vector<RankCores> ranks = {{"a", all_, first_}, {"a", all_, first_}, {"a", all_, second_}, {"b", all_, second_}};
  EXPECT_EQ(place(ranks, 0), (Cpus{0, 4}));
  EXPECT_EQ(place(ranks, 1), (Cpus{1, 5}));
  EXPECT_EQ(place(ranks, 2), second_);
  EXPECT_EQ(place(ranks, 3), second_);
  EXPECT_EQ(place(std::vector<RankCores>(3, {"a", all_, first_}), 1), first_) << "more ranks than cores share all of them";
}

TEST_F(CoresNearGpu, WhatALauncherHasDecidedStays) {
  EXPECT_EQ(place({{"a", second_, first_}}, 0), Cpus()) << "bound elsewhere";
  EXPECT_EQ(place({{"a", {0, 4}, first_}, {"a", {1, 5}, first_}}, 0), Cpus()) << "near, and alone there";
  EXPECT_EQ(place({{"a", {0, 2, 4, 6}, first_}}, 0), (Cpus{0, 4})) << "only the near ones of those it may use";
  EXPECT_EQ(place({{"a", all_, {}}}, 0), Cpus()) << "nothing is known";
}

TEST(Cores, TextOfHardwareThreads) {
  EXPECT_EQ(to_string(Cpus()), "");
  EXPECT_EQ(to_string(Cpus{3}), "3");
  EXPECT_EQ(to_string(Cpus{0, 1, 2, 5, 7, 8}), "0-2,5,7-8");
}

TEST(Cores, NothingIsBoundForAGpuThatNobodyKnows) {
  const Topology topology;
  comm::run_thread_ranks(2, [&](const comm::Communicator& communicator) {
    const Cpus before = allowed_cpus();
    EXPECT_FALSE(before.empty());
    bind_near_gpu(communicator, "ffff:ff:1f.7", topology);
    EXPECT_EQ(allowed_cpus(), before);
  });
}

TEST(Cores, RanksThatOutnumberThemHavePartsOfOne) {
  const int cores = static_cast<int>(allowed_cpus().size());
  for (const auto& [ranks, threads, part] : {std::tuple{1, 1, 1.0}, {1, cores, 1.0}, {2, cores, 0.5}, {2 * cores, 1, 0.5}}) {
    comm::run_thread_ranks(ranks, [&, threads = threads, part = part](const comm::Communicator& communicator) {
      omp_set_num_threads(threads);
      EXPECT_DOUBLE_EQ(part_of_a_core(communicator), part) << communicator.size() << " ranks of " << threads << " threads";
    });
  }
}

TEST(Topology, OfAFileThatIsNotThereKnowsNothing) {
  const Topology topology("/no/such/file.xml");
  EXPECT_EQ(topology.summary(), "");
  EXPECT_EQ(topology.near("0000:18:00.0"), Cpus());
  EXPECT_TRUE(topology.by_core({0, 1}).empty());
}

}  // namespace
}  // namespace periplus::launch
