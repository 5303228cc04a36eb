#include "launch/attention_run.h"

#include "launch/pass_time.h"
#include "launch/rows.h"
#include "runtime/cuda/device.h"

namespace periplus::launch {
namespace {

bool present(const ConstTensorView& view) { return view.dims() > 0; }

ConstTensorView view_of(const Tensor& tensor) { return tensor.empty() ? ConstTensorView() : ConstTensorView(tensor); }

}  // namespace

Stream stream_on(Device device) { return device.kind == DeviceKind::cuda ? cuda::make_stream(device.index) : Stream(); }

LocalAttention run_attention(const AttentionProblem& problem, const AttentionOptions& options, const GlobalAttention& global,
                             const comm::Communicator& communicator, const Memory& memory, const Stream& stream) {
  const SequenceLayout& layout = problem.layout;
  const int rank = communicator.rank();
  const bool on_host = memory.device().kind == DeviceKind::cpu;
  const Memory host;
  const auto mine = [&](const ConstTensorView& whole) {
    Tensor local = take_rows(whole, layout, rank, on_host ? memory : host);
    return on_host ? std::move(local) : to_device(local, memory, stream);
  };
  const std::int64_t rows = layout.rows_of(rank);
  const Tensor q = mine(global.q), k = mine(global.k), v = mine(global.v);
  const Tensor sink = present(global.sink) ? to_device(global.sink, memory, stream) : Tensor();

  LocalAttention local;
  local.out = Tensor({rows, problem.q_heads, problem.value_size}, problem.dtype, memory);
  local.lse = Tensor({rows, problem.q_heads, 1}, accumulator_of(problem.dtype), memory);
  DistributedAttention attention(problem, options, communicator, memory, nullptr, stream);
  const AttentionInputs inputs{.q = q, .k = k, .v = v, .sink = view_of(sink)};
  const AttentionOutputs outputs{local.out, local.lse};
  const auto seconds_of = [&](const auto& pass) { return seconds_of_pass(communicator, stream, pass); };
  local.forward_seconds = seconds_of([&] { attention.forward(inputs, outputs); });

  if (present(global.dout)) {
    const Tensor dout = mine(global.dout), dlse = present(global.dlse) ? mine(global.dlse) : Tensor();
    local.dq = Tensor(q.shape(), problem.dtype, memory);
    local.dk = Tensor(k.shape(), problem.dtype, memory);
    local.dv = Tensor(v.shape(), problem.dtype, memory);
    AttentionInputGradients results{local.dq, local.dk, local.dv};
    if (problem.sink) {
      local.dsink = Tensor::zeros({1, problem.q_heads, 1}, accumulator_of(problem.dtype), memory);
      results.dsink = local.dsink;
    }
    local.backward_seconds = seconds_of([&] { attention.backward(inputs, outputs, {dout, view_of(dlse)}, results); });
  }
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    if (pass == Pass::forward || present(global.dout)) local.bytes_sent += static_cast<double>(attention.program(pass).bytes_sent());
  }
  local.exposed_seconds = attention.statistics().exposed_seconds;
  if (!on_host) {
    for (Tensor* tensor : {&local.out, &local.lse, &local.dq, &local.dk, &local.dv, &local.dsink}) {
      if (!tensor->empty()) *tensor = to_host(*tensor, stream);
    }
  }
  return local;
}

}  // namespace periplus::launch
