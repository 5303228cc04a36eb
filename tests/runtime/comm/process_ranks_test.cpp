// Who initialises MPI: mpirun -n P process_ranks_test own|library. What happens to ranks that fail, tests/launch/cli_test shows with the
// command.
#include "runtime/comm/process_ranks.h"

#include <cstdio>
#include <string>

#include <mpi.h>

#include "runtime/error.h"
#include "tests/runtime/comm/conformance.h"

using namespace periplus;

namespace {

/// How many ranks were seen, by all.
void count_ranks(int expected) {
  int seen = 0;
  comm::run_mpi_rank([&](const comm::Communicator& communicator) {
    for (const std::string& text : communicator.all_gather_bytes("one", Stream())) seen += text == "one" ? 1 : 0;
  });
  comm::conformance::require(seen == expected, "ranks of a run");
}

bool finalized() {
  int flag = 0;
  MPI_Finalized(&flag);
  return flag != 0;
}

void check_own(int& argc, char**& argv) {
  int level = MPI_THREAD_SINGLE, ranks = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  count_ranks(ranks);
  count_ranks(ranks);
  comm::conformance::require(!finalized(), "who initialised MPI finalises it");
  MPI_Finalize();
}

void check_library(int expected) {
  count_ranks(expected);
  comm::conformance::require(finalized(), "MPI is finalised by the run that initialised it");
  std::string message;
  try {
    count_ranks(expected);
  } catch (const BackendUnavailable& error) {
    message = error.what();
  }
  comm::conformance::require_contains(message, "MPI_Finalize");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc == 2 && std::string(argv[1]) == "own") {
      check_own(argc, argv);
    } else if (argc == 3 && std::string(argv[1]) == "library") {
      check_library(std::stoi(argv[2]));
    } else {
      return 2;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "process_ranks_test: %s\n", error.what());
    return 1;
  }
  return 0;
}
