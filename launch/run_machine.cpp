#include "launch/run_machine.h"

#include <filesystem>

#include "launch/calibrate.h"
#include "launch/descriptions.h"
#include "parallel/train/agree.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

std::string measured_text(const train::Config& config, const comm::Communicator& communicator) {
  CalibrationOptions options;
  options.dtype = train::storage_dtype(config.run) == DType::bf16 ? DType::bf16 : DType::f32;
  options.hidden = config.model.hidden, options.ffn = config.model.ffn;
  options.heads = static_cast<int>(config.model.heads), options.head_size = static_cast<int>(config.model.head_size);
  return to_toml(calibrate(options, communicator), options);
}

std::filesystem::path saved_machine(const train::Config& config) { return std::filesystem::path(config.run.directory) / "machine.toml"; }

}  // namespace

bool needs_machine(const train::Config& config, int ranks) {
  return config.parallel.planner != "none" || (config.parallel.attention.strategy == "auto" && ranks > 1);
}

bool measures_machine(const train::Config& config, bool resume) {
  return config.parallel.machine.empty() && (!resume || !std::filesystem::exists(saved_machine(config)));
}

train::MachineDescription run_machine(const train::Config& config, bool resume, const comm::Communicator& communicator, Device device) {
  const std::filesystem::path saved = saved_machine(config);
  std::string file = config.parallel.machine, text;
  train::on_rank0(communicator, [&] {
    if (file.empty() && resume && std::filesystem::exists(saved)) file = saved.string();
    if (!file.empty()) text = machine_text(file);
    if (text.empty() && device.kind == DeviceKind::cuda)
      throw InvalidArgument(
          "a planner, and strategy auto, plan for a machine, and GPUs are not measured; give its name or file with --machine");
  });
  const std::vector<std::string> files = communicator.all_gather_bytes(file, Stream());
  file = files.front();
  text = communicator.all_gather_bytes(text, Stream()).front();
  // Printed numbers are rounded, so all ranks, now and on resume, read the text.
  if (text.empty()) file = "calibrated", text = communicator.all_gather_bytes(measured_text(config, communicator), Stream()).front();
  train::MachineDescription machine;
  train::all_or_none(communicator, [&] { machine = machine_from_text(text, file); });
  return machine;
}

}  // namespace periplus::launch
