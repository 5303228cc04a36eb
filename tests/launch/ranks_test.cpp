#include "launch/ranks.h"

#include <map>

#include <gtest/gtest.h>

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

TEST(FindRanks, WithoutLauncherRanksAreThreads) {
  const RankSource one = find_ranks({}, environment({}));
  EXPECT_FALSE(one.mpi);
  EXPECT_EQ(one.ranks, 1);
  EXPECT_EQ(find_ranks({.ranks = 5}, environment({})).ranks, 5);
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
  EXPECT_NE(refusal({}, {{"WORLD_SIZE", "2"}, {"RANK", "0"}}).find("torchrun started 2 processes"), std::string::npos);
  EXPECT_NE(refusal({}, {{"SLURM_STEP_NUM_TASKS", "3"}, {"SLURM_PROCID", "0"}}).find("srun --mpi=pmix -n 3"), std::string::npos);
  EXPECT_EQ(refusal({}, {{"WORLD_SIZE", "1"}, {"RANK", "0"}}), "no error");
  auto both = kMpirun;
  both.emplace("WORLD_SIZE", "4");
  EXPECT_EQ(refusal({}, both), "no error");
}

TEST(FindRanks, BatchScriptOfSlurmIsOneRank) {
  EXPECT_EQ(find_ranks({}, environment({{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}})).ranks, 1);
}

}  // namespace
}  // namespace periplus::launch
