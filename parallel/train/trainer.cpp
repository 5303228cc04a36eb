// The training loop: everything in it happens on all ranks, in the same order.
#include "parallel/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <numeric>
#include <thread>

#include <fmt/format.h>

#include "parallel/choose.h"
#include "parallel/train/agree.h"
#include "parallel/train/checkpoint/checkpoint.h"
#include "parallel/train/checkpoint/initial_weights.h"
#include "parallel/train/data/corpus.h"
#include "parallel/train/data/packing.h"
#include "parallel/train/engine.h"
#include "parallel/train/matrix_peak.h"
#include "parallel/train/metrics.h"
#include "parallel/train/start.h"
#include "parallel/train/step_plan.h"
#include "parallel/train/trace_file.h"
#include "parallel/train/validation.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/home_stream.h"
#include "runtime/file.h"
#include "runtime/file_descriptor.h"

namespace periplus::train {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kLastLosses = 10;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

/// With strategy auto choosing for the machine, if one is described.
Config for_machine(Config config, const TrainOptions& options, int ranks) {
  if (!options.machine || config.parallel.planner != "none") return config;
  AttentionOptions& attention = config.parallel.attention;
  if (attention.strategy != "auto")
    throw InvalidArgument(
        "train: a machine is described, but neither parallel.planner nor parallel.strategy auto plans for one; leave it out");
  use_machine(attention, options.machine->simulated, ranks, config.data.context / ranks);
  return config;
}

/// One training run of one rank.
class Run {
 public:
  Run(const Config& config, const TrainOptions& options, comm::Communicator communicator, const Stream& stream)
      : config_(for_machine(config, options, communicator.size())),
        options_(options),
        communicator_(std::move(communicator)),
        stream_(stream),
        directory_(config.run.directory),
        dtype_(storage_dtype(config.run, options.device)),
        layout_(layout_kind_from_string(config.parallel.layout)),
        memory_(options.device),
        corpora_(open_on_all_ranks(config, communicator_)),
        packing_(config.data.packing, corpora_.training.lengths(), config.data.context),
        planner_(config, packing_, dtype_, options.machine ? &*options.machine : nullptr, options.device, communicator_),
        engine_(config_, dtype_, memory_, communicator_, stream, teller()),
        tracer_(communicator_.rank()),
        peak_(options, dtype_, communicator_) {
    if (corpora_.validation) all_or_none(communicator_, [&] { validation_.emplace(config, *corpora_.validation); });
  }

  TrainResult train() {
    prepare_directory();
    write_machine();
    result_.state_bytes = static_cast<std::int64_t>(memory_.account().current_bytes());
    measure_entropy();
    describe();
    restore_or_initialise();
    on_rank0(communicator_, [&] { metrics_file_.emplace(directory_, result_.last_step); });
    if (result_.last_step < config_.run.steps) {
      cuda::synchronize(stream_);  // weights are on their way
      peak_.measure(teller());
    }
    if (validation_ && options_.resume && owes_validation()) validate_resumed();
    while (result_.last_step < config_.run.steps && !result_.stopped_by_request) advance();
    if (config_.run.trace && result_.steps_run > 0) {
      cuda::synchronize(stream_);
      tracer_.settle();
      write_trace(directory_ / "trace.json", tracer_, communicator_);
      say("trace of the last step: {}", (directory_ / "trace.json").string());
    }
    if (!last_losses_.empty()) {
      result_.mean_last_losses = std::accumulate(last_losses_.begin(), last_losses_.end(), 0.0) / static_cast<double>(last_losses_.size());
    }
    return result_;
  }

 private:
  template <class... Arguments>
  void say(fmt::format_string<Arguments...> pattern, Arguments&&... arguments) const {
    if (communicator_.rank() != 0 || !options_.on_message) return;
    options_.on_message(fmt::format(pattern, std::forward<Arguments>(arguments)...));
  }

  std::function<void(const std::string&)> teller() const {
    return [this](const std::string& message) { say("{}", message); };
  }

