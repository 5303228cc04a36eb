#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_fold.h"
#include "kernels/cuda/operands.cuh"

namespace periplus::kernels::cuda {
namespace {

constexpr unsigned kThreads = 256;

/// Decay of a slot's segment, for a number of the state.
__device__ float total_of(const SlotStates& states, std::int64_t slot, std::int64_t head, std::int64_t number) {
  return states.totals[(slot * states.heads + head) * states.decays + number / (states.numbers / states.decays)];
}

/// A thread has one number of the state.
__global__ void __launch_bounds__(kThreads) fold_in_place(const SlotStates states, const Segments::Fold* folds) {
  const Segments::Fold fold = folds[blockIdx.y];
  const std::int64_t head = blockIdx.z, number = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (number >= states.numbers) return;
  const auto slot = [&](std::int64_t i) { return states.slots + ((fold.first + i) * states.heads + head) * states.numbers + number; };
  float state = *slot(0);
  for (std::int64_t i = 1; i < fold.count; ++i) {
    state = total_of(states, fold.first + i, head, number) * state + *slot(i);
    *slot(i) = state;
  }
}

__global__ void __launch_bounds__(kThreads)
    fold_to_elements(const SlotStates states, const Segments::Fold* folds, std::int64_t decay_width, const Strided<const float> log_decay,
                     const std::int64_t* closing, const Strided<float> elements) {
  const std::int64_t unit = blockIdx.y, number = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int head = static_cast<int>(blockIdx.z);
  if (number >= states.numbers) return;
  const Segments::Fold fold = folds[unit];
  const std::int64_t of_decay = states.numbers / states.decays;
  float state = 0, transition = 1;
  for (std::int64_t i = fold.first; i < fold.first + fold.count; ++i) {
    const float total = total_of(states, i, head, number);
    state = (i == fold.first ? 0.0f : total * state) + states.slots[(i * states.heads + head) * states.numbers + number];
    transition *= total;
  }
  if (log_decay.data != nullptr && closing[unit] >= 0) {
    const float factor = exp(at(log_decay, closing[unit], head)[number / of_decay]);
    state *= factor;
    transition *= factor;
  }
  float* const to = at(elements, unit, head);
  to[decay_width + number] = state;
  if (decay_width > 0 && number % of_decay == 0) to[number / of_decay] = transition;
}

/// <S, dS> behind a block, of the decayed state that the next token finds.
__device__ float behind_block(const DecayNotes& notes, const DecayBlock& block, std::int64_t number, int head,
                              const Strided<const float>& log_decay) {
  float sum = 0;
  for (int part = 0; part < notes.parts.of_ends; ++part) sum += notes.ends[(number * notes.heads + head) * notes.parts.of_ends + part];
  return block.ends ? sum : sum * exp(*at(log_decay, block.row0 + block.rows, head));
}

/// A warp has a block of one head, and takes 32 tokens at a time from its end. The walk through the block ends where another value is
/// known: that behind the block before, or 0 where a document begins. What it is off by there grew step by step (a random walk), so
/// each token gives back its share of steps.
__global__ void __launch_bounds__(32)
    sum_block(const DecayNotes notes, const DecayBlock* blocks, const Strided<const float> log_decay, const Strided<float> dlog_decay) {
  const std::int64_t number = blockIdx.x / notes.heads;
  const DecayBlock block = blocks[number];
  const int head = static_cast<int>(blockIdx.x % notes.heads), lane = static_cast<int>(threadIdx.x);
  const auto step_of = [&](int of_block) {
    const std::int64_t row = head * notes.rows + block.row0 + of_block, of_part = notes.heads * notes.rows;
    float of_q = 0, of_k = 0;
    if (of_block < 0) return 0.0F;
    for (int part = 0; part < notes.parts.of_q; ++part) of_q += notes.dots_of_q[part * of_part + row];
    for (int part = 0; part < notes.parts.of_k; ++part) of_k += notes.dots_of_k[part * of_part + row];
    return of_q - of_k;
  };
  float behind = behind_block(notes, block, number, head, log_decay), share = 0;
  if (block.begins || !block.first) {
    float sum = 0;
    for (int of_block = lane; of_block < block.rows; of_block += 32) sum += step_of(of_block);
    const float known = block.begins ? 0.0f : behind_block(notes, blocks[number - 1], number - 1, head, log_decay);
    share = (behind + sum_over_lanes(sum) - known) / static_cast<float>(block.rows);
  }
  for (int first = 0; first < block.rows; first += 32) {
    const int of_block = block.rows - 1 - first - lane;
    float sum = step_of(of_block) - share;
    for (int distance = 1; distance < 32; distance *= 2) {
      const float later = __shfl_up_sync(0xffffffffu, sum, distance);
      if (lane >= distance) sum += later;
    }
    if (of_block >= 0) *at(dlog_decay, block.row0 + of_block, head) = of_block == 0 && block.begins ? 0.0f : behind + sum;
    behind += __shfl_sync(0xffffffffu, sum, 31);
  }
}

/// sum_block for one channel, of which a thread takes all tokens of the block one by one.
__global__ void __launch_bounds__(kThreads) sum_channels_of_block(const ChannelNotes notes, const DecayBlock* blocks,
                                                                  const Strided<const float> log_decay, const Strided<float> dlog_decay) {
  const std::int64_t number = blockIdx.x / notes.heads, channel = threadIdx.x;
  const int head = static_cast<int>(blockIdx.x % notes.heads);
  if (channel >= notes.channels) return;
  const DecayBlock block = blocks[number];
  const auto behind_block = [&](std::int64_t which) {
    const DecayBlock& of = blocks[which];
    const float end = notes.ends[(which * notes.heads + head) * notes.channels + channel];
    return of.ends ? end : end * exp(at(log_decay, of.row0 + of.rows, head)[channel]);
  };
  const auto step_of = [&](int of_block) {
    const std::int64_t index = ((block.row0 + of_block) * notes.heads + head) * notes.channels + channel;
    return notes.products_of_q[index] - notes.products_of_k[index];
  };
  float sum = behind_block(number), share = 0;
  if (block.begins || !block.first) {
    float steps = 0;
    for (int row = block.rows - 1; row >= 0; --row) steps += step_of(row);
    share = (sum + steps - (block.begins ? 0.0f : behind_block(number - 1))) / static_cast<float>(block.rows);
  }
  for (int row = block.rows - 1; row >= 0; --row) {
    sum += step_of(row) - share;
    at(dlog_decay, block.row0 + row, head)[channel] = row == 0 && block.begins ? 0.0f : sum;
  }
}

dim3 grid_of(const SlotStates& states, std::int64_t items) {
  return {static_cast<unsigned>((states.numbers + kThreads - 1) / kThreads), static_cast<unsigned>(items),
          static_cast<unsigned>(states.heads)};
}

}  // namespace

void fold_slots(const SlotStates& states, const Segments::Fold* folds, std::int64_t count, cudaStream_t stream) {
  launch("launch of a fold of linear attention states", fold_in_place, grid_of(states, count), kThreads, 0, stream, states, folds);
}

void fold_elements(const SlotStates& states, const Segments::Fold* folds, std::int64_t units, std::int64_t decay_width,
                   Strided<const float> log_decay, const std::int64_t* closing, Strided<float> elements, cudaStream_t stream) {
  launch("launch of a fold of linear attention states", fold_to_elements, grid_of(states, units), kThreads, 0, stream, states, folds,
         decay_width, log_decay, closing, elements);
}

void sum_decay_gradient(const DecayNotes& notes, const DecayBlock* blocks, std::int64_t count, Strided<const float> log_decay,
                        Strided<float> dlog_decay, cudaStream_t stream) {
  launch("launch of decay gradients", sum_block, dim3(static_cast<unsigned>(count * notes.heads)), 32, 0, stream, notes, blocks, log_decay,
         dlog_decay);
}

void sum_channel_gradient(const ChannelNotes& notes, const DecayBlock* blocks, std::int64_t count, Strided<const float> log_decay,
                          Strided<float> dlog_decay, cudaStream_t stream) {
  launch("launch of decay gradients", sum_channels_of_block, dim3(static_cast<unsigned>(count * notes.heads)), kThreads, 0, stream, notes,
         blocks, log_decay, dlog_decay);
}

}  // namespace periplus::kernels::cuda
