#include "parallel/simulate/iteration.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "parallel/simulate/attention_time.h"
#include "runtime/error.h"

namespace periplus::simulate {

std::string_view to_string(Recompute recompute) noexcept {
  constexpr std::string_view kNames[] = {"none", "but_hidden", "but_attention", "all"};
  return kNames[static_cast<int>(recompute)];
}

namespace {

void check(const Shape& shape, const Machine& machine, const Training& training) {
  const auto refuse = [](std::string text) { throw InvalidArgument("simulate: " + std::move(text)); };
  check(shape);
  check(machine);
  if (training.tokens < 1) refuse(fmt::format("{} tokens; give at least one", training.tokens));
  if (training.context < 1 || training.replicas < 1 || training.tensor < 1 || training.micro_batches < 1)
    refuse(fmt::format("ranks {}, replicas {}, tensor {}, micro-batches {}: each must be at least 1", training.context, training.replicas,
                       training.tensor, training.micro_batches));
  if (training.devices() > machine.devices)
    refuse(fmt::format("{} devices (ranks {} x replicas {} x tensor {}): machine {} has {}", training.devices(), training.context,
                       training.replicas, training.tensor, machine.name, machine.devices));
  if (training.zero < 0 || training.zero > 3) refuse(fmt::format("ZeRO stage {}; there are 0, 1, 2 and 3", training.zero));
  if (shape.heads % training.tensor != 0)
    refuse(fmt::format("tensor {} does not divide the {} heads of {}", training.tensor, shape.heads, shape.name));
  if (document_borders(training).back() != training.tokens)
    refuse(fmt::format("documents of {} tokens in all, for {}", document_borders(training).back(), training.tokens));
  if (shape.score_bytes > 0)
    refuse(
        fmt::format("model {} keeps scores (memory.score_bytes), whose time is not simulated, only their memory; take it out", shape.name));
  if (!training.split_norms || training.in_flight != 1)
    refuse("the time of pipelines and of norms that a tensor group does not split is not simulated, only their memory");
}

/// Seconds of what a rank computes alone, by its rows.
class Dense {
 public:
  Dense(const Shape& shape, const Machine& machine, const Training& training)
      : shape_(shape), kernels_(machine.kernels), tensor_(training.tensor) {}

  /// Norm, queries, keys and values; the result's matrix, norm and feed-forward; the loss head. Forward; backward takes twice.
  double before(double rows) const {
    const double h = shape_.hidden, width = static_cast<double>(shape_.q_size() + 2 * shape_.kv_size());
    return seconds(2 * rows * h * width / tensor_, rows * (3 * h + width / tensor_), 3);
  }
  double after(double rows) const {
    const double h = shape_.hidden, q = static_cast<double>(shape_.q_size()), f = static_cast<double>(shape_.ffn_size());
    return seconds(2 * rows * (q * h + shape_.ffn_matrices * h * f) / tensor_, rows * (7 * h + (q + 2 * shape_.ffn_matrices * f) / tensor_),
                   5);
  }
  /// What backward needs of `after`: all but the last matrix, or but those of the feed-forward part where their results are kept.
  double after_again(double rows, Recompute recompute) const {
    const double spared = (recompute == Recompute::but_hidden ? shape_.ffn_matrices : 1) * static_cast<double>(shape_.ffn_size());
    return after(rows) - 2 * rows * shape_.hidden * spared / tensor_ / kernels_.matmul_flops_per_second;
  }
  /// The gradient of the input of qkv's matrix, and of ffn's first ones; that of their weights takes as long.
  double qkv_input(double rows) const {
    return 2 * rows * shape_.hidden * static_cast<double>(shape_.q_size() + 2 * shape_.kv_size()) / tensor_ /
           kernels_.matmul_flops_per_second;
  }
  double ffn_input(double rows) const {
    const double width = (shape_.ffn_matrices - 1) * static_cast<double>(shape_.ffn_size());
    return 2 * rows * shape_.hidden * width / tensor_ / kernels_.matmul_flops_per_second;
  }
  double loss(double rows) const {
    const double v = static_cast<double>(shape_.vocabulary);
    return v == 0 ? 0 : seconds(2 * rows * shape_.hidden * v / tensor_, 3 * rows * v / tensor_, 3);
  }

