// periplus train: configuration, progress and summary around train::train.
#include <array>
#include <filesystem>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/commands.h"
#include "launch/print_launch.h"
#include "launch/progress.h"
#include "launch/ranks.h"
#include "launch/run_machine.h"
#include "launch/signals.h"
#include "launch/train_options.h"
#include "parallel/train/checkpoint/checkpoint.h"
#include "parallel/train/checkpoint/initial_weights.h"
#include "parallel/train/trainer.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

void say_where_to_look(const OptionTable& table, const train::Config& config) {
  const std::filesystem::path folder(config.run.directory);
  say(table, fmt::format("\nRun folder: {}", std::filesystem::absolute(folder).lexically_normal().string()));
  say(table, "  loss.svg        the losses beside the entropy of the text; opens in any browser");
  say(table, "  metrics.jsonl   one line per step: loss, tokens_per_second, mfu, exposed_comm_seconds, ...");
  if (config.run.trace) say(table, "  trace.json      the last step as a timeline; open it at https://ui.perfetto.dev");
  say(table, fmt::format("  checkpoints     the same command with --directory {} --resume and a larger --steps continues from the newest",
                         folder.string()));
}

void say_result(const OptionTable& table, const train::Config& config, const train::TrainResult& result) {
  if (result.stopped_by_request) {
    say(table, fmt::format("\nStopped on request after step {}; a checkpoint is saved, --resume continues.", result.last_step));
  }
  say(table, fmt::format("\nUnigram entropy of the training text    {:.4f} nats", result.unigram_entropy));
  if (result.order1_entropy) say(table, fmt::format("Order-1 entropy (given one byte before) {:.4f} nats", *result.order1_entropy));
  if (result.steps_run > 0) {
    say(table, fmt::format("Mean loss of the last ten steps         {:.4f} nats, {:+.4f} from the unigram entropy", result.mean_last_losses,
                           result.mean_last_losses - result.unigram_entropy));
  }
  if (result.validation_loss) say(table, fmt::format("Validation loss                         {:.4f} nats", *result.validation_loss));
  say_where_to_look(table, config);
}

nlohmann::json to_json(const train::Config& config, const train::TrainResult& result, const comm::Communicator& communicator,
                       Device device) {
  return {{"last_step", result.last_step},
          {"stopped_by_request", result.stopped_by_request},
          {"unigram_entropy", result.unigram_entropy},
          {"order1_entropy", or_null(result.order1_entropy)},
          {"mean_last_losses", result.mean_last_losses},
          {"validation_loss", or_null(result.validation_loss)},
          {"directory", config.run.directory},
          {"ranks", communicator.size()},
          {"transport", communicator.transport_name()},
          {"device", to_string(device)}};
}

/// The library knows keys only; who typed a flag must find it in the message about a path.
template <class Work>
auto with_flags_named(const Work& work) {
  try {
    return work();
  } catch (const InvalidArgument& error) {
    constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kFlags = {
        {{"data.paths", "--data"}, {"data.validation_paths", "--validation"}, {"run.initial_weights", "--initial-weights"}}};
    std::string message = error.what();
    for (const auto& [key, flag] : kFlags) {
      const std::size_t position = message.find(key);
      if (position != std::string::npos) message.replace(position, key.size(), fmt::format("{} ({})", flag, key));
    }
    throw InvalidArgument(message);
  }
}

/// With --initial-weights the model is theirs, but for what is given. A run that goes on has it in its checkpoint.
void take_model(OptionTable& table, const train::Config& config, bool resume) {
  const std::string& folder = config.run.initial_weights;
  if (folder.empty() && table.typed("initial-weights")) throw InvalidArgument("--initial-weights is empty; name a folder or leave it out");
  if (folder.empty()) return;
  const auto checkpoint = resume ? train::newest_checkpoint(config.run.directory) : std::nullopt;
  const auto model = with_flags_named([&] { return train::model_of_weights(checkpoint.value_or(folder)); });
  const bool other_scaling = table.given("rope-scaling");
  const std::string& pattern = table.given("pattern") ? config.model.pattern : model.at("model.pattern");
  const bool no_window = pattern.find('W') == std::string::npos;
  for (const auto& [key, value] : model) {
    const bool of_other_scaling = other_scaling && key.starts_with("model.rope_") && key != "model.rope_theta";
    const bool of_other_pattern = no_window && key == "model.window";
    if (!of_other_scaling && !of_other_pattern) table.set_unless_given(key, value, "--initial-weights");
  }
}

int train_rank(const OptionTable& table, const train::Config& config, train::TrainOptions options, const comm::Communicator& communicator,
               Device device) {
  options.device = device;
  if (needs_machine(config, communicator.size())) {
    if (communicator.rank() == 0 && device.kind == DeviceKind::cpu && measures_machine(config, options.resume))
      say(table, "measuring this machine to plan for it, which takes some seconds; --machine FILE leaves that out");
    options.machine = run_machine(config, options.resume, communicator, device);
  }
  bool header_shown = false;
  options.on_message = [&](const std::string& message) { say(table, message); };
  options.on_step = [&](const train::StepMetrics& metrics) {
    if (!std::exchange(header_shown, true)) say(table, progress_header());
    say(table, progress_line(metrics, config.run.steps));
  };
  const train::TrainResult result = with_flags_named([&] { return train::train(config, options, communicator); });
  if (communicator.rank() == 0) {
    write_loss_chart(config.run.directory, result);
    say_result(table, config, result);
    print_result(table, to_json(config, result, communicator, device));
  }
  return result.stopped_by_request ? kStoppedByRequest : kOk;
}

}  // namespace

int train_command(Arguments arguments) {
  OptionTable table("train", "trains a language model on text, across ranks", "mpirun -n 2 periplus train --data PATH ... [options]");
  train::Config config;
  RankOptions ranks;
  train::TrainOptions options;
  add_train_options(table, config, ranks, Devices::any);
  add_print_launch_option(table, ranks);
  table.add({.flag = "resume", .target = &options.resume, .help = "Continues from the newest complete checkpoint in the run folder."});
  table.parse(arguments);
  config.run.deadline_seconds = ranks.deadline_seconds;
  if (!table.help_wanted()) take_model(table, config, options.resume);
  if (answered(table) || launch_printed("train", arguments, ranks)) return kOk;
  if (config.data.paths.empty()) throw InvalidArgument("there is no text to train on; name files, folders or globs with --data PATH ...");
  check_planner_options(table, config);
  train::check(config);
  if (const std::filesystem::path folder(config.run.directory); std::filesystem::exists(folder) && !std::filesystem::is_directory(folder)) {
    throw InvalidArgument(fmt::format("--directory: '{}' is a file and not a folder", folder.string()));
  }
  const RankSource source = find_ranks(ranks);
  options.stop_requested = &catch_stop_signals();
  return run_ranks(source, ranks, [&](const comm::Communicator& communicator, Device device) {
    return train_rank(table, config, options, communicator, device);
  });
}

}  // namespace periplus::launch