  /// A step, and what is due after it.
  void advance() {
    StepMetrics metrics = run_step(result_.last_step + 1);
    const std::int64_t every = config_.run.checkpoint_every;
    const bool save_due = metrics.step == config_.run.steps || (every > 0 && metrics.step % every == 0);
    on_rank0(communicator_, [&] { metrics_file_->append(metrics); });  // before it is saved: a run that goes on from there has the line
    if (validation_ && validation_->due(metrics.step) && !result_.stopped_by_request) {
      if (save_due) save();  // before it: a validation that fails or is killed costs no weights
      metrics.validation_loss = validate();
    }
    report(metrics);
    if (save_due || result_.stopped_by_request) save();
  }

  /// Of the step that the run goes on from: it was stopped or killed before that was measured, or it is the last one, whose loss may
  /// be asked for again.
  bool owes_validation() const {
    if (result_.last_step >= config_.run.steps) return true;
    if (!validation_->due(result_.last_step)) return false;
    std::array<double, 1> owed{};
    on_rank0(communicator_, [&] {
      const std::vector<StepMetrics> lines = read_metrics(directory_);
      owed[0] = !lines.empty() && lines.back().step == result_.last_step && !lines.back().validation_loss;
    });
    all_reduce(communicator_, owed, comm::Reduce::sum);
    return owed[0] > 0;
  }

  void validate_resumed() {
    const std::optional<double> loss = validate();
    if (!loss) return;
    say("validation loss of step {}: {:.4f} nats per token", result_.last_step, *loss);
    on_rank0(communicator_, [&] { metrics_file_->amend(result_.last_step, *loss); });
  }

  void prepare_directory() {
    on_rank0(communicator_, [&] {
      create_folders(directory_);
      // Ranks of a killed mpirun live on for a second, in which the run may have been started anew.
      const double patience = std::min(5.0, config_.run.deadline_seconds / 2);
      const fs::path lock = directory_ / ".lock";
      const Clock::time_point begin = Clock::now();
      while (!(lock_ = try_lock(lock)) && seconds_since(begin) < patience) std::this_thread::sleep_for(std::chrono::milliseconds(50));
      if (!lock_) {
        throw InvalidArgument(
            fmt::format("train: another run writes to run.directory {}; wait until it has ended, name another directory or, if its machine "
                        "died, remove {}",
                        directory_.string(), lock.string()));
      }
      if (!options_.resume && newest_checkpoint(directory_)) {
        throw InvalidArgument(fmt::format("train: run.directory {} already holds checkpoints; resume that run or name another directory",
                                          directory_.string()));
      }
    });
  }

  /// So that a run that goes on plans for the same machine.
  void write_machine() {
    if (options_.machine) on_rank0(communicator_, [&] { write_file_atomically(directory_ / "machine.toml", options_.machine->text); });
  }

  void measure_entropy() {
    const Corpus& corpus = corpora_.training;
    const Entropy entropy = entropy_on_all_ranks(corpus, config_.run.seed, communicator_);
    result_.unigram_entropy = entropy.unigram;
    result_.order1_entropy = entropy.order1;
    say("data: {} documents, {} tokens{}; entropy in nats per token: {:.4f} unigram{} ({} tokens counted)", corpus.documents().size(),
        corpus.tokens(), corpus.skipped_files() > 0 ? fmt::format(" ({} unreadable files skipped)", corpus.skipped_files()) : "",
        entropy.unigram, entropy.order1 ? fmt::format(", {:.4f} given the byte before", *entropy.order1) : "", entropy.counted_tokens);
    if (validation_) say("{}", validation_->description());
  }

  void describe() const {
    const PackingStatistics& packing = packing_.statistics();
    say("packing ({}): {} rows of {} tokens, {:.2f} % unfilled, {:.2f} % of the documents cut{}, attention work {:.1f} % of full rows",
        config_.data.packing, packing_.rows(), config_.data.context, 100 * packing.padding_fraction, 100 * packing.truncated_fraction,
        packing.dropped_fraction > 0 ? fmt::format(", {:.2f} % of the tokens dropped", 100 * packing.dropped_fraction) : std::string(),
        100 * packing.attention_share);
    say("model: {} parameters in {}, on {} {} ({} transport), layers {}, strategy {}, layout {}; {:.1f} MiB of weights{} here",
        engine_.model().parameters().elements(), to_string(dtype_), communicator_.size(), communicator_.size() == 1 ? "rank" : "ranks",
        communicator_.transport_name(), description_of_layers(config_.model),
        planner_.cost() == nullptr ? config_.parallel.attention.strategy : "by the planner", config_.parallel.layout,
        static_cast<double>(result_.state_bytes) / (1 << 20),
        config_.run.offload_optimizer ? " and gradients" : ", gradients and optimizer state");
    if (planner_.cost() != nullptr) describe_planner();
    if (const Device device = options_.device; device.kind == DeviceKind::cuda) {
      say("device: {}, {}", to_string(device), cuda::properties(device.index).name);
    }
  }

