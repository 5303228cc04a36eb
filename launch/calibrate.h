#pragma once

#include <string>
#include <vector>

#include "parallel/simulate/machine.h"
#include "runtime/comm/communicator.h"
#include "runtime/dtype.h"

namespace periplus::launch {

/// What is measured: kernels of these shapes, in this type. Rates of small matrices differ from those of large ones.
struct CalibrationOptions {
  DType dtype = DType::bf16;
  std::int64_t hidden = 448, ffn = 1344;
  int heads = 2, head_size = 64;
  std::vector<std::int64_t> lengths = {256, 512, 1024, 2048, 4096};
  int samples = 7;
};

/// Measures kernels on all ranks at once, as in training, and the links between the first two. Collective; the same on all ranks.
/// Kernels count the processor time of the rank's thread, so that other programs on its core do not, over its part of a core where ranks
/// outnumber cores; a rank with a team of threads is slower than that says where other programs have its cores.
/// Memory rate: bytes that simulate_iteration counts for the parts of a layer beside its matrices, over the time that they take.
/// Cost: 1 s to 10 s.
simulate::Machine calibrate(const CalibrationOptions& options, const comm::Communicator& communicator);

/// As a machine's file.
std::string to_toml(const simulate::Machine& machine, const CalibrationOptions& options);

}  // namespace periplus::launch
