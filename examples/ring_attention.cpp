// Ring attention in an own program: ring_attention 3 has ranks that are threads, mpirun -n 3 ring_attention processes.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "parallel/attention.h"
#include "runtime/comm/process_ranks.h"
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

/// What one rank does. Sum of squares of all results, on every rank.
double checksum(const comm::Communicator& communicator) {
  // Two documents packed into one sequence; no length has to divide by anything.
  const std::vector<std::int64_t> documents{0, 301, 1000};
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
  return sum.view().span<double>()[0];
}

}  // namespace

int main(int argc, char** argv) {
  double one = 0, many = 0;
  const auto on_all = [&](const comm::Communicator& communicator) {
    const double sum = checksum(communicator);
    if (communicator.rank() == 0) many = sum;
  };
  try {
    comm::run_thread_ranks(1, [&](const comm::Communicator& communicator) { one = checksum(communicator); });
    if (argc > 1) {
      comm::run_thread_ranks(std::atoi(argv[1]), on_all);
    } else {
      comm::run_mpi_rank(on_all);
    }
  } catch (const Error& error) {  // what the library throws says who, what, which values, and what to do
    std::fprintf(stderr, "ring_attention: %s\n", error.what());
    return comm::exit_code_of(error);
  }
  if (many == 0) return 0;  // a process that is not rank 0
  std::printf("sum of squares of out, dq, dk, dv: on one rank %.6f, on all %.6f\n", one, many);
  return std::abs(one - many) <= 1e-5 * one ? 0 : 1;
}
