// Uses the installed package only: plans a ring over three thread ranks, proves it and runs it.
#include <cstdio>
#include <vector>

#include <periplus.h>

int main() {
  using namespace periplus;
  const std::vector<std::int64_t> documents{0, 5, 17, 40};
  AttentionProblem problem{SequenceLayout::make(LayoutKind::zigzag, 3, documents), Mask({}, documents)};
  problem.head_size = problem.value_size = 8;
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    if (!plan::verify(make_plan(problem, {}, pass)).ok()) return 1;
  }
  comm::run_thread_ranks(3, [&](comm::Communicator communicator) {
    const Memory memory;
    DistributedAttention attention(problem, {}, communicator, memory);
    const std::int64_t rows = problem.layout.rows_of(communicator.rank());
    const Tensor x = Tensor::zeros({rows, 1, 8}, DType::f32, memory), out = Tensor::zeros({rows, 1, 8}, DType::f32, memory);
    const Tensor lse = Tensor::zeros({rows, 1, 1}, DType::f32, memory);
    attention.forward({x, x, x}, {out, lse});
  });
  std::puts("ring attention of three ranks ran from the installed package");
  return 0;
}