 private:
  /// elements: that are read or written beside the matrices.
  double seconds(double flops, double elements, int launches) const {
    return flops / kernels_.matmul_flops_per_second + elements * shape_.element_bytes / kernels_.memory_bytes_per_second +
           launches * kernels_.launch_seconds;
  }
  const Shape& shape_;
  const Kernels& kernels_;
  int tensor_;
};

class Run {
 public:
  Run(const Shape& shape, const Machine& machine, const Training& training)
      : shape_(shape), machine_(machine), training_(training), dense_(shape, machine, training), now_(ranks(), 0) {
    for (int layer = 0; layer < shape.layers; ++layer) {
      const char letter = shape.letter_of(layer);
      if (!attention_.contains(letter)) attention_.try_emplace(letter, shape, machine, training, letter);
    }
    const SequenceLayout& layout = attention_.begin()->second.plan(Pass::forward).claim.layout;
    for (int r = 0; r < training.context; ++r) {
      // A tensor group splits the rows of its rank for norms and sums, and the matrices for the rest.
      rows_.push_back(static_cast<double>(layout.rows_of(r)));
      result_.traces.emplace_back(r);
    }
    result_.ranks.resize(ranks());
    weight_bytes_ = shape.layer_weights() * shape.element_bytes / training.tensor;
    sharers_ = training.context * training.replicas;
  }

  Iteration run() {
    for (int micro_batch = 0; micro_batch < training_.micro_batches; ++micro_batch) {
      last_micro_batch_ = micro_batch + 1 == training_.micro_batches;
      begin_gather(0);
      for (int layer = 0; layer < shape_.layers; ++layer) forward(layer);
      compute("loss", [&](double rows) { return 3 * dense_.loss(rows); });
      for (int layer = shape_.layers - 1; layer >= 0; --layer) backward(layer);
    }
    finish();
    return std::move(result_);
  }

 private:
  std::size_t ranks() const { return static_cast<std::size_t>(training_.context); }
  double most_rows() const { return *std::ranges::max_element(rows_); }

  void record(std::size_t r, std::string name, const char* track, double from, double to) {
    if (to > from)
      result_.traces[r].record({.name = std::move(name), .track = track, .begin_us = from * 1e6, .duration_us = (to - from) * 1e6});
  }

  template <class Seconds>
  void compute(const std::string& name, const Seconds& seconds) {
    for (std::size_t r = 0; r < ranks(); ++r) {
      const double took = seconds(rows_[r]);
      record(r, name, "compute", now_[r], now_[r] + took);
      now_[r] += took;
      result_.ranks[r].compute += took;
    }
  }

  /// All ranks wait until `time`; who comes last waits for the collective only, the others also for it.
  void wait_until(double time, const std::string& name) {
    const double last = std::ranges::max(now_);
    for (std::size_t r = 0; r < ranks(); ++r) {
      if (time <= now_[r]) continue;
      const double until_all = std::max(now_[r], std::min(last, time));
      result_.ranks[r].imbalance += until_all - now_[r];
      result_.ranks[r].collective_wait += time - until_all;
      record(r, name, "wait", now_[r], time);
      now_[r] = time;
    }
  }

  /// Tensor-parallel gathers and scatters of the rows' activations: in the way of compute but for `beside` seconds of each.
  void exchange_activations(int count, double beside = 0) {
    if (training_.tensor == 1) return;
    const double bytes = most_rows() * shape_.hidden * shape_.element_bytes;
    const double seconds = count * std::max(0.0, gather_seconds(machine_, training_.tensor, bytes) - beside);
    const double sent = count * bytes * (training_.tensor - 1) / training_.tensor;
    (training_.tensor > machine_.devices_per_node ? result_.card_bytes : result_.link_bytes) += sent;
    wait_until(std::ranges::max(now_) + seconds, "activations");
  }

  void attend(int layer, Pass pass) {
    if (training_.chain_in_turn && pass == Pass::forward) wait_until(std::ranges::max(now_), "barrier");
    const AttentionTime::Took took = attention_.at(shape_.letter_of(layer)).run(pass, now_);
    for (std::size_t r = 0; r < ranks(); ++r) {
      result_.ranks[r].compute += took.compute[r];
      // What is neither computing nor a wait for messages is a plan that ends early: none, as ranks go on by themselves.
      result_.ranks[r].attention_wait += took.done[r] - now_[r] - took.compute[r];
      record(r, fmt::format("attention {}", layer), "compute", now_[r], took.done[r]);
    }
    now_ = took.done;
  }

