#include "launch/descriptions.h"

#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "tests/runtime/scratch_folder.h"

namespace periplus::launch {
namespace {

constexpr const char* kMachine = R"([devices]
count = 16
per_node = 8
memory_bytes = 1e9
[links]
device_bytes_per_second = 100e9
node_bytes_per_second = 40e9
stream_bytes_per_second = 10e9
hop_seconds = 1e-6
)";

class Descriptions : public testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& text) {
    const std::string path = (folder_.path() / name).string();
    std::ofstream(path) << text;
    return path;
  }
  static std::string error_of(const std::string& file) {
    try {
      load_simulated_machine(file);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "no error";
  }
  test::ScratchFolder folder_;
};

TEST_F(Descriptions, EveryBuiltInFileLoads) {
  int machines = 0, models = 0;
  for (const BuiltInFile& file : built_in_files()) {
    const std::string name(file.name);
    if (file.folder == "machines") load_machine(name), load_simulated_machine(name), ++machines;
    if (file.folder == "models") load_shape(name), ++models;
    if (file.folder == "kernels") load_simulated_machine("h100x8", name);
  }
  EXPECT_GE(machines, 8);
  EXPECT_GE(models, 5);
}

TEST_F(Descriptions, KeysOfTheMachineGoBeforeItsBase) {
  const std::string text = std::string(kMachine) + "[kernels]\nbase = \"fa2-h100\"\nlaunch_seconds = 1.0\n";
  const simulate::Machine machine = load_simulated_machine(write("m.toml", text));
  const simulate::Kernels base = load_simulated_machine("h100x8", "fa2-h100").kernels;
  EXPECT_EQ(machine.kernels.launch_seconds, 1);
  EXPECT_EQ(machine.kernels.matmul_flops_per_second, base.matmul_flops_per_second);
  EXPECT_EQ(machine.links.ranks_per_node, 8);
  EXPECT_EQ(machine.links.ranks_per_nic, 2) << "four cards of 10 GB/s for eight devices";
}

TEST_F(Descriptions, ThePlannerNeedsNoKernelsAndDerivesAllToAll) {
  const planner::Machine machine = load_machine(write("m.toml", kMachine));
  ASSERT_EQ(machine.all_to_all.size(), 4u);  // 2, 4, 8, 16
  EXPECT_EQ(machine.all_to_all[2].bytes_per_second, 100e9);
  EXPECT_EQ(machine.all_to_all[3].bytes_per_second, 5e9 / 0.5);
  EXPECT_NE(error_of(write("m.toml", kMachine)).find("the simulator needs kernels"), std::string::npos);
}

TEST_F(Descriptions, ErrorsNameFileKeyAndValue) {
  const std::string text = kMachine;
  const auto expect = [&](const std::string& more, const std::string& reason) {
    const std::string error = error_of(write("m.toml", text + more));
    EXPECT_NE(error.find(reason), std::string::npos) << error;
  };
  expect("hopp_seconds = 1\n", "links.hopp_seconds: unknown key; did you mean 'links.hop_seconds'");
  expect("sharing = \"ports\"\n", "sharing 'ports' is not known");
  expect("[kernels]\nbase = \"fa2-h10\"\n", "did you mean 'fa2-h100'");
  expect("[kernels]\nbase = \"fa2-h100\"\nforward_lengths = [1, 2]\n", "kernels.forward_lengths has 2 lengths, 6 causal and 6 full rates");
  expect("[kernels]\nbase = \"fa2-h100\"\nlinear_efficiency = 2\n", "kernels.linear_efficiency is 2; it must be above 0 and at most 1");
  expect("[kernels]\nbase = \"fa2-h100\"\ntile_queries = 9223372036854775807\ntile_keys = 64\n", "kernels.tile_queries is 9.22337e+18");
  const std::string nodes = "per_node = 8";
  std::string empty_nodes = text;
  empty_nodes.replace(text.find(nodes), nodes.size(), "per_node = 0");
  EXPECT_NE(error_of(write("e.toml", empty_nodes)).find("devices.per_node is 0; it must be"), std::string::npos);
  const std::string without = error_of(write("n.toml", "[devices]\ncount = 1\n"));
  EXPECT_NE(without.find("the key devices.per_node is missing, which every machine needs"), std::string::npos) << without;
  EXPECT_THROW(load_model("llama3-8b"), InvalidArgument) << "the planner has no times of it";
  EXPECT_EQ(load_shape("gpt-7b").ffn_size(), 4 * 4096);
}

}  // namespace
}  // namespace periplus::launch