  void describe_planner() const {
    const auto kind = planner_.static_kind();
    say("planner: {} groups on machine {}{}; a micro-batch has memory for {} tokens, its largest group for {}", config_.parallel.planner,
        options_.machine->planner.name,
        kind ? fmt::format(", each {} x {}", kind->degree, planner::to_string(kind->method)) : std::string(),
        planner_.cost()->tokens_per_micro_batch(), planner_.cost()->longest());
  }

  Manifest manifest() const {
    const auto entries = key_values(config_);
    Manifest manifest{.step = result_.last_step, .corpus_digest = corpora_.training.digest(), .config = {entries.begin(), entries.end()}};
    manifest.epoch = planner_.epoch_of_step(result_.last_step + 1);
    manifest.config["run.dtype"] = to_string(dtype_);  // what auto means differs between machines
    return manifest;
  }

  void restore_or_initialise() {
    if (options_.resume) {
      restore();
    } else if (const std::string& folder = config_.run.initial_weights; !folder.empty()) {
      for (const std::string& remark : load_initial_weights(folder, config_, engine_.optimizer(), stream_))
        say("initial weights: {}", remark);
      say("initial weights are those of {}", folder);
    } else {
      engine_.optimizer().initialise(config_.run.seed, stream_);
    }
    engine_.publish();
  }

  void restore() {
    std::string found;
    on_rank0(communicator_, [&] {
      const std::optional<fs::path> newest = newest_checkpoint(directory_);
      if (!newest) throw InvalidArgument(fmt::format("train: {} holds no complete checkpoint to resume from", directory_.string()));
      found = newest->string();
    });
    found = communicator_.all_gather_bytes(found, Stream()).front();
    Manifest saved;
    all_or_none(communicator_, [&] {
      saved = read_manifest(found);
      require_same_run(saved, manifest());
    });
    load_checkpoint(found, saved, engine_.optimizer(), stream_);
    result_.last_step = saved.step;
    saved_step_ = saved.step;
    say("resumed from {} (step {}, written by {} ranks)", found, saved.step, saved.ranks);
    if (saved.step >= config_.run.steps) say("run.steps = {} is already reached; nothing is left to train", config_.run.steps);
  }

  void save() {
    if (saved_step_ == result_.last_step || !options_.checkpoints) return;
    save_checkpoint(directory_, manifest(), engine_.optimizer(), stream_);
    saved_step_ = result_.last_step;
    say("checkpoint of step {} written to {}", saved_step_, (directory_ / "checkpoints").string());
  }

  std::vector<Share> read_shares(const Corpus& corpus, const StepPlan& plan, Tracer* tracer) const {
    const TraceScope scope(tracer, "read pieces", Stream());
    return train::read_shares(corpus, plan, layout_, engine_.shares_gradients(), communicator_);
  }

