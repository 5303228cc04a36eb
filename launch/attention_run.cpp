#include "launch/attention_run.h"

#include <chrono>
#include <cstring>

#include "runtime/cuda/device.h"

namespace periplus::launch {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

bool present(const ConstTensorView& view) { return view.dims() > 0; }

ConstTensorView view_of(const Tensor& tensor) { return tensor.empty() ? ConstTensorView() : ConstTensorView(tensor); }

Extents with_rows(const Extents& shape, std::int64_t rows) {
  Extents result = shape;
  result[0] = rows;
  return result;
}

std::size_t row_bytes(const ConstTensorView& tensor) {
  std::size_t bytes = size_of(tensor.dtype());
  for (int dim = 1; dim < tensor.dims(); ++dim) bytes *= static_cast<std::size_t>(tensor.size(dim));
  return bytes;
}

}  // namespace

Tensor take_rows(ConstTensorView whole, const SequenceLayout& layout, int rank, const Memory& memory) {
  Tensor local(with_rows(whole.shape(), layout.rows_of(rank)), whole.dtype(), memory);
  const std::size_t bytes = row_bytes(whole);
  std::byte* to = local.view().bytes();
  for (const std::int64_t row : layout.global_rows(rank)) {
    std::memcpy(to, whole.bytes() + static_cast<std::size_t>(row) * bytes, bytes);
    to += bytes;
  }
  return local;
}

void put_rows(ConstTensorView local, const SequenceLayout& layout, int rank, TensorView whole) {
  const std::size_t bytes = row_bytes(local);
  const std::byte* from = local.bytes();
  for (const std::int64_t row : layout.global_rows(rank)) {
    std::memcpy(whole.bytes() + static_cast<std::size_t>(row) * bytes, from, bytes);
    from += bytes;
  }
}

Tensor gather_rows(ConstTensorView local, const SequenceLayout& layout, const comm::Communicator& communicator, const Memory& memory) {
  const Stream stream;
  const comm::Purpose purpose{.operation = "gather result", .lane = comm::kCollectiveLane};
  if (communicator.rank() != 0) {
    const comm::Send send{0, local.bytes(), local.size_bytes()};
    communicator.exchange({&send, 1}, {}, purpose, stream).wait();
    return {};
  }
  Tensor whole(with_rows(local.shape(), layout.tokens()), local.dtype(), memory);
  put_rows(local, layout, 0, whole);
  for (int rank = 1; rank < communicator.size(); ++rank) {
    const Tensor part(with_rows(local.shape(), layout.rows_of(rank)), local.dtype(), memory);
    const comm::Receive receive{rank, part.view().bytes(), part.view().size_bytes()};
    communicator.exchange({}, {&receive, 1}, purpose, stream).wait();
    put_rows(part, layout, rank, whole);
  }
  return whole;
}

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
  const auto seconds_of = [&](const auto& pass) {
    communicator.barrier(Stream());
    const auto begin = Clock::now();
    pass();
    cuda::synchronize(stream);
    communicator.throw_if_failed();
    return seconds_since(begin);
  };
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
  local.exposed_seconds = attention.statistics().exposed_seconds;
  if (!on_host) {
    for (Tensor* tensor : {&local.out, &local.lse, &local.dq, &local.dk, &local.dv, &local.dsink}) {
      if (!tensor->empty()) *tensor = to_host(*tensor, stream);
    }
  }
  return local;
}

}  // namespace periplus::launch
