// Linear attention on matrix instructions: which walks (portable_linear.cuh) give which results.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/cuda/hopper_linear.h"
#include "kernels/cuda/linear_fold.h"
#include "kernels/cuda/linear_rungs.h"
#include "kernels/cuda/linear_walk.h"
#include "kernels/cuda/operands.cuh"
#include "kernels/cuda/portable_delta.h"
#include "kernels/cuda/resident.h"
#include "kernels/cuda/rung.h"
#include "kernels/cuda/scratch.cuh"
#include "runtime/cuda/device.h"

namespace periplus::kernels::cuda::portable {
namespace {

/// Of `walks` walks in each: a multiprocessor takes two, or one block on the hopper rung.
std::int64_t blocks_at_once(int walks, bool on_hopper, StreamView stream) {
  return (on_hopper ? 1 : 2 / walks) * periplus::cuda::known_properties(stream.device().index).multiprocessors;
}

/// Whether passes over tokens run on the hopper rung, which takes the scale as an exponent. Narrow heads would leave half of its tiles
/// empty.
bool runs_hopper(const LinearShape& shape, const LinearBlock& block, StreamView stream) {
  return shape.transition != Transition::diagonal && std::max(shape.width_qk, shape.width_v) > 64 && block.scale > 0 &&
         best_rung(stream.device().index) >= Rung::hopper;
}

/// A tile's rows are addressed by 32-bit numbers of elements.
bool fits(const ConstTensorView& view) {
  return view.dims() == 0 || (aligned(view, 16) && view.size(2) % 8 == 0 && view.size(2) <= 128 &&
                              std::abs(view.stride(0)) <= std::numeric_limits<std::int32_t>::max() / kLinearChunk);
}

template <class T>
using Device = DeviceValue<T>;

/// body.operator()<T>() for the storage type.
template <class Body>
void visit(DType dtype, std::string_view op, const Body& body) {
  visit_dtype<bfloat16, float16>(dtype, op, body);
}

template <class T>
Walk<Device<T>> walk_of(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v, const ConstTensorView& log_decay,
                        bool reverse) {
  Walk<Device<T>> walk{};
  walk.q = strided<T>(q);
  walk.k = strided<T>(k);
  walk.v = strided<T>(v);
  walk.log_decay = strided<float>(log_decay);
  walk.by_channel = log_decay.dims() > 0 && log_decay.size(2) > 1;
  walk.heads = static_cast<std::int32_t>(k.size(1));
  walk.width_k = static_cast<std::int32_t>(k.size(2));
  walk.width_v = static_cast<std::int32_t>(v.size(2));
  walk.slot_row = walk.width_v;
  walk.slot_column = 1;
  walk.scale_values = walk.scale_out = walk.scale_incoming = 1;
  walk.reverse = reverse;
  return walk;
}

template <class T>
std::int64_t numbers_of(const Walk<T>& walk) {
  return std::int64_t{walk.width_k} * walk.width_v;
}

/// Numbers of a segment's decay.
template <class T>
std::int64_t decays_of(const Walk<T>& walk) {
  return walk.by_channel ? walk.width_k : 1;
}
template <class T>
void launch_own_states(const Walk<T>& walk, std::int64_t segments, cudaStream_t stream) {
  walk.by_channel ? launch_channel_states(walk, segments, stream) : launch_states(walk, segments, stream);
}
template <class T>
SlotStates states_of(const Walk<T>& walk) {
  return {walk.slots, walk.totals, walk.heads, numbers_of(walk), decays_of(walk)};
}

template <class V>
std::shared_ptr<const V> on_device(const std::vector<V>& values, StreamView stream) {
  return resident(std::span<const V>(values), stream);
}

/// Slots and totals of `segments` segments.
struct Slots {
  template <class T>
  Slots(std::int64_t segments, const Walk<T>& walk, cudaStream_t stream)
      : states(segments * walk.heads * numbers_of(walk), stream), totals(segments * walk.heads * decays_of(walk), stream) {}
  template <class T>
  void give(Walk<T>& walk) const {
    walk.slots = states.data();
    walk.totals = totals.data();
  }
  Scratch<float> states, totals;
};

/// Runs cut for walks in one direction on `blocks` blocks, and where they are cut the states between segments: each segment's own, made in
/// the roles of `feeder`, folded in the order of the walk.
template <class T>
class CutRuns {
 public:
  CutRuns(Walk<T> feeder, std::int64_t blocks, std::span<const UnitRun> runs, StreamView stream) {
    const cudaStream_t native = launch_stream(stream);
    const Segments segments = cut_for_pass(runs, feeder.heads, blocks, feeder.reverse);
    all_ = on_device(segments.all, stream);
    count_ = std::ssize(segments.all);
    if (segments.feeding.empty()) return;
    slots_.emplace(std::ssize(segments.feeding), feeder, native);
    slots_->give(feeder);
    const auto feeding = on_device(segments.feeding, stream);
    feeder.segments = feeding.get();
    launch_own_states(feeder, std::ssize(segments.feeding), native);
    fold_slots(states_of(feeder), on_device(segments.folds, stream).get(), std::ssize(segments.folds), native);
  }
  void give(Walk<T>& walk) const {
    walk.segments = all_.get();
    if (slots_) walk.slots = slots_->states.data();
  }
  std::int64_t count() const { return count_; }

