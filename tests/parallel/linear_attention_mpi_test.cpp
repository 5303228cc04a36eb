// Cases of linear_attention_test.cpp with processes as ranks: mpirun -n P linear_attention_mpi_test.
#include <algorithm>
#include <cstdio>

#include "runtime/comm/process_ranks.h"
#include "tests/parallel/linear_cases.h"

using namespace periplus;

int main() {
  int wrong = 0;
  comm::run_mpi_rank([&](const comm::Communicator& communicator) {
    const Memory memory;
    for (const LinearAttentionOptions& options : test::linear_variants()) {
      for (const test::LinearCase& c : test::linear_sweep(communicator.size(), options)) {
        const test::LinearOracle oracle = test::make_linear_oracle(c, memory);
        const test::LinearErrors errors = test::run_linear_case(c, oracle, DType::f64, communicator);
        if (std::max({errors.out, errors.incoming, errors.gradients}) <= 1e-11) continue;
        std::fprintf(stderr, "rank %d: errors %g %g %g: %s\n", communicator.rank(), errors.out, errors.incoming, errors.gradients,
                     test::to_string(c).c_str());
        ++wrong;
      }
    }
    Tensor total({1}, DType::i32, memory);
    total.view().span<std::int32_t>()[0] = wrong;
    communicator.all_reduce(total, comm::Reduce::sum, Stream());
    wrong = total.view().span<std::int32_t>()[0];
  });
  return wrong == 0 ? 0 : 1;
}
