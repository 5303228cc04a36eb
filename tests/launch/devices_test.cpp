#include "launch/devices.h"

#include <gtest/gtest.h>

#include "launch/print_launch.h"
#include "runtime/comm/nccl_transport.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

template <class Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "no error";
}

TEST(ParseDevice, TakesWhatTheHelpPageSays) {
  EXPECT_EQ(parse_device("cpu").kind, DeviceKind::cpu);
  EXPECT_EQ(parse_device("cuda").kind, DeviceKind::cuda);
  EXPECT_FALSE(parse_device("cuda").index.has_value());
  EXPECT_EQ(parse_device("cuda:12").index, 12);
  for (const char* text : {"", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:+1", "cuda:1x", "cuda:99999999999", "cuda1", "cpu:0"}) {
    EXPECT_NE(refusal([&] { parse_device(text); }).find(std::string("no device '") + text + "'; use cpu, cuda, or cuda:N"),
              std::string::npos)
        << text;
  }
}

RankGpus on(const std::string& host, const std::vector<int>& cards) {
  RankGpus gpus{host, {}};
  for (const int card : cards) gpus.cards.push_back(host + " card " + std::to_string(card));
  return gpus;
}

using Indices = std::vector<int>;

TEST(DealGpus, RanksThatSeeAllOfAHostTakeOneAfterTheOther) {
  const std::vector<RankGpus> one_host(4, on("a", {0, 1, 2, 3}));
  EXPECT_EQ(deal_gpus(one_host), (Indices{0, 1, 2, 3}));
  const std::vector<RankGpus> blocks = {on("a", {0, 1}), on("a", {0, 1}), on("b", {0, 1}), on("b", {0, 1})};
  EXPECT_EQ(deal_gpus(blocks), (Indices{0, 1, 0, 1}));
  const std::vector<RankGpus> dealt = {on("a", {0, 1}), on("b", {0, 1}), on("a", {0, 1}), on("b", {0, 1})};
  EXPECT_EQ(deal_gpus(dealt), (Indices{0, 0, 1, 1}));
  const std::vector<RankGpus> spare = {on("a", {0, 1, 2, 3}), on("b", {0})};
  EXPECT_EQ(deal_gpus(spare), (Indices{0, 0}));
}

TEST(DealGpus, RanksThatASchedulerShowsOneTakeThat) {
  const std::vector<RankGpus> own = {on("a", {2}), on("a", {0}), on("a", {1})};
  EXPECT_EQ(deal_gpus(own), (Indices{0, 0, 0}));
}

TEST(DealGpus, RanksThatAreBoundTakeOnesNearTheirCores) {
  const auto near = [](std::vector<bool> which) { return RankGpus{"a", {"0", "1", "2", "3"}, std::move(which)}; };
  const std::vector<RankGpus> crossed = {near({false, false, true, true}), near({true, true, false, false}),
                                         near({false, false, true, true}), near({true, true, false, false})};
  EXPECT_EQ(deal_gpus(crossed), (Indices{2, 0, 3, 1}));
  const std::vector<RankGpus> crowded = {near({false, false, false, false}), near({true, false, false, false}),
                                         near({true, false, false, false})};
  EXPECT_EQ(deal_gpus(crowded), (Indices{1, 0, 2})) << "what is near somebody is not taken by others first";
}

TEST(DealGpus, MoreRanksThanGpusAreRefusedWithBothNumbers) {
  const std::vector<RankGpus> crowded = {on("a", {0, 1}), on("b", {0, 1}), on("b", {0, 1}), on("b", {0, 1})};
  const std::string message = refusal([&] { deal_gpus(crowded); });
  EXPECT_NE(message.find("rank 3 of 4 finds no free GPU: host b has 3 ranks for 2 GPUs;"), std::string::npos) << message;
  const std::vector<RankGpus> asked_for_one(2, on("a", {1}));  // --device cuda:1
  EXPECT_NE(refusal([&] { deal_gpus(asked_for_one); }).find("host a has 2 ranks for 1 GPU;"), std::string::npos);
  const std::vector<RankGpus> none = {{"a", {}}};
  EXPECT_NE(refusal([&] { deal_gpus(none); }).find("host a has 1 ranks for 0 GPUs;"), std::string::npos);
}

TEST(RequireDevice, SaysWhatIsMissing) {
  EXPECT_NO_THROW(require_device({}));
  if (cuda::device_count() > 0) {
    EXPECT_NO_THROW(require_device({DeviceKind::cuda, {}}));
    EXPECT_NE(refusal([] { require_device({DeviceKind::cuda, 4000}); }).find("--device cuda:4000: this machine has"), std::string::npos);
    return;
  }
  try {
    require_device({DeviceKind::cuda, {}});
    FAIL() << "there is no GPU";
  } catch (const BackendUnavailable& error) {
    EXPECT_NE(std::string(error.what()).find(cuda::unavailable_reason()), std::string::npos) << error.what();
  }
}

std::string lines(std::vector<std::string> arguments, const RankOptions& options) { return launch_lines("train", arguments, options); }

TEST(LaunchLines, KeepTheArgumentsAndLeaveRanksToTheLauncher) {
  EXPECT_EQ(lines({"--data", "my text", "it's", "--ranks", "3", "--print-launch", "--transport=thread", "--layers=2"}, {.ranks = 3}),
            "# on this host\n"
            "mpirun -n 3 --bind-to none periplus train --data 'my text' 'it'\\''s' --layers=2\n"
            "# on several hosts: their names, and after the colon the ranks of each\n"
            "mpirun -n 3 --host HOST1:2,HOST2:1 --bind-to none periplus train --data 'my text' 'it'\\''s' --layers=2\n"
            "# in a Slurm allocation\n"
            "srun --mpi=pmix --ntasks=3 periplus train --data 'my text' 'it'\\''s' --layers=2\n"
            "# without MPI, on this host; on several hosts --nnodes, --node-rank, --master-addr and --master-port say who is where\n"
            "torchrun --no-python --nproc-per-node=3 periplus train --data 'my text' 'it'\\''s' --layers=2\n");
}

TEST(LaunchLines, SayWhereRanksOfGpusCompute) {
  EXPECT_EQ(lines({}, {.ranks = 2, .device = "cuda"}).find("# each rank takes a GPU of its own and, if it is not bound, the cores near it"),
            0u);
}

TEST(LaunchLines, AskSlurmForTheGpus) {
  EXPECT_NE(lines({"--device", "cuda"}, {.ranks = 8, .device = "cuda"})
                .find("srun --mpi=pmix --ntasks=8 --gpus-per-task=1 --gpu-bind=none periplus train --device cuda\n"),
            std::string::npos);
}

TEST(LaunchLines, OverrideAFileThatSaysThread) {
  EXPECT_NE(lines({"--config", "a.toml"}, {.ranks = 1, .transport = "thread"}).find(" periplus train --config a.toml --transport auto\n"),
            std::string::npos);
}

TEST(LaunchLines, NeedANumberOfRanks) {
  EXPECT_EQ(refusal([] { lines({}, {}); }), "--print-launch needs the number of processes: --ranks N");
}

}  // namespace
}  // namespace periplus::launch