 private:
  std::shared_ptr<const Segment> all_;
  std::int64_t count_;
  std::optional<Slots> slots_;
};

/// Results of walks in one direction, whose slots are laid out by the first.
template <class T, int groups>
void run_pass(WalkSet<T, groups> walks, bool on_hopper, std::span<const UnitRun> runs, StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  const CutRuns<T> cut(walks.walk[0], blocks_at_once(groups, on_hopper, stream), runs, stream);
  for (Walk<T>& each : walks.walk) cut.give(each);
  const Walk<T>& walk = walks.walk[0];
  if (on_hopper) {
    hopper::launch_linear(walks, cut.count(), native);
  } else if constexpr (groups == 2) {
    launch_gradients(walks, cut.count(), native);
  } else if (walk.decay_gradient.dots != nullptr) {
    launch_gradients(walk, cut.count(), native);
  } else if (walk.by_channel) {
    launch_channel_results(walk, cut.count(), native);
  } else {
    launch_results(walk, cut.count(), native);
  }
}

/// Elements: from the run of each unit that `picks` wants.
template <class T, class Picks>
void make_elements(Walk<T> walk, const LinearShape& shape, std::span<const UnitRun> runs, const Picks& picks, const TensorView& elements,
                   StreamView stream) {
  const cudaStream_t native = launch_stream(stream);
  std::vector<UnitRun> of_units(static_cast<std::size_t>(shape.units));
  std::vector<std::int64_t> closing(static_cast<std::size_t>(shape.units), -1);
  for (const UnitRun& run : runs) {
    if (!picks(run)) continue;
    of_units[static_cast<std::size_t>(run.unit)] = run;
    // A state's gradient is that behind its token; before the run's first token, that token's decay has acted on it too.
    if (walk.reverse) closing[static_cast<std::size_t>(run.unit)] = run.row0;
  }
  const Segments segments = cut_for_elements(of_units, walk.heads, blocks_at_once(1, false, stream), walk.reverse);
  const Slots slots(std::ssize(segments.feeding), walk, native);
  slots.give(walk);
  const auto feeding = on_device(segments.feeding, stream);
  walk.segments = feeding.get();
  launch_own_states(walk, std::ssize(segments.feeding), native);
  fold_elements(states_of(walk), on_device(segments.folds, stream).get(), shape.units, shape.decay_width, walk.log_decay,
                on_device(closing, stream).get(), strided<float>(elements), native);
}

}  // namespace

bool supports(const LinearShape& shape, const LinearBlock& block, std::initializer_list<ConstTensorView> operands) {
  const float scale = static_cast<float>(block.scale);
  if (!std::isnormal(scale) || !std::isnormal(1 / scale)) return false;
  if (shape.transition == Transition::dense && shape.decay_width > 1) return false;
  if (shape.transition == Transition::diagonal && !aligned(block.log_decay, 16)) return false;
  return std::ranges::all_of(operands, [](const ConstTensorView& view) {
    return view.dims() == 0 || ((view.dtype() == DType::bf16 || view.dtype() == DType::f16) && fits(view));
  });
}

void unit_states(const LinearShape& shape, const LinearBlock& block, TensorView elements, StreamView stream) {
  if (shape.transition == Transition::dense) return delta::unit_states(shape, block, elements, stream);
  visit(block.k.dtype(), "unit_states", [&]<class T>() {
    make_elements(
        walk_of<T>({}, block.k, block.v, block.log_decay, false), shape, block.runs, [](const UnitRun& run) { return run.leaves; },
        elements, stream);
  });
}

void unit_states_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView dout, TensorView elements,
                          StreamView stream) {
  if (shape.transition == Transition::dense) return delta::unit_states_backward(shape, block, dout, elements, stream);
  visit(dout.dtype(), "unit_states_backward", [&]<class T>() {
    auto walk = walk_of<T>({}, block.q, dout, block.log_decay, true);
    walk.scale_values = static_cast<float>(block.scale);
    make_elements(
        walk, shape, block.runs, [](const UnitRun& run) { return run.enters; }, elements, stream);
  });
}

