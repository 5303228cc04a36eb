#pragma once

#include <string>
#include <vector>

#include "launch/svg.h"
#include "parallel/train/trainer.h"

namespace periplus::launch {

/// "step      loss  grad_norm   tokens/s ..."
std::string progress_header();
/// One line under that header, with the time left until `steps` at the present pace.
std::string progress_line(const train::StepMetrics& metrics, std::int64_t steps);

/// Of every step, and of those with a validation loss if there are any.
std::vector<Curve> loss_curves(const std::vector<train::StepMetrics>& steps, const std::string& name, const std::string& validation_name);

/// Reads the losses of the run folder's metrics.jsonl, so that a resumed run shows its whole curve, and writes loss.svg.
void write_loss_chart(const std::string& directory, const train::TrainResult& result);

}  // namespace periplus::launch
