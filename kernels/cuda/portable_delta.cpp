// The delta rule on matrix instructions: which kernels (linear_delta.h) give which results.
#include "kernels/cuda/portable_delta.h"

#include <vector>

#include "kernels/cuda/linear_delta.h"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/resident.h"
#include "kernels/cuda/scratch.cuh"

namespace periplus::kernels::cuda::portable::delta {
namespace {

/// body.operator()<T>() for the storage type.
template <class Body>
void visit(DType dtype, std::string_view op, const Body& body) {
  visit_dtype<bfloat16, float16>(dtype, op, body);
}

/// Runs as segments, and their chunks, numbered through.
struct Pieces {
  explicit Pieces(std::span<const UnitRun> of) {
    for (const UnitRun& run : of) {
      const std::int64_t first = std::ssize(chunks);
      const auto piece = [&](std::int64_t row0, std::int64_t rows, bool starts, std::int64_t number) {
        return Segment{run.row0 + row0,
                       static_cast<std::int32_t>(rows),
                       static_cast<std::int32_t>(run.unit),
                       starts && !run.enters ? Segment::kZero : Segment::kIncoming,
                       1,
                       run.leaves ? 1 : 0,
                       static_cast<std::int32_t>(number),
                       0};
      };
      rising.push_back(piece(0, run.rows, true, first));
      falling.push_back(rising.back());
      falling.back().before = run.leaves ? Segment::kIncoming : Segment::kZero;
      for (std::int64_t row = 0; row < run.rows; row += kLinearChunk) {
        chunks.push_back(piece(row, std::min(kLinearChunk, run.rows - row), row == 0, std::ssize(chunks)));
      }
    }
  }
  std::vector<Segment> rising, falling, chunks;
};

/// Kernels of one call, one after the other on a stream, and what they hand on.
template <class T>
class Call {
  using S = DeviceValue<T>;

 public:
  Call(const LinearShape& shape, const LinearBlock& block, const ConstTensorView& dout, std::span<const UnitRun> runs, StreamView stream)
      : shape_(shape), pieces_(runs), stream_(stream), native_(launch_stream(stream)), w_(rows() * shape.width_qk, native_) {
    delta_.q = strided<T>(block.q);
    delta_.k = strided<T>(block.k);
    delta_.v = strided<T>(block.v);
    delta_.dout = strided<T>(dout);
    delta_.log_decay = strided<float>(block.log_decay);
    delta_.beta = strided<float>(block.beta);
    delta_.heads = static_cast<std::int32_t>(shape.heads);
    delta_.width_k = static_cast<std::int32_t>(shape.width_qk);
    delta_.width_v = static_cast<std::int32_t>(shape.width_v);
    delta_.scale = static_cast<float>(block.scale);
    delta_.scratch.w = rows_of(w_, shape.width_qk);
  }

  Delta<S>& operands() { return delta_; }
  std::int64_t rows() const { return shape_.rows * shape_.heads; }
  std::int64_t chunks() const { return std::ssize(pieces_.chunks) * shape_.heads; }
  cudaStream_t native() const { return native_; }
  Strided<S> rows_of(const Scratch<S>& memory, std::int64_t width) const { return {memory.data(), shape_.heads * width, width}; }

  void prepare() { launch(pieces_.chunks, delta_, launch_delta_prepare<S>); }
  void forward(const Delta<S>& delta) { launch(pieces_.rising, delta, launch_delta_forward<S>); }
  void backward(const Delta<S>& delta) { launch(pieces_.falling, delta, launch_delta_backward<S>); }
  void gradients(const Delta<S>& delta) { launch(pieces_.chunks, delta, launch_delta_gradients<S>); }

  /// Of elements: the transition of each run.
  void store_transition(const TensorView& elements) {
    Delta<S> columns = delta_;
    columns.width_v = delta_.width_k;
    columns.scratch.u = {};
    columns.ends = {{}, true, strided<float>(elements)};
    forward(columns);
  }