  /// ZeRO-3: a layer's weights arrive while the layer before runs; this starts when that starts.
  void begin_gather(int layer) {
    if (training_.zero < 3) return;
    const double ready = *std::ranges::max_element(now_);
    background_ = std::max(background_, ready) + gather_seconds(machine_, sharers_, weight_bytes_, training_.tensor);
    gathered_[layer] = background_;
    count_background(weight_bytes_);
  }
  void begin_gather_beside(int layer) {
    if (!training_.by_section) begin_gather(layer);
  }
  void take_gathered(int layer) {
    if (training_.zero < 3) return;
    if (!gathered_.contains(layer)) begin_gather(layer);
    wait_until(gathered_.at(layer), "weights");
    gathered_.erase(layer);
  }
  /// Gradients of a layer, summed over all that share its weights: at once with ZeRO-2 and 3, with the last micro-batch otherwise.
  void reduce_gradients() {
    if (sharers_ == 1 || training_.by_section || (training_.zero < 2 && !last_micro_batch_)) return;
    reduce(weight_bytes_);
  }
  /// bytes: of weights.
  void reduce(double bytes) {
    if (training_.by_section) bytes *= static_cast<double>(sizeof(float)) / shape_.element_bytes;
    const int times = training_.zero == 0 ? 2 : 1;
    const double once = gather_seconds(machine_, sharers_, bytes, training_.tensor);
    background_ = std::max(background_, *std::ranges::max_element(now_)) + times * once;
    count_background(bytes * times);
  }
  void count_background(double bytes) {
    const double sent = bytes * (sharers_ - 1) / sharers_;
    (sharers_ * training_.tensor > machine_.devices_per_node ? result_.card_bytes : result_.link_bytes) += sent;
  }

  void forward(int layer) {
    take_gathered(layer);
    if (layer + 1 < shape_.layers) begin_gather_beside(layer + 1);
    exchange_activations(1);
    compute(fmt::format("qkv {}", layer), [&](double rows) { return dense_.before(rows); });
    attend(layer, Pass::forward);
    exchange_activations(3);
    compute(fmt::format("ffn {}", layer), [&](double rows) { return dense_.after(rows); });
  }

  void backward(int layer) {
    take_gathered(layer);
    if (layer > 0) begin_gather_beside(layer - 1);
    if (training_.recompute != Recompute::none) {
      compute(fmt::format("qkv {} again", layer), [&](double rows) { return dense_.before(rows); });
      if (training_.recompute == Recompute::all) {
        exchange_activations(4);
        attend(layer, Pass::forward);
      }
      const bool all = training_.recompute == Recompute::all;
      compute(fmt::format("ffn {} again", layer),
              [&](double rows) { return all ? dense_.after(rows) : dense_.after_again(rows, training_.recompute); });
    }
    // As Megatron-LM (core/tensor_parallel/layers.py): gradients of what the result's and the last matrix made are gathered; of the inputs
    // of qkv and ffn parts only are kept, so that they are gathered once more, beside the matrix that makes their gradients; these are
    // scattered beside the one that makes the weights'.
    exchange_activations(2);
    exchange_activations(2, dense_.qkv_input(most_rows()));
    exchange_activations(2, dense_.ffn_input(most_rows()));
    compute(fmt::format("ffn {} backward", layer), [&](double rows) { return 2 * dense_.after(rows); });
    attend(layer, Pass::backward);
    compute(fmt::format("qkv {} backward", layer), [&](double rows) { return 2 * dense_.before(rows); });
    reduce_gradients();
  }

  /// What is left of the gradients, the optimizer, and new weights with ZeRO-1 and 2; then the host, if it is slower.
  void finish() {
    if (training_.by_section && sharers_ > 1) reduce(shape_.weights() * shape_.element_bytes / training_.tensor);
    wait_until(background_, "gradients");
    wait_until(*std::ranges::max_element(now_), "others");
    const double weights = shape_.weights() / training_.tensor / (training_.zero >= 1 ? sharers_ : 1);
    constexpr double kOptimizerTraffic = 28;  // master and moments read and written, gradient read, weight written
    // A device's share of its host's memory is taken to be as fast as its link to it.
    const bool on_host = training_.optimizer_on_host && training_.by_section && machine_.host_bytes_per_second > 0;
    const double rate = on_host ? machine_.host_bytes_per_second : machine_.kernels.memory_bytes_per_second;
    compute("optimizer", [&](double) { return weights * kOptimizerTraffic / rate; });
    if (training_.zero == 1 || training_.zero == 2) {
      const double bytes = shape_.weights() * shape_.element_bytes / training_.tensor;
      wait_until(*std::ranges::max_element(now_) + gather_seconds(machine_, sharers_, bytes, training_.tensor), "weights");
      count_background(bytes);
    }
    const double host = shape_.iteration_seconds + shape_.host_seconds_per_token * static_cast<double>(training_.tokens);
    const double devices = *std::ranges::max_element(now_);
    result_.seconds = std::max(host, devices);
    for (std::size_t r = 0; r < ranks(); ++r) result_.ranks[r].overhead = result_.seconds - devices;
    count_attention();
    for (const auto& [letter, attention] : attention_)
      for (const Pass pass : {Pass::forward, Pass::backward})
        for (const plan::Program& program : attention.plan(pass).programs)
          result_.workspace = std::max(result_.workspace, static_cast<double>(program.workspace_bytes));
    result_.memory = memory_of(shape_, training_, result_.workspace);
    result_.flops = model_flops(shape_, training_);
  }

