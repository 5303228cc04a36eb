// Gradients of every share, their sum over ranks, and the update.
#include "parallel/train/engine.h"

#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "parallel/choose.h"
#include "parallel/train/trace_file.h"
#include "runtime/cuda/device.h"

namespace periplus::train {
namespace {

/// Adds to `seconds` what the host waits for messages while it lives.
class WaitMeter {
 public:
  WaitMeter(const comm::Communicator& communicator, double& seconds)
      : communicator_(communicator), seconds_(seconds), before_(communicator.traffic().wait_seconds) {}
  ~WaitMeter() { seconds_ += communicator_.traffic().wait_seconds - before_; }
  WaitMeter(const WaitMeter&) = delete;
  WaitMeter& operator=(const WaitMeter&) = delete;

 private:
  const comm::Communicator& communicator_;
  double& seconds_;
  double before_;
};

}  // namespace

Engine::Engine(const Config& config, DType dtype, const Memory& memory, comm::Communicator communicator, const Stream& stream,
               std::function<void(const std::string&)> tell)
    : config_(config),
      communicator_(std::move(communicator)),
      stream_(stream),
      tell_(std::move(tell)),
      model_(config.model, dtype, memory,
             {.hidden = config.run.keeps_hidden(),
              .gradients = !shares_gradients(),
              .weights = !shares_weights(),
              .offload = config.run.offload_activations}),
      optimizer_(model_.parameters(), dtype, communicator_, memory,
                 {.weights = shares_weights(), .on_host = config.run.offload_optimizer}) {}

Engine::StepResult Engine::step(std::span<const Share> shares, std::int64_t step, std::int64_t labels, Tracer* tracer) {
  StepResult result;
  const double before = communicator_.traffic().wait_seconds;
  if (!shares_gradients()) model_.zero_gradients(stream_);
  for (const Share& share : shares) {
    add_gradients(share, &share == &shares.front() ? kernels::Update::overwrite : kernels::Update::accumulate, tracer, result);
  }
  result.learning_rate = learning_rate_at(config_.optimizer, step, config_.run.steps);
  result.grad_norm = update(step, result.learning_rate, labels > 0, tracer);
  result.exposed_seconds += communicator_.traffic().wait_seconds - before;
  return result;
}

double Engine::loss(const Share& share) {
  plan(share, nullptr);
  return model_.loss(stream_, {.fetch = [&](std::size_t section, TensorView weights) { fetch_weights(section, weights, nullptr); }});
}

/// The options of softmax layers in this step; with strategy "auto" the choice is told whenever it changes.
AttentionOptions Engine::strategy_for(char letter, const AttentionProblem& problem) {
  if (config_.parallel.attention.strategy != "auto") return config_.parallel.attention;
  Choice choice = choose_strategy(problem, config_.parallel.attention);
  std::uint64_t& chosen = chosen_[letter];
  if (choice.options.digest() != chosen && tell_) tell_(fmt::format("strategy auto, {} layers: {}", letter, choice.why));
  chosen = choice.options.digest();
  return std::move(choice.options);
}

void Engine::plan(const Share& share, Tracer* tracer) {
  // What the batch before enqueued still uses the plans that this one replaces.
  cuda::synchronize(stream_);
  model_.plan(*share.batch, {.communicator = share.group,
                             .linear = config_.parallel.linear,
                             .attention =
                                 [&](char letter, const AttentionProblem& problem) {
                                   return share.attention ? *share.attention : strategy_for(letter, problem);
                                 },
                             .tracer = tracer,
                             .stream = stream_});
}

void Engine::fetch_weights(std::size_t section, TensorView weights, Tracer* tracer) const {
  const TraceScope scope(tracer, "gather weights", stream_);
  optimizer_.gather_section(section, weights, stream_);
}

/// update: of gradients that ranks share out.
void Engine::add_gradients(const Share& share, kernels::Update update, Tracer* tracer, StepResult& result) {
  if (share.batch) plan(share, tracer);
  const double before = communicator_.traffic().wait_seconds;
  const TraceScope scope(tracer, "forward and backward", stream_);
  double outside = 0;  // of mixers: nothing is computed meanwhile
  const SectionExchange exchange = {.fetch =
                                        [&](std::size_t section, TensorView weights) {
                                          const WaitMeter meter(communicator_, outside);
                                          fetch_weights(section, weights, tracer);
                                        },
                                    .take =
                                        [&](std::size_t section, ConstTensorView gradients) {
                                          const WaitMeter meter(communicator_, outside);
                                          const TraceScope summing(tracer, "sum gradients", stream_);
                                          optimizer_.sum(section, gradients, update, stream_);
                                        }};
  if (!share.batch) return model_.stand_by(stream_, exchange);
  result.loss += model_.loss_and_gradients(stream_, exchange);
  const double waited = communicator_.traffic().wait_seconds - before - outside;
  result.exposed_seconds += model_.exposed_seconds() - waited;
  if (share.group.rank() == 0) result.flops += model_.flops(*share.batch);
}

/// Returns the gradient norm of all ranks.
double Engine::update(std::int64_t step, double learning_rate, bool has_labels, Tracer* tracer) {
  if (!shares_gradients()) {
    const TraceScope scope(tracer, "sum gradients", stream_);
    optimizer_.sum(model_.gradients(), stream_);
  }
  const double norm = optimizer_.norm(stream_);
  if (!std::isfinite(norm)) optimizer_.throw_not_finite(step, stream_);
  if (!has_labels) return norm;
  const TraceScope scope(tracer, "update weights", stream_);
  const double limit = config_.optimizer.clip_norm;
  const double scale = limit > 0 && norm > limit ? limit / norm : 1;
  optimizer_.update(config_.optimizer, learning_rate, scale, step, model_.weights(), stream_);
  return norm;
}

}  // namespace periplus::train
