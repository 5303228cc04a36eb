#include "launch/ranks.h"

#include <map>
#include <new>
#include <system_error>

#include <gtest/gtest.h>

#include "launch/cores.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

Environment environment(std::map<std::string, std::string> variables) {
  return [variables = std::move(variables)](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    if (found == variables.end()) return std::nullopt;
    return found->second;
  };
}

std::string refusal(const RankOptions& options, std::map<std::string, std::string> variables) {
  try {
    find_ranks(options, environment(std::move(variables)));
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "no error";
}

const std::map<std::string, std::string> kMpirun = {{"OMPI_COMM_WORLD_RANK", "2"}, {"OMPI_COMM_WORLD_SIZE", "4"}};
const std::map<std::string, std::string> kTorchrun = {
    {"RANK", "3"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "3"}, {"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "29500"}};

TEST(FindRanks, WithoutLauncherRanksAreThreads) {
  const RankSource one = find_ranks({}, environment({}));
  EXPECT_FALSE(one.mpi);
  EXPECT_EQ(one.ranks, 1);
  EXPECT_EQ(find_ranks({.ranks = 5}, environment({})).ranks, 5);
  EXPECT_EQ(find_ranks({.alone = 2}, environment({})).ranks, 2);
  EXPECT_EQ(find_ranks({.alone = 2}, environment(kMpirun)).ranks, 4);
}

TEST(FindRanks, LauncherDecidesUnderMpi) {
  for (const auto& variables : {kMpirun, std::map<std::string, std::string>{{"PMI_RANK", "2"}, {"PMI_SIZE", "4"}},
                                std::map<std::string, std::string>{{"PMIX_RANK", "2"}, {"SLURM_STEP_NUM_TASKS", "4"}}}) {
    for (const char* transport : {"auto", "mpi"}) {
      const RankSource source = find_ranks({.transport = transport}, environment(variables));
      EXPECT_TRUE(source.mpi);
      EXPECT_EQ(source.ranks, 4);
      EXPECT_EQ(source.rank, 2);
    }
  }
  EXPECT_EQ(refusal({.ranks = 4}, kMpirun), "no error");
}

TEST(FindRanks, ContradictionsAreRefused) {
  EXPECT_EQ(refusal({.ranks = 2}, kMpirun), "--ranks 2 contradicts mpirun, which started 4; leave --ranks out");
  EXPECT_NE(refusal({.transport = "thread"}, kMpirun).find("--transport thread contradicts mpirun"), std::string::npos);
  EXPECT_NE(refusal({.ranks = 3, .transport = "mpi"}, {}).find("mpirun -n 3"), std::string::npos);
}

TEST(FindRanks, ProcessesThatCannotReachEachOtherAreRefused) {
  for (const auto& incomplete : {kTorchrun.find("MASTER_ADDR"), kTorchrun.find("MASTER_PORT"), kTorchrun.find("RANK")}) {
    auto variables = kTorchrun;
    variables.erase(incomplete->first);
    const std::string said = refusal({}, variables);
    EXPECT_NE(said.find("torchrun started 4 processes, which need RANK (0 to 3"), std::string::npos) << said;
  }
  EXPECT_NE(refusal({}, {{"SLURM_STEP_NUM_TASKS", "3"}, {"SLURM_PROCID", "0"}}).find("srun --mpi=pmix -n 3"), std::string::npos);
  EXPECT_EQ(refusal({}, {{"WORLD_SIZE", "1"}, {"RANK", "0"}}), "no error");
}

TEST(FindRanks, ProcessesOfTorchrunMeetByTcp) {
  for (const char* transport : {"auto", "tcp"}) {
    const RankSource source = find_ranks({.transport = transport}, environment(kTorchrun));
    EXPECT_FALSE(source.mpi);
    EXPECT_TRUE(source.processes());
    EXPECT_EQ(source.ranks, 4);
    EXPECT_EQ(source.rank, 3);
    ASSERT_TRUE(source.tcp);
    EXPECT_EQ(source.tcp->host, "10.0.0.1");
    EXPECT_EQ(source.tcp->port, 29500);
    EXPECT_EQ(source.tcp->store_key, "");
  }
  auto agent = kTorchrun;
  agent.insert({{"TORCHELASTIC_USE_AGENT_STORE", "True"}, {"TORCHELASTIC_RUN_ID", "job"}, {"TORCHELASTIC_RESTART_COUNT", "2"}});
  EXPECT_EQ(find_ranks({.transport = "nccl", .device = "cuda"}, environment(agent)).tcp->store_key, "periplus/job/2");
  EXPECT_EQ(refusal({.ranks = 2}, kTorchrun), "--ranks 2 contradicts torchrun, which started 4; leave --ranks out");
  EXPECT_NE(refusal({.transport = "thread"}, kTorchrun).find("--transport thread contradicts torchrun"), std::string::npos);
  EXPECT_NE(refusal({.transport = "mpi"}, kTorchrun).find("--transport mpi contradicts torchrun"), std::string::npos);
  EXPECT_NE(refusal({.transport = "tcp", .device = "cuda"}, kTorchrun).find("--transport tcp moves host memory only"), std::string::npos);
  EXPECT_NE(refusal({.ranks = 3, .transport = "tcp"}, {}).find("--nproc-per-node 3"), std::string::npos);
}

TEST(FindRanks, UnderBothLaunchersMpiIsFirst) {
  auto both = kMpirun;
  both.insert(kTorchrun.begin(), kTorchrun.end());
  EXPECT_TRUE(find_ranks({}, environment(both)).mpi);
  EXPECT_TRUE(find_ranks({.transport = "tcp"}, environment(both)).tcp);
}

TEST(FindRanks, BatchScriptOfSlurmIsOneRank) {
  EXPECT_EQ(find_ranks({}, environment({{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}})).ranks, 1);
}

TEST(FindRanks, TransportsThatCannotServeTheDeviceAreRefused) {
  EXPECT_EQ(refusal({.transport = "mpi", .device = "cuda"}, {}),
            "--transport mpi moves host memory only; with --device cuda use --transport nccl");
  EXPECT_NE(refusal({.transport = "nccl"}, kMpirun).find("add --device cuda"), std::string::npos);
  EXPECT_NE(
      refusal({.ranks = 3, .transport = "nccl", .device = "cuda"}, {}).find("--transport nccl needs its processes started: mpirun -n 3"),
      std::string::npos);
  EXPECT_NE(refusal({.transport = "thread", .device = "cuda"}, kMpirun).find("--transport thread contradicts mpirun"), std::string::npos);
}

TEST(FindRanks, OnGpusRanksAreThreadsOrProcessesToo) {
  const RankSource threads = find_ranks({.ranks = 4, .device = "cuda:1"}, environment({}));
  EXPECT_FALSE(threads.mpi);
  EXPECT_EQ(threads.ranks, 4);
  EXPECT_EQ(shared_device(threads.device), (Device{DeviceKind::cuda, 1}));
  EXPECT_TRUE(find_ranks({.device = "cuda"}, environment(kMpirun)).mpi);
  EXPECT_TRUE(find_ranks({.transport = "nccl", .device = "cuda"}, environment({})).mpi);
}

TEST(RequireOneProcess, RefusesSeveralWhoeverStartedThem) {
  EXPECT_NO_THROW(require_one_process(environment({})));
  EXPECT_NO_THROW(require_one_process(environment({{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}})));
  for (const auto& [variables, by] : {std::pair(kMpirun, "mpirun started 4"), std::pair(kTorchrun, "torchrun started 4")}) {
    try {
      require_one_process(environment(variables));
      FAIL() << by;
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(by), std::string::npos) << error.what();
    }
  }
}

TEST(ShareOfCores, IsWhatNobodyElseHasOrAPart) {
  EXPECT_EQ(share_of_cores(1, 2, 2), 1) << "bound to a core each";
  EXPECT_EQ(share_of_cores(8, 16, 16), 8) << "bound to half a host each";
  EXPECT_EQ(share_of_cores(16, 16, 32), 8) << "two processes, unbound";
  EXPECT_EQ(share_of_cores(16, 16, 16), 16) << "alone";
  EXPECT_EQ(share_of_cores(2, 2, 8), 1) << "more processes than cores";
}

TEST(Report, SaysWhatToDoAboutThreadsAndMemory) {
  const auto said = [](const std::exception& error) {
    testing::internal::CaptureStderr();
    EXPECT_EQ(report(error, "train"), kRuntimeFailure);
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_NE(said(std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again))).find("ulimit -u"), std::string::npos);
  EXPECT_NE(said(std::bad_alloc()).find("ulimit -v"), std::string::npos);
}

TEST(DescribeLauncher, SaysWhoStartedWhatAndWhichVariablesAreSet) {
  EXPECT_EQ(describe_launcher(environment({})), "none; ranks are threads (--ranks N)");
  EXPECT_EQ(describe_launcher(environment(kMpirun)), "mpirun started this process as rank 2 of 4; set: OMPI_COMM_WORLD_RANK=2");
  EXPECT_EQ(describe_launcher(environment(kTorchrun)),
            "torchrun started this process as rank 3 of 4; set: RANK=3 WORLD_SIZE=4 LOCAL_RANK=3 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500");
}

}  // namespace
}  // namespace periplus::launch
