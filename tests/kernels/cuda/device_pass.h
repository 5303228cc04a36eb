#pragma once

#include "kernels/cuda/rungs.h"
#include "runtime/cuda/device.h"
#include "runtime/memory.h"
#include "tests/kernels/attention_sweep.h"

/// The passes of tests/kernels/attention_pass.h on a CUDA device.
namespace periplus::kernels::test {

/// Device memory that a test uses again and again, and a stream; made on first use.
class Workbench {
 public:
  static Workbench& get() {
    static Workbench bench;
    return bench;
  }
  const Stream& stream() const { return stream_; }
  void clear() { used_ = 0; }

  /// A copy on the device, gaps included, at the same strides.
  template <class T>
  TensorView put(Host<T>& host) {
    const TensorView view = host.view();
    std::byte* const to = buffer_.data() + used_;
    used_ += (host.raw().size() * sizeof(T) + 255) / 256 * 256;
    if (used_ > buffer_.bytes()) throw InternalError("the test's device memory is full");
    copy_now(to, view.bytes(), host.raw().size() * sizeof(T));
    return {to, view.dtype(), view.shape(), view.strides()};
  }
  template <class T>
  void take(ConstTensorView from, Host<T>& host) {
    copy_now(host.view().bytes(), from.bytes(), host.raw().size() * sizeof(T));
  }

 private:
  void copy_now(void* to, const void* from, std::size_t bytes) {
    periplus::cuda::copy_bytes(to, from, bytes, stream_);
    periplus::cuda::synchronize(stream_);
  }
  Stream stream_ = periplus::cuda::make_stream(0);
  Buffer buffer_{std::size_t{256} << 20, Memory({DeviceKind::cuda, 0})};
  std::size_t used_ = 0;
};

/// The operands and results of a pass on the device.
template <class S, class A>
struct DevicePass {
  explicit DevicePass(Pass<S, A>& host, const Case& of) : c(of), pass(host) {
    Workbench& bench = Workbench::get();
    bench.clear();
    for (auto [view, from] : {std::pair{&q, &host.q}, {&k, &host.k}, {&v, &host.v}, {&dout, &host.dout}}) *view = bench.put(*from);
    for (auto [view, from] : results()) *view = bench.put(*from);
    delta = bench.put(host.delta);
  }

  cuda::ForwardCall forward_call() const { return {shape(), {q, k, v, c.bands, c.scale, c.softcap}, {out, lse}, c.update}; }
  cuda::BackwardCall backward_call() const {
    return {shape(), {q, k, v, c.bands, c.scale, c.softcap}, dout, lse, delta, {dq, dk, dv, c.update, c.update}};
  }
  void forward() const {
    const auto call = forward_call();
    attend(call.block, call.state, call.update, Workbench::get().stream());
  }
  void backward() const {
    const auto call = backward_call();
    attend_backward(call.block, dout, lse, delta, call.gradients, Workbench::get().stream());
  }
  /// Back into the pass it came from.
  void take_results() {
    for (auto [view, to] : results()) Workbench::get().take(*view, *to);
  }

  Case c;
  Pass<S, A>& pass;
  TensorView q, k, v, dout, out, lse, delta, dq, dk, dv;

 private:
  AttentionShape shape() const { return {c.query_rows, c.key_rows, c.heads, c.kv_heads, c.width_qk, c.width_v}; }
  std::array<std::pair<TensorView*, Host<A>*>, 5> results() {
    return {{{&out, &pass.out}, {&lse, &pass.lse}, {&dq, &pass.dq}, {&dk, &pass.dk}, {&dv, &pass.dv}}};
  }
};

inline constexpr auto kDeviceForward = []<class S, class A>(Pass<S, A>& pass, const Case& c) {
  DevicePass<S, A> device(pass, c);
  device.forward();
  device.take_results();
};
inline constexpr auto kDeviceBackward = []<class S, class A>(Pass<S, A>& pass, const Case& c) {
  DevicePass<S, A> device(pass, c);
  device.backward();
  device.take_results();
};

/// Skips without a device; restores the highest rung.
class CudaAttention : public testing::Test {
 protected:
  void SetUp() override {
    if (periplus::cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device: " << periplus::cuda::unavailable_reason();
  }
  ~CudaAttention() override { cuda::set_highest_rung(rung_); }

 private:
  cuda::Rung rung_ = cuda::highest_rung();
};

}  // namespace periplus::kernels::test