void unit_apply(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, TensorView out, StreamView stream) {
  if (shape.transition == Transition::dense) return delta::unit_apply(shape, block, incoming, out, stream);
  visit(out.dtype(), "unit_apply", [&]<class T>() {
    auto walk = walk_of<T>(block.q, block.k, block.v, block.log_decay, false);
    walk.out = strided<T>(out);
    walk.scale_out = static_cast<float>(block.scale);
    walk.incoming = strided<float>(incoming);
    walk.state_row = static_cast<std::int32_t>(shape.width_v);
    walk.state_column = 1;
    run_pass(WalkSet<Device<T>, 1>{{walk}}, runs_hopper(shape, block, stream), block.runs, stream);
  });
}

namespace {

/// Notes of the two walks for the gradient of the decay.
template <class T>
class Notes {
 public:
  Notes(const LinearShape& shape, bool on_hopper, std::span<const UnitRun> runs, cudaStream_t stream)
      : shape_(shape),
        by_channel_(shape.transition == Transition::diagonal),
        parts_(by_channel_ ? NoteParts{shape.width_qk, shape.width_qk, shape.width_qk}
               : on_hopper ? NoteParts{2, 1, 8}
                           : NoteParts{4, 4, 4}),
        blocks_(decay_blocks(runs)),
        dots_of_q_(parts_.of_q * shape.rows * shape.heads, stream),
        dots_of_k_(parts_.of_k * shape.rows * shape.heads, stream),
        states_(std::ssize(blocks_) * shape.heads * kMostPairs, stream),
        ends_(std::ssize(blocks_) * shape.heads * parts_.of_ends, stream) {}

  void give(Walk<Device<T>>& walk, const ConstTensorView& partner, const ConstTensorView& doutgoing) const {
    float* const dots = walk.reverse ? dots_of_k_.data() : dots_of_q_.data();
    walk.decay_gradient = {strided<T>(partner), dots, shape_.rows, states_.data(), ends_.data(), strided<float>(doutgoing)};
  }
  void sum(const ConstTensorView& log_decay, const TensorView& dlog_decay, StreamView stream) const {
    const auto on = on_device(blocks_, stream);
    const DecayBlock* const blocks = on.get();
    const auto from = strided<float>(log_decay);
    const auto to = strided<float>(dlog_decay);
    if (by_channel_) {
      sum_channel_gradient({dots_of_q_.data(), dots_of_k_.data(), ends_.data(), shape_.heads, shape_.width_qk}, blocks, std::ssize(blocks_),
                           from, to, launch_stream(stream));
    } else {
      sum_decay_gradient({dots_of_q_.data(), dots_of_k_.data(), ends_.data(), shape_.rows, shape_.heads, parts_}, blocks,
                         std::ssize(blocks_), from, to, launch_stream(stream));
    }
  }

