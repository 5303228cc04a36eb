#include "kernels/attention.h"

#include "kernels/attention_problem.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_state.h"
#include "kernels/cuda/attention.h"
#include "kernels/operands.h"
#include "kernels/reference/attention.h"

namespace periplus::kernels {
namespace {

void check_bands(std::string_view op, std::span<const Band> bands, std::int64_t query_rows, std::int64_t key_rows) {
  for (const Band& band : bands) {
    if (band.q0 >= band.q1 || band.k0 >= band.k1) continue;
    require(band.q0 >= 0 && band.q1 <= query_rows && band.k0 >= 0 && band.k1 <= key_rows,
            "{}: band of rows [{}, {}) and keys [{}, {}) leaves the block of {} rows and {} keys", op, band.q0, band.q1, band.k0, band.k1,
            query_rows, key_rows);
  }
}

AttentionShape check_block(std::string_view op, const AttentionBlock& block) {
  const auto& [q, k, v, bands, scale, softcap] = block;
  check_dims(op, "q", q);
  check_dims(op, "k", k);
  check_dims(op, "v", v);
  const AttentionShape shape{q.size(0), k.size(0), q.size(1), k.size(1), q.size(2), v.size(2)};
  require(shape.heads >= 1 && shape.kv_heads >= 1 && shape.heads % shape.kv_heads == 0,
          "{}: {} query heads cannot share {} key/value heads; the first must be a multiple of the second", op, shape.heads,
          shape.kv_heads);
  require(shape.width_qk >= 1 && shape.width_v >= 1, "{}: head widths {} and {} must be at least 1", op, shape.width_qk, shape.width_v);
  require(softcap >= 0, "{}: softcap {} must not be negative; 0 turns it off", op, softcap);
  check_operand(op, "q", q, q.shape(), q.dtype());
  check_operand(op, "k", k, {shape.key_rows, shape.kv_heads, shape.width_qk}, q.dtype());
  check_operand(op, "v", v, {shape.key_rows, shape.kv_heads, shape.width_v}, q.dtype());
  check_bands(op, bands, shape.query_rows, shape.key_rows);
  return shape;
}

cpu::RowShape row_shape(const ConstTensorView& view) { return {view.size(0), view.size(1), view.size(2)}; }

}  // namespace

void attend(const AttentionBlock& block, const AttentionState& state, Update update, StreamView stream) {
  constexpr std::string_view op = "attend";
  const AttentionShape shape = check_block(op, block);
  const DType accumulator = accumulator_of(block.q.dtype());
  check_operand(op, "state.out", state.out, {shape.query_rows, shape.heads, shape.width_v}, accumulator);
  check_operand(op, "state.lse", state.lse, {shape.query_rows, shape.heads, 1}, accumulator);
  if (on_cuda(stream)) return cuda::attend(shape, block, state, update, stream);
  visit_storage(block.q.dtype(), op, [&]<class S>() {
    using A = Accumulator<S>;
    const ForwardProblem<S, A> problem{shape,
                                       block.scale,
                                       block.softcap,
                                       strided<S>(block.q),
                                       strided<S>(block.k),
                                       strided<S>(block.v),
                                       strided<A>(state.out),
                                       strided<A>(state.lse),
                                       update == Update::overwrite};
    if constexpr (std::is_same_v<S, double>) {
      reference::attend(problem, block.bands, stream);
    } else {
      cpu::attend(problem, block.bands, stream);
    }
  });
}

void attend_backward(const AttentionBlock& block, ConstTensorView dout, ConstTensorView lse, ConstTensorView delta,
                     const AttentionGradients& gradients, StreamView stream) {
  constexpr std::string_view op = "attend_backward";
  const AttentionShape shape = check_block(op, block);
  const DType accumulator = accumulator_of(block.q.dtype());
  check_operand(op, "dout", dout, {shape.query_rows, shape.heads, shape.width_v}, block.q.dtype());
  check_operand(op, "lse", lse, {shape.query_rows, shape.heads, 1}, accumulator);
  check_operand(op, "delta", delta, {shape.query_rows, shape.heads, 1}, accumulator);
  check_operand(op, "dq", gradients.dq, block.q.shape(), accumulator);
  check_operand(op, "dk", gradients.dk, block.k.shape(), accumulator);
  check_operand(op, "dv", gradients.dv, block.v.shape(), accumulator);
  if (on_cuda(stream)) return cuda::attend_backward(shape, block, dout, lse, delta, gradients, stream);
  visit_storage(block.q.dtype(), op, [&]<class S>() {
    using A = Accumulator<S>;
    const BackwardProblem<S, A> problem{shape,
                                        block.scale,
                                        block.softcap,
                                        strided<S>(block.q),
                                        strided<S>(block.k),
                                        strided<S>(block.v),
                                        strided<S>(dout),
                                        strided<A>(lse),
                                        strided<A>(delta),
                                        strided<A>(gradients.dq),
                                        strided<A>(gradients.dk),
                                        strided<A>(gradients.dv),
                                        gradients.update_dq == Update::overwrite,
                                        gradients.update_dkdv == Update::overwrite};
    if constexpr (std::is_same_v<S, double>) {
      reference::attend_backward(problem, block.bands, stream);
    } else {
      cpu::attend_backward(problem, block.bands, stream);
    }
  });
}

void merge(ConstTensorView part_out, ConstTensorView part_lse, const AttentionState& state, StreamView stream) {
  constexpr std::string_view op = "merge";
  check_dims(op, "state.out", state.out);
  const DType dtype = state.out.dtype();
  const Extents& shape = state.out.shape();
  const Extents lse_shape{shape[0], shape[1], 1};
  check_operand(op, "state.out", state.out, shape, dtype);
  check_operand(op, "state.lse", state.lse, lse_shape, dtype);
  check_operand(op, "part_out", part_out, shape, dtype);
  check_operand(op, "part_lse", part_lse, lse_shape, dtype);
  if (on_cuda(stream)) return cuda::merge(part_out, part_lse, state, stream);
  visit_dtype<double, float>(dtype, op, [&]<class A>() {
    cpu::merge<A>(row_shape(state.out), strided<A>(part_out), strided<A>(part_lse), strided<A>(state.out), strided<A>(state.lse), stream);
  });
}

void finish(ConstTensorView state_out, ConstTensorView state_lse, ConstTensorView sink, TensorView out, TensorView lse, StreamView stream) {
  constexpr std::string_view op = "finish";
  check_dims(op, "state_out", state_out);
  const DType dtype = state_out.dtype();
  const Extents& shape = state_out.shape();
  const Extents lse_shape{shape[0], shape[1], 1};
  check_operand(op, "state_out", state_out, shape, dtype);
  check_operand(op, "state_lse", state_lse, lse_shape, dtype);
  if (given(sink)) check_operand(op, "sink", sink, {1, shape[1], 1}, dtype);
  check_operand(op, "out", out, shape, out.dtype());
  check_operand(op, "lse", lse, lse_shape, dtype);
  require(accumulator_of(out.dtype()) == dtype, "{}: out is {}, which does not go with a state of {}", op, to_string(out.dtype()),
          to_string(dtype));
  if (on_cuda(stream)) return cuda::finish(state_out, state_lse, sink, out, lse, stream);
  visit_storage(out.dtype(), op, [&]<class S>() {
    using A = Accumulator<S>;
    cpu::finish<A, S>(row_shape(out), strided<A>(state_out), strided<A>(state_lse), strided_or_null<A>(sink), strided<S>(out),
                      strided<A>(lse), stream);
  });
}

void delta(ConstTensorView dout, ConstTensorView out, ConstTensorView lse, ConstTensorView dlse, ConstTensorView sink, TensorView delta,
           TensorView dsink, StreamView stream) {
  constexpr std::string_view op = "delta";
  check_dims(op, "dout", dout);
  const Extents& shape = dout.shape();
  const Extents row_scalar{shape[0], shape[1], 1};
  const Extents head_scalar{1, shape[1], 1};
  const DType dtype = accumulator_of(dout.dtype());
  check_operand(op, "dout", dout, shape, dout.dtype());
  check_operand(op, "out", out, shape, out.dtype());
  check_operand(op, "lse", lse, row_scalar, dtype);
  if (given(dlse)) check_operand(op, "dlse", dlse, row_scalar, dtype);
  check_operand(op, "delta", delta, row_scalar, dtype);
  if (given(dsink)) {
    require(given(sink), "{}: dsink is given without sink", op);
    check_operand(op, "sink", sink, head_scalar, dtype);
    check_operand(op, "dsink", dsink, head_scalar, dtype);
  }
  require(accumulator_of(out.dtype()) == dtype, "{}: out is {} but dout is {}", op, to_string(out.dtype()), to_string(dout.dtype()));
  if (on_cuda(stream)) return cuda::delta(dout, out, lse, dlse, sink, delta, dsink, stream);
  visit_storage(dout.dtype(), op, [&]<class S>() {
    using A = Accumulator<S>;
    const auto run = [&]<class O>() {
      cpu::delta<A, S, O>(row_shape(dout), strided<S>(dout), strided<O>(out), strided_or_null<A>(dlse), strided<A>(delta), stream);
    };
    if constexpr (std::is_same_v<S, double>) {
      visit_dtype<double>(out.dtype(), op, run);
    } else {
      visit_dtype<float, bfloat16, float16>(out.dtype(), op, run);
    }
    if (given(dsink)) {
      cpu::sink_gradient<A>(row_shape(dout), strided<A>(lse), strided<A>(sink), strided<A>(ConstTensorView(delta)), strided<A>(dsink),
                            stream);
    }
  });
}

}  // namespace periplus::kernels