  StepMetrics run_step(std::int64_t step) {
    const Clock::time_point begin = Clock::now();
    Tracer* const tracer = config_.run.trace ? &tracer_ : nullptr;
    if (tracer != nullptr) {
      restart_together(tracer_, communicator_);
      tracer_.anchor(stream_);
    }
    const double waited = communicator_.traffic().wait_seconds;
    const StepPlan plan = planner_.plan(step);
    const std::vector<Share> shares = read_shares(corpora_.training, plan, tracer);
    const double waited_before = communicator_.traffic().wait_seconds;
    const Engine::StepResult result = engine_.step(shares, step, plan.labels, tracer);
    const double waited_inside = communicator_.traffic().wait_seconds - waited_before;

    StepMetrics metrics{.step = step, .tokens = plan.tokens, .ranks = communicator_.size()};
    metrics.micro_batches = std::ssize(plan.micro_batches), metrics.predicted_seconds = plan.predicted_seconds;
    metrics.learning_rate = result.learning_rate, metrics.grad_norm = result.grad_norm;
    // One message decides for all ranks whether to stop: a signal may reach them in different steps.
    std::array<double, 3> totals = {result.loss, result.flops, stop_requested()};
    all_reduce(communicator_, totals, comm::Reduce::sum);
    result_.stopped_by_request = totals[2] > 0;
    result_.last_step = step;
    ++result_.steps_run;
    if (plan.labels > 0) {
      metrics.loss = totals[0] / static_cast<double>(plan.labels);
      last_losses_.push_back(metrics.loss);
      if (last_losses_.size() > kLastLosses) last_losses_.pop_front();
    }

    const double waited_outside = communicator_.traffic().wait_seconds - waited - waited_inside;
    std::array<double, 3> largest = {waited_outside + result.exposed_seconds, static_cast<double>(memory_.account().peak_bytes()),
                                     totals[1] / seconds_since(begin)};
    all_reduce(communicator_, largest, comm::Reduce::max);
    metrics.exposed_comm_seconds = largest[0];
    metrics.peak_memory_bytes = static_cast<std::int64_t>(largest[1]);
    metrics.step_seconds = seconds_since(begin);
    metrics.tokens_per_second = static_cast<double>(metrics.tokens) / metrics.step_seconds;
    metrics.flops_per_second = totals[1] / metrics.step_seconds;
    peak_.correct(largest[2], teller());
    metrics.mfu = peak_.flops() > 0 ? metrics.flops_per_second / peak_.flops() : 0;
    return metrics;
  }

  double stop_requested() const { return options_.stop_requested != nullptr && options_.stop_requested->load() ? 1 : 0; }

  /// Loss of the validation text, all ranks on each row. Nothing if somebody asked to stop meanwhile.
  std::optional<double> validate() {
    constexpr double kSilence = 10;  // seconds
    double loss = 0;
    Clock::time_point told = Clock::now();
    for (std::int64_t row = 0; row < validation_->rows(); ++row) {
      if (communicator_.rank() == 0 && seconds_since(told) > kSilence) {
        say("validation: {} of {} rows", row, validation_->rows());
        told = Clock::now();
      }
      const std::vector<Share> shares = read_shares(*corpora_.validation, validation_->plan(row, communicator_.size()), nullptr);
      std::array<double, 2> totals = {engine_.loss(shares.front()), stop_requested()};
      all_reduce(communicator_, totals, comm::Reduce::sum);
      if (totals[1] > 0) {
        result_.stopped_by_request = true;
        return std::nullopt;
      }
      loss += totals[0];
    }
    loss /= static_cast<double>(validation_->labels());
    if (!std::isfinite(loss))
      throw InvalidArgument(
          fmt::format("train: the validation loss of step {} is not finite; lower optimizer.learning_rate", result_.last_step));
    result_.validation_loss = loss;
    return loss;
  }

  void report(const StepMetrics& metrics) {
    on_rank0(communicator_, [&] {
      if (metrics.validation_loss) metrics_file_->amend(metrics.step, *metrics.validation_loss);
      if (options_.on_step) options_.on_step(metrics);
    });
  }

  const Config config_;
  const TrainOptions& options_;
  comm::Communicator communicator_;
  const Stream& stream_;
  fs::path directory_;
  std::optional<FileDescriptor> lock_;  // of the directory; rank 0's
  DType dtype_;
  LayoutKind layout_;
  Memory memory_;
  Corpora corpora_;
  Packing packing_;
  StepPlanner planner_;
  Engine engine_;
  std::optional<Validation> validation_;
  Tracer tracer_;
  MatrixPeak peak_;
  std::optional<MetricsFile> metrics_file_;
  std::deque<double> last_losses_;
  std::int64_t saved_step_ = -1;
  TrainResult result_;
};

}  // namespace

TrainResult train(const Config& config, const TrainOptions& options, comm::Communicator communicator) {
  check_on_all_ranks(config, options.resume, communicator);
  const bool on_device = options.device.kind == DeviceKind::cuda;
  std::optional<cuda::CurrentDevice> current;
  if (on_device) current.emplace(options.device.index);
  const Stream stream = on_device ? cuda::make_stream(options.device.index) : Stream([communicator] { communicator.progress(); });
  std::optional<cuda::HomeStream> home;  // exchanges and lanes of plans end before points that the stream waits for
  if (on_device) home.emplace(stream);
  return Run(config, options, std::move(communicator), stream).train();
}

}  // namespace periplus::train
