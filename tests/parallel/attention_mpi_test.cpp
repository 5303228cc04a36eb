// The sweep of attention_test.cpp with processes as ranks: mpirun -n P attention_mpi_test.
#include <algorithm>
#include <cstdio>

#include "runtime/comm/process_ranks.h"
#include "tests/parallel/attention_cases.h"

using namespace periplus;

int main() {
  int wrong = 0;
  comm::run_mpi_rank([&](const comm::Communicator& communicator) {
    const Memory memory;
    std::vector<test::AttentionCase> cases = test::sweep(communicator.size());
    for (const AttentionOptions& options : test::variants()) {
      for (const test::AttentionCase& c : test::sample(communicator.size(), options, 4)) cases.push_back(c);
    }
    for (const test::AttentionCase& c : cases) {
      const test::AttentionOracle oracle = test::make_oracle(c, memory);
      const double stretch = std::max(1.0, oracle.largest_score / 16);
      const test::AttentionErrors errors = test::run_case(c, oracle, DType::f64, communicator);
      if (errors.forward <= 1e-12 * stretch && errors.backward <= 1e-11 * stretch) continue;
      std::fprintf(stderr, "rank %d: errors %g %g: %s\n", communicator.rank(), errors.forward, errors.backward, test::to_string(c).c_str());
      ++wrong;
    }
    Tensor total({1}, DType::i32, memory);
    total.view().span<std::int32_t>()[0] = wrong;
    communicator.all_reduce(total, comm::Reduce::sum, Stream());
    wrong = total.view().span<std::int32_t>()[0];
  });
  return wrong == 0 ? 0 : 1;
}