 private:
  static constexpr std::int64_t kMostPairs = 128 * 128 / 2;
  LinearShape shape_;
  bool by_channel_;
  NoteParts parts_;  ///< Of the sums over a row: by warps, or channels.
  std::vector<DecayBlock> blocks_;
  Scratch<float> dots_of_q_, dots_of_k_;
  Scratch<std::uint32_t> states_;
  Scratch<float> ends_;
};

}  // namespace

/// Three walks, the last two in one launch:
///   dq rising,  with dout, v, k as q, k, v;  the state is that of the outputs, transposed
///   dk falling, with v, dout, q;             the gradient of the state, transposed
///   dv falling, with k, q, dout
/// The scale of q is a factor of all results; so dq and dk round the same numbers, which the gradient of the decay relies on. With a decay
/// by channel each is a launch of its own, and states between segments are laid out as dv's walk has them.
void unit_apply_backward(const LinearShape& shape, const LinearBlock& block, ConstTensorView incoming, ConstTensorView dout,
                         ConstTensorView doutgoing, const LinearGradients& gradients, StreamView stream) {
  if (shape.transition == Transition::dense) {
    return delta::unit_apply_backward(shape, block, incoming, dout, doutgoing, gradients, stream);
  }
  visit(dout.dtype(), "unit_apply_backward", [&]<class T>() {
    const auto scale = static_cast<float>(block.scale);
    const auto width_v = static_cast<std::int32_t>(shape.width_v);
    const bool on_hopper = runs_hopper(shape, block, stream);
    std::optional<Notes<T>> notes;
    if (shape.decay_width > 0) notes.emplace(shape, on_hopper, block.runs, launch_stream(stream));

    auto dq = walk_of<T>(dout, block.v, block.k, block.log_decay, false);
    dq.out = strided<T>(gradients.dq);
    dq.scale_out = scale;
    dq.incoming = strided<float>(incoming);
    dq.state_row = 1, dq.state_column = width_v;
    if (notes) notes->give(dq, block.q, doutgoing);
    if (dq.by_channel) {
      dq.slot_row = 1, dq.slot_column = width_v;
      auto feeder = walk_of<T>({}, block.k, block.v, block.log_decay, false);
      feeder.incoming = dq.incoming;
      feeder.state_row = width_v, feeder.state_column = 1;
      const CutRuns<Device<T>> cut(feeder, blocks_at_once(1, false, stream), block.runs, stream);
      cut.give(dq);
      launch_channel_gradients(dq, cut.count(), launch_stream(stream));
    } else {
      run_pass(WalkSet<Device<T>, 1>{{dq}}, on_hopper, block.runs, stream);
    }

    auto dk = walk_of<T>(block.v, dout, block.q, block.log_decay, true);
    dk.out = strided<T>(gradients.dk);
    dk.scale_out = scale;
    dk.scale_incoming = 1 / scale;
    dk.incoming = strided<float>(doutgoing);
    dk.state_row = 1, dk.state_column = width_v;
    if (notes) notes->give(dk, block.k, doutgoing);
    dk.slot_row = 1, dk.slot_column = width_v;  // as dv's walk has them

    auto dv = walk_of<T>(block.k, block.q, dout, block.log_decay, true);
    dv.out = strided<T>(gradients.dv);
    dv.scale_out = scale;
    dv.scale_incoming = 1 / scale;
    dv.incoming = strided<float>(doutgoing);
    dv.state_row = width_v, dv.state_column = 1;
    if (on_hopper && notes) {  // there it is dv's walk that meets the states (hopper_linear.h)
      dv.decay_gradient = dk.decay_gradient;
      dv.decay_gradient.dots = nullptr;
    }
    if (dv.by_channel) {
      const CutRuns<Device<T>> cut(dv, blocks_at_once(1, false, stream), block.runs, stream);
      cut.give(dv), cut.give(dk);
      launch_channel_results(dv, cut.count(), launch_stream(stream));
      launch_channel_gradients(dk, cut.count(), launch_stream(stream));
    } else {
      run_pass(WalkSet<Device<T>, 2>{{dv, dk}}, on_hopper, block.runs, stream);
    }
    if (notes) notes->sum(block.log_decay, gradients.dlog_decay, stream);
  });
}

}  // namespace periplus::kernels::cuda::portable
