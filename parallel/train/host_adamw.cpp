#include "parallel/train/host_adamw.h"

#include <algorithm>
#include <vector>

namespace periplus::train {

HostAdamw::HostAdamw(Device device, DType accumulator, DType storage, std::int64_t slice)
    : accumulator_(accumulator),
      storage_(storage),
      slice_(slice),
      down_(cuda::make_stream(device.index)),
      up_(cuda::make_stream(device.index)),
      reached_(device.index) {
  for (Buffer& buffer : buffers_) {
    buffer = {cuda::PinnedBuffer(static_cast<std::size_t>(slice) * size_of(accumulator)),
              cuda::PinnedBuffer(static_cast<std::size_t>(slice) * size_of(storage)), cuda::Event(device.index), cuda::Event(device.index)};
  }
}

HostAdamw::~HostAdamw() {
  for (const Stream* stream : {&down_, &up_}) cuda::drain(*stream);
}

void HostAdamw::update(std::span<const Run> runs, kernels::AdamwOptions options, StreamView stream) {
  std::vector<Run> slices;
  for (const Run& run : runs) {
    for (std::int64_t begin = 0; begin < run.master.elements(); begin += slice_) {
      const std::int64_t count = std::min(slice_, run.master.elements() - begin);
      const auto part = [&](const auto& view) { return view.slice(0, begin, count); };
      slices.push_back({part(run.master), part(run.m), part(run.v), part(run.gradient), part(run.working), run.weight_decay});
    }
  }
  reached_.record(stream);
  reached_.order(down_);  // and with it up_: a slice goes when it has come
  const auto fetch = [&](std::size_t i) {
    if (i >= slices.size()) return;
    Buffer& buffer = buffers_[i % kBuffers];  // the host is done with its last slice
    cuda::copy_bytes(buffer.gradient.data(), slices[i].gradient.bytes(), slices[i].gradient.size_bytes(), down_);
    buffer.came.record(down_);
  };
  fetch(0);
  for (std::size_t i = 0; i < slices.size(); ++i) {
    fetch(i + 1);
    Buffer& buffer = buffers_[i % kBuffers];
    const Run& slice = slices[i];
    const TensorView gradient(buffer.gradient.data(), accumulator_, slice.gradient.shape());
    const TensorView working(buffer.working.data(), storage_, slice.working.shape());
    buffer.came.wait();
    buffer.left.wait();
    options.weight_decay = slice.weight_decay;
    kernels::adamw(slice.master, slice.m, slice.v, gradient, working, options, Stream());
    cuda::copy_bytes(slice.working.bytes(), working.bytes(), working.size_bytes(), up_);
    buffer.left.record(up_);
  }
  reached_.record(up_);
  reached_.order(stream);
}

}  // namespace periplus::train
