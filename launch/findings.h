#pragma once

#include <string>
#include <vector>

namespace periplus::launch {

enum class Health { good, note, trouble };

/// One fact about this machine or build, with what to do if it could be better.
struct Finding {
  std::string subject;  ///< "CPU", "MPI"
  Health health = Health::good;
  std::string fact;
  std::string remedy{};  ///< Empty: nothing to do.
};

Finding examine_cpu();
Finding examine_kernels();
Finding examine_cores();
Finding examine_topology();
Finding examine_memory();
Finding examine_mpi();
Finding examine_launcher();
Finding examine_single_copy();
Finding examine_onednn();
Finding examine_openblas();
Finding examine_cuda();
std::vector<Finding> examine_gpus();  ///< One for each device.
Finding examine_nccl();

}  // namespace periplus::launch