  /// Bytes of attention of the rank that sends most, and what a layer of the first kind takes when ranks come together.
  void count_attention() {
    std::map<char, int> layers;
    for (int layer = 0; layer < shape_.layers; ++layer) ++layers[shape_.letter_of(layer)];
    for (auto& [letter, attention] : attention_) {
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        const int runs = pass == Pass::forward && training_.recompute == Recompute::all ? 2 : 1;
        double inside = 0, outside = 0;
        for (const plan::Program& program : attention.plan(pass).programs) {
          double near = 0, far = 0;
          for (const plan::Step& step : program.steps)
            for (const plan::Message& m : program.sends_of(step))
              (attention.links().same_node(program.rank, m.peer) ? near : far) += static_cast<double>(program.bytes_of(m.view));
          inside = std::max(inside, near), outside = std::max(outside, far);
        }
        result_.link_bytes += runs * layers[letter] * training_.micro_batches * inside;
        result_.card_bytes += runs * layers[letter] * training_.micro_batches * outside;
      }
    }
    AttentionTime& first = attention_.at(shape_.letter_of(0));
    const std::vector<double> together(ranks(), 0);
    result_.attention_forward_seconds = std::ranges::max(first.run(Pass::forward, together).done);
    result_.attention_backward_seconds = std::ranges::max(first.run(Pass::backward, together).done);
  }

  const Shape& shape_;
  const Machine& machine_;
  const Training& training_;
  Dense dense_;
  std::map<char, AttentionTime> attention_;
  std::vector<double> rows_;
  std::vector<double> now_;         ///< By rank: when its compute queue is free.
  double background_ = 0;           ///< When the stream of collectives is free.
  std::map<int, double> gathered_;  ///< By layer: when its weights are there.
  double weight_bytes_ = 0;
  int sharers_ = 1;
  bool last_micro_batch_ = false;
  Iteration result_;
};

}  // namespace

Iteration simulate_iteration(const Shape& shape, const Machine& machine, const Training& training) {
  check(shape, machine, training);
  return Run(shape, machine, training).run();
}

double model_flops(const Shape& shape, const Training& training) {
  double pairs = 0;
  const std::vector<std::int64_t> borders = document_borders(training);
  for (std::size_t i = 1; i < borders.size(); ++i) {
    const double n = static_cast<double>(borders[i] - borders[i - 1]);
    pairs += training.causal ? n * (n + 1) / 2 : n * n;
  }
  const double tokens = static_cast<double>(training.tokens), h = shape.hidden;
  double forward = 2 * tokens * h * static_cast<double>(shape.vocabulary), attention = 0;
  for (int layer = 0; layer < shape.layers; ++layer) {
    forward += 2 * tokens * shape.layer_weights();
    if (shape.letter_of(layer) == 'S') {
      attention += 4 * pairs * static_cast<double>(shape.q_size());
    } else {
      forward += 4 * tokens * static_cast<double>(shape.q_size()) * shape.width();
    }
  }
  // Backward: twice for matrices; 2.5 times for attention, which makes its scores again.
  return (3 * forward + 3.5 * attention) * training.replicas * training.micro_batches;
}

double Iteration::tokens_per_second(const Training& training) const noexcept {
  return static_cast<double>(training.tokens) * training.replicas * training.micro_batches / seconds;
}

double Iteration::mfu(const Machine& machine, const Training& training) const noexcept {
  const double peak = machine.peak_flops_per_second > 0 ? machine.peak_flops_per_second : machine.kernels.matmul_flops_per_second;
  return flops / seconds / (peak * training.devices());
}

}  // namespace periplus::simulate
