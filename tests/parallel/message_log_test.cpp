// mpirun -n P, with tests/faults/recorder.cpp preloaded: every strategy sends and receives exactly what its plan says, in
// that order, and asks MPI for nothing else.
//   message_log_test CASES: so many per variant of the options
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include <fmt/format.h>
#include <mpi.h>
#include <unistd.h>

#include "runtime/comm/mpi_transport.h"
#include "runtime/comm/split.h"
#include "tests/parallel/attention_cases.h"
#include "tests/parallel/linear_cases.h"

namespace periplus::test {
namespace {

/// Bytes of the calls of this rank, in order, by verb ("send", "receive"), peer and tag, which is the lane. Calls that no
/// plan asks for stand under their name.
using MessageLog = std::map<std::tuple<std::string, int, int>, std::vector<std::size_t>>;

void expect_message(MessageLog& log, const char* verb, int peer, int lane, std::size_t bytes) {
  for (std::size_t i = 0; i < comm::fragment_count(bytes); ++i) {
    log[{verb, peer, lane}].push_back(static_cast<std::size_t>(comm::fragment(bytes, i).bytes));
  }
}

void expect_program(MessageLog& log, const plan::Program& program) {
  for (const plan::Step& step : program.steps) {
    for (const plan::Message& m : program.sends_of(step))
      expect_message(log, "send", m.peer, step.lane, static_cast<std::size_t>(program.bytes_of(m.view)));
    for (const plan::Message& m : program.receives_of(step))
      expect_message(log, "receive", m.peer, step.lane, static_cast<std::size_t>(program.bytes_of(m.view)));
  }
}

/// Operators compare three digests with all ranks when they are made.
void expect_digests(MessageLog& log, const comm::Communicator& communicator) {
  for (int peer = 0; peer < communicator.size(); ++peer) {
    if (peer == communicator.rank()) continue;
    for (const char* verb : {"send", "receive"}) expect_message(log, verb, peer, comm::kCollectiveLane, 3 * sizeof(std::uint64_t));
  }
}

std::string log_path() {
  const char* prefix = std::getenv("PERIPLUS_MPI_LOG");
  return fmt::format("{}.{}", prefix != nullptr ? prefix : "", getpid());
}

MessageLog recorded() {
  std::ifstream file(log_path());
  MessageLog log;
  if (!file) log[{"no log: set PERIPLUS_MPI_LOG and preload the recorder", 0, 0}];
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string verb;
    int peer = 0, tag = 0;
    std::size_t bytes = 0;
    if (words >> verb >> peer >> tag >> bytes) {
      log[{verb, peer, tag}].push_back(bytes);
    } else {
      log[{line, 0, 0}].push_back(0);
    }
  }
  return log;
}

/// Prints the differences and returns how many (verb, peer, lane) have one.
int differences(int rank, const MessageLog& planned, const MessageLog& found) {
  MessageLog all = planned;
  all.insert(found.begin(), found.end());
  int wrong = 0;
  for (const auto& [key, unused] : all) {
    const auto list = [&key = key](const MessageLog& log) { return log.contains(key) ? log.at(key) : std::vector<std::size_t>(); };
    const std::vector<std::size_t> plan = list(planned), run = list(found);
    if (plan == run && planned.contains(key)) continue;
    const auto at = static_cast<std::size_t>(std::mismatch(plan.begin(), plan.end(), run.begin(), run.end()).first - plan.begin());
    const auto size = [at](const auto& sizes) { return at < sizes.size() ? fmt::format("{} bytes", sizes[at]) : std::string("nothing"); };
    const auto& [verb, peer, tag] = key;
    fmt::print(stderr, "rank {}: {} peer {} lane {}: {} planned, {} done; number {} is {} in the plan, {} in the run\n", rank, verb, peer,
               tag, plan.size(), run.size(), at, size(plan), size(run));
    ++wrong;
  }
  return wrong;
}

/// Keys of 4 MiB in all, and hardly a pair to compute: messages of several fragments.
AttentionCase long_messages() {
  AttentionCase c;
  c.cu_seqlens = {0, 1025};
  c.mask.window_left = 1;
  c.q_heads = c.kv_heads = 16, c.head_size = 64, c.value_size = 96;
  return c;
}

MessageLog run_cases(const comm::Communicator& communicator, std::size_t cases_per_variant) {
  std::vector<AttentionCase> cases{long_messages()};
  for (const AttentionOptions& options : variants()) {
    for (const AttentionCase& c : sample(communicator.size(), options, cases_per_variant)) cases.push_back(c);
  }
  const Memory memory;
  MessageLog planned;
  for (const AttentionCase& c : cases) {
    run_for_bytes(c, make_oracle(c, memory), DType::f32, communicator);
    expect_digests(planned, communicator);
    for (const Pass pass : {Pass::forward, Pass::backward})
      expect_program(planned, make_program(problem_of(c, DType::f32, communicator.size()), c.options, pass, communicator.rank()));
  }
  std::size_t linear_cases = 0;
  for (const LinearAttentionOptions& options : linear_variants()) {
    const std::vector<LinearCase> all = linear_sweep(communicator.size(), options);
    for (std::size_t i = 0; i < cases_per_variant; ++i, ++linear_cases) {
      const LinearCase& c = all[(7 * i + linear_cases) % all.size()];
      run_linear_case(c, make_linear_oracle(c, memory), DType::f32, communicator);
      expect_digests(planned, communicator);
      for (const Pass pass : {Pass::forward, Pass::backward})
        expect_program(planned, make_program(problem_of(c, DType::f32, communicator.size()), c.options, pass, communicator.rank()));
    }
  }
  if (communicator.rank() == 0) fmt::print("{} configurations on {} ranks\n", cases.size() + linear_cases, communicator.size());
  return planned;
}

/// Calls that no plan makes; a log that misses them would prove nothing. Returns how many differences they must make.
int make_stray_calls(int rank, int ranks) {
  int flag = 0;
  std::uint64_t outgoing = 0, incoming = 0;
  MPI_Request requests[2];
  MPI_Irecv(&incoming, 1, MPI_UINT64_T, MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &requests[0]);
  MPI_Isend(&outgoing, 1, MPI_UINT64_T, (rank + 1) % ranks, 0, MPI_COMM_WORLD, &requests[1]);
  MPI_Waitall(2, requests, MPI_STATUSES_IGNORE);
  MPI_Iprobe(MPI_ANY_SOURCE, 0, MPI_COMM_WORLD, &flag, MPI_STATUS_IGNORE);
  return 3;
}

int check(std::size_t cases_per_variant) {
  const comm::Communicator communicator = comm::make_mpi_world();
  const int rank = communicator.rank();
  const MessageLog planned = run_cases(communicator, cases_per_variant);
  int wrong = differences(rank, planned, recorded());
  if (wrong != 0) return wrong;
  fmt::print(stderr, "rank {}: three differences follow on purpose\n", rank);
  const int stray = make_stray_calls(rank, communicator.size());
  wrong = differences(rank, planned, recorded()) == stray ? 0 : 1;
  if (wrong == 0) std::remove(log_path().c_str());
  return wrong;
}

}  // namespace
}  // namespace periplus::test

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  const int wrong = argc == 2 ? periplus::test::check(std::stoul(argv[1])) : 1;
  if (wrong != 0) MPI_Abort(MPI_COMM_WORLD, 1);
  MPI_Finalize();
  return 0;
}
