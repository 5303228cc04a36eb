#pragma once

#include <functional>

#include "parallel/train/trainer.h"
#include "runtime/comm/communicator.h"

namespace periplus::train {

/// What all ranks together reach in large matrix products, flops per second: what utilisation is a share of.
class MatrixPeak {
 public:
  MatrixPeak(const TrainOptions& options, DType dtype, comm::Communicator communicator);

  /// 0: not measured, in f64 or because nobody says how.
  double flops() const noexcept { return flops_; }
  /// Collective. `say` tells what was found.
  void measure(const std::function<void(const std::string&)>& say);
  /// After a step with so many flops per second; measures again if that was more. Not on a GPU, where the step may have left no memory to
  /// measure in. Collective.
  void correct(double reached, const std::function<void(const std::string&)>& say);

 private:
  const TrainOptions& options_;
  DType dtype_;
  comm::Communicator communicator_;
  double flops_ = 0;
};

}  // namespace periplus::train
