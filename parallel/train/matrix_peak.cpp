#include "parallel/train/matrix_peak.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "parallel/train/agree.h"

namespace periplus::train {

MatrixPeak::MatrixPeak(const TrainOptions& options, DType dtype, comm::Communicator communicator)
    : options_(options), dtype_(dtype), communicator_(std::move(communicator)) {}

void MatrixPeak::measure(const std::function<void(const std::string&)>& say) {
  if (!options_.measure_peak || dtype_ == DType::f64) return;
  communicator_.barrier(Stream());  // ranks share cores and caches, or a GPU, in training too, so they measure at the same time
  std::array<double, 1> peak = {options_.measure_peak(dtype_, options_.device)};
  all_reduce(communicator_, peak, comm::Reduce::sum);
  flops_ = std::max(flops_, peak[0]);
  say(fmt::format("matrix peak of all ranks together: {:.1f} Gflop/s in {}", flops_ * 1e-9, to_string(dtype_)));
}

void MatrixPeak::correct(double reached, const std::function<void(const std::string&)>& say) {
  if (flops_ == 0 || reached <= flops_ || options_.device.kind != DeviceKind::cpu) return;
  say("a step was faster than the matrix peak, which others must have slowed: it is measured again");
  measure(say);
  flops_ = std::max(flops_, reached);
}

}  // namespace periplus::train
