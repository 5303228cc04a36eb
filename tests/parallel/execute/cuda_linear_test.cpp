// Linear attention on virtual ranks of one CUDA device: its results are those of the same ranks on the CPU. As cuda_test.cpp, also linked
// with fake_device.cpp.
#include <random>

#include "parallel/linear_attention.h"
#include "runtime/comm/thread_transport.h"
#include "tests/parallel/execute/cuda_test.h"
#include "tests/parallel/linear_cases.h"

namespace periplus::test {
namespace {

/// A rank's results, on the host: out, dq, dk, dv, dlog_decay and dbeta, empty where there is nothing.
std::vector<Tensor> results_of(const LinearAttentionProblem& problem, const comm::Communicator& communicator, const Stream& stream,
                               const LinearAttentionOptions& options) {
  const Memory host, memory(stream.device());
  const bool on_host = stream.device().kind == DeviceKind::cpu;
  std::mt19937_64 random(static_cast<std::uint64_t>(communicator.rank()));
  const std::int64_t rows = problem.layout.rows_of(communicator.rank());
  const auto there = [&](Tensor tensor) { return on_host ? std::move(tensor) : to_device(tensor, memory, stream); };
  const auto make = [&](std::int64_t width, double least, double most) {
    std::uniform_real_distribution<double> number(least, most);
    Tensor tensor({rows, problem.heads, width}, DType::f64, host);
    for (double& value : tensor.view().span<double>()) value = number(random);
    return there(std::move(tensor));
  };
  const bool decays = problem.decay != Decay::none;
  const Tensor q = make(problem.head_size, 0, 1), k = make(problem.head_size, 0, 0.3), v = make(problem.value(), -1, 1);
  const Tensor dout = make(problem.value(), -1, 1), log_decay = make(problem.decay == Decay::diagonal ? problem.head_size : 1, -0.5, 0);
  const Tensor beta = make(1, 0, 1);
  const auto like = [&](const Tensor& tensor, bool wanted) {
    return wanted ? there(Tensor::zeros(tensor.shape(), DType::f64, host)) : Tensor();
  };
  const auto view = [](const Tensor& tensor) { return tensor.empty() ? TensorView{} : tensor.view(); };

  DistributedLinearAttention attention(problem, options, communicator, memory, nullptr, stream);
  const Tensor state({attention.units(), problem.heads, problem.state_width()}, DType::f64, memory);
  const Tensor following(state.shape(), DType::f64, memory), normaliser({rows, problem.heads, 1}, DType::f64, memory);
  std::vector<Tensor> results;
  results.push_back(like(v, true));
  for (const Tensor* of : {&q, &k, &v}) results.push_back(like(*of, true));
  results.push_back(like(log_decay, decays)), results.push_back(like(beta, problem.delta_rule));
  const LinearAttentionInputs inputs{q, k, v, decays ? log_decay.view() : TensorView{}, problem.delta_rule ? beta.view() : TensorView{}};
  LinearAttentionOutputs outputs{results[0], state};
  if (problem.bidirectional) outputs.following = following;
  if (problem.normalise) outputs.normaliser = normaliser;
  attention.forward(inputs, outputs);
  attention.backward(inputs, outputs, dout, {results[1], results[2], results[3], view(results[4]), view(results[5])});
  for (Tensor& result : results) {
    if (!on_host && !result.empty()) result = to_host(result, stream);
  }
  return results;
}

TEST(LinearAttentionOnCuda, IsThatOfTheCpu) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device: " << cuda::unavailable_reason();
  for (const int ranks : {1, 2, 4}) {
    LinearAttentionOptions options;
    options.any_layout = true;
    std::vector<LinearCase> cases = linear_sweep(ranks, options);
    for (LinearCase& c : extended_sweep(ranks, options)) cases.push_back(c);
    for (const LinearCase& c : cases) {
      comm::run_thread_ranks(ranks, [&](const comm::Communicator& communicator) {
        const LinearAttentionProblem problem = problem_of(c, DType::f64, ranks);
        const auto here = results_of(problem, communicator, Stream(), options),
                   there = results_of(problem, communicator, cuda::make_stream(0), options);
        for (std::size_t i = 0; i < here.size(); ++i) {
          if (here[i].empty()) continue;
          const auto want = here[i].view().span<double>(), got = there[i].view().span<double>();
          double worst = 0;
          for (std::size_t at = 0; at < want.size(); ++at) {
            const double error = std::abs(got[at] - want[at]);
            worst = error <= worst ? worst : error;  // NaN too
          }
          EXPECT_LE(worst, 1e-11) << "result " << i << ", rank " << communicator.rank() << " of " << ranks << ", " << to_string(c);
        }
      });
    }
  }
}

}  // namespace
}  // namespace periplus::test
