// Ring attention in an own program: ring_attention [ranks]. Ranks are threads here; in a program that mpirun starts, MPI_Init_thread comes
// first, the body runs once with comm::make_mpi_world(), and a rank that fails ends with MPI_Abort, or the others wait for it until their
// deadline.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "parallel/attention.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/error.h"

using namespace periplus;

namespace {

/// The same made-up numbers wherever the row lives.
void fill_rows(const Tensor& tensor, const std::vector<std::int64_t>& global_rows, double phase) {
  const auto values = tensor.view().span<float>();
  const std::size_t per_row = global_rows.empty() ? 0 : values.size() / global_rows.size();
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] =
        static_cast<float>(std::sin(phase + 0.37 * static_cast<double>(global_rows[i / per_row]) + 1.3 * static_cast<double>(i % per_row)));
  }
}

double run(int ranks, const std::vector<std::int64_t>& documents) {
  double checksum = 0;
  comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
    // Two documents packed into one sequence; no length has to divide by anything.
    AttentionProblem problem{SequenceLayout::make(LayoutKind::document_zigzag, communicator.size(), documents), Mask({}, documents)};
    problem.q_heads = 4, problem.kv_heads = 2, problem.head_size = problem.value_size = 32;
    const Memory memory;
    const auto rows = problem.layout.global_rows(communicator.rank());
    const auto n = static_cast<std::int64_t>(rows.size());
    const auto tensor = [&](int heads, int width) { return Tensor({n, heads, width}, DType::f32, memory); };
    const Tensor q = tensor(4, 32), k = tensor(2, 32), v = tensor(2, 32), out = tensor(4, 32), lse = tensor(4, 1);
    const Tensor dout = tensor(4, 32), dq = tensor(4, 32), dk = tensor(2, 32), dv = tensor(2, 32);
    fill_rows(q, rows, 0), fill_rows(k, rows, 1), fill_rows(v, rows, 2), fill_rows(dout, rows, 3);

    DistributedAttention attention(problem, {}, communicator, memory);
    attention.forward({q, k, v}, {out, lse});
    attention.backward({q, k, v}, {out, lse}, {dout}, {dq, dk, dv});

    const Tensor sum = Tensor::zeros({1}, DType::f64, memory);
    for (const Tensor* t : {&out, &dq, &dk, &dv}) {
      for (const float x : t->view().span<float>()) sum.view().span<double>()[0] += static_cast<double>(x) * static_cast<double>(x);
    }
    communicator.all_reduce(sum, comm::Reduce::sum, Stream());
    if (communicator.rank() == 0) checksum = sum.view().span<double>()[0];
  });
  return checksum;
}

}  // namespace

int main(int argc, char** argv) {
  const int ranks = argc > 1 ? std::atoi(argv[1]) : 4;
  const std::vector<std::int64_t> documents{0, 301, 1000};
  try {
    const double one = run(1, documents), many = run(ranks, documents);
    std::printf("sum of squares of out, dq, dk, dv: 1 rank %.6f, %d ranks %.6f\n", one, ranks, many);
    return std::abs(one - many) <= 1e-5 * one ? 0 : 1;
  } catch (const Error& error) {  // what the library throws says who, what, which values, and what to do
    std::fprintf(stderr, "ring_attention: %s\n", error.what());
    return 2;
  }
}
