#pragma once

#include "kernels/cuda/rungs.h"
#include "tests/kernels/attention_sweep.h"
#include "tests/kernels/cuda/workbench.h"

/// The passes of tests/kernels/attention_pass.h on a CUDA device.
namespace periplus::kernels::test {

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

using CudaAttention = CudaTest;

}  // namespace periplus::kernels::test
