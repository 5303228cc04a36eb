#include "launch/linear_run.h"

#include "launch/pass_time.h"
#include "launch/rows.h"

namespace periplus::launch {

LocalLinear run_linear(const LinearAttentionProblem& problem, const LinearAttentionOptions& options, const GlobalLinear& global,
                       const comm::Communicator& communicator, const Memory& memory, const Stream& stream) {
  const DType accumulator = accumulator_of(problem.dtype);
  const bool on_host = memory.device().kind == DeviceKind::cpu;
  const Memory host;
  const auto mine = [&](const ConstTensorView& whole) {
    if (whole.dims() == 0) return Tensor();
    Tensor local = take_rows(whole, problem.layout, communicator.rank(), on_host ? memory : host);
    return on_host ? std::move(local) : to_device(local, memory, stream);
  };
  const Tensor q = mine(global.q), k = mine(global.k), v = mine(global.v), log_decay = mine(global.log_decay), beta = mine(global.beta);
  const LinearAttentionInputs inputs{.q = q, .k = k, .v = v, .log_decay = log_decay, .beta = beta};

  LocalLinear local;
  local.out = Tensor(v.shape(), problem.dtype, memory);
  DistributedLinearAttention attention(problem, options, communicator, memory, nullptr, stream);
  const LinearAttentionStates states = attention.make_states(memory);
  const LinearAttentionOutputs outputs = states.outputs(local.out);
  const auto seconds_of = [&](const auto& pass) { return seconds_of_pass(communicator, stream, pass); };
  local.forward_seconds = seconds_of([&] { attention.forward(inputs, outputs); });

  if (global.dout.dims() > 0) {
    const Tensor dout = mine(global.dout);
    local.dq = Tensor(q.shape(), problem.dtype, memory);
    local.dk = Tensor(k.shape(), problem.dtype, memory);
    local.dv = Tensor(v.shape(), problem.dtype, memory);
    if (!log_decay.empty()) local.dlog_decay = Tensor(log_decay.shape(), accumulator, memory);
    if (!beta.empty()) local.dbeta = Tensor(beta.shape(), accumulator, memory);
    const LinearAttentionGradients results{local.dq, local.dk, local.dv, local.dlog_decay.view(), local.dbeta.view()};
    local.backward_seconds = seconds_of([&] { attention.backward(inputs, outputs, dout, results); });
  }
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    if (pass == Pass::forward || global.dout.dims() > 0) local.bytes_sent += static_cast<double>(attention.program(pass).bytes_sent());
  }
  local.exposed_seconds = attention.statistics().exposed_seconds;
  if (!on_host) {
    for (Tensor* tensor : {&local.out, &local.dq, &local.dk, &local.dv, &local.dlog_decay, &local.dbeta}) {
      if (!tensor->empty()) *tensor = to_host(*tensor, stream);
    }
  }
  return local;
}

}  // namespace periplus::launch