 private:
  template <class Launch>
  void launch(const std::vector<Segment>& segments, Delta<S> delta, const Launch& launch) {
    const auto table = resident(std::span<const Segment>(segments), stream_);
    delta.segments = table.get();
    launch(delta, std::ssize(segments), native_);
  }
  LinearShape shape_;
  Pieces pieces_;
  StreamView stream_;
  cudaStream_t native_;
  Scratch<S> w_;
  Delta<S> delta_{};
};

/// Where the state of elements begins, behind the transition.
Strided<float> states_of(const LinearShape& shape, const TensorView& elements) {
  Strided<float> states = strided<float>(elements);
  states.data += transition_width(shape.transition, shape.width_qk);
  return states;
}

}  // namespace

void unit_states(const LinearShape& shape, const LinearBlock& block, TensorView elements, StreamView stream) {
  visit(block.k.dtype(), "unit_states", [&]<class T>() {
    const auto runs = run_of_units(shape, block.runs, [](const UnitRun& run) { return run.leaves; });
    Call<T> call(shape, block, {}, runs, stream);
    const Scratch<DeviceValue<T>> u(call.rows() * shape.width_v, call.native());
    call.operands().scratch.u = call.rows_of(u, shape.width_v);
    call.operands().ends.end = states_of(shape, elements);
    call.prepare();
    call.forward(call.operands());
    call.store_transition(elements);
  });
}

void unit_states_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView dout, TensorView elements,
                          StreamView stream) {
  visit(dout.dtype(), "unit_states_backward", [&]<class T>() {
    const auto runs = run_of_units(shape, block.runs, [](const UnitRun& run) { return run.enters; });
    Call<T> call(shape, block, dout, runs, stream);
    call.operands().v = {};
    call.operands().ends.end = states_of(shape, elements);
    call.prepare();
    call.backward(call.operands());
    call.store_transition(elements);
  });
}

void unit_apply(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, TensorView out, StreamView stream) {
  visit(out.dtype(), "unit_apply", [&]<class T>() {
    Call<T> call(shape, block, {}, block.runs, stream);
    const Scratch<DeviceValue<T>> u(call.rows() * shape.width_v, call.native());
    call.operands().scratch.u = call.rows_of(u, shape.width_v);
    call.operands().ends.start = strided<float>(incoming);
    call.operands().out = strided<T>(out);
    call.prepare();
    call.forward(call.operands());
  });
}

void unit_apply_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, ConstTensorView dout,
                         ConstTensorView doutgoing, const LinearGradients& gradients, StreamView stream) {
  visit(dout.dtype(), "unit_apply_backward", [&]<class T>() {
    using S = DeviceValue<T>;
    constexpr std::int64_t kWarps = 4;
    Call<T> call(shape, block, dout, block.runs, stream);
    const std::int64_t values = call.rows() * shape.width_v, states = call.chunks() * shape.width_qk * shape.width_v;
    const Scratch<S> inverse(call.chunks() * kLinearChunk * kLinearChunk, call.native()), u(values, call.native());
    const Scratch<S> news(values, call.native()), dnews(values, call.native());
    const Scratch<S> before(states, call.native()), behind(states, call.native());
    const Scratch<float> met(call.chunks() * kWarps, call.native());

    Delta<S>& made = call.operands();
    made.scratch.inverse = inverse.data();
    made.scratch.u = call.rows_of(u, shape.width_v);
    call.prepare();
    made.scratch.news = call.rows_of(news, shape.width_v);
    made.scratch.states = before.data();
    made.ends.start = strided<float>(incoming);
    call.forward(made);
    made.scratch.dnews = call.rows_of(dnews, shape.width_v);
    made.scratch.dstates = behind.data();
    made.scratch.met = met.data();
    made.ends.start = strided<float>(doutgoing);
    call.backward(made);
    made.dq = strided<T>(gradients.dq);
    made.dk = strided<T>(gradients.dk);
    made.dv = strided<T>(gradients.dv);
    made.dlog_decay = strided<float>(gradients.dlog_decay);
    made.dbeta = strided<float>(gradients.dbeta);
    call.gradients(made);
  });
}

}  // namespace periplus::kernels::cuda::portable::delta
