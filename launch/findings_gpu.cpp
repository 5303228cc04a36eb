// What `periplus doctor` finds out about GPUs. A missing driver, device or NCCL is a fact and not trouble.
#include <exception>
#include <utility>

#include <dlfcn.h>
#include <fmt/format.h>

#include "launch/bytes_text.h"
#include "launch/findings.h"
#include "launch/topology.h"
#include "runtime/cuda/device.h"

namespace periplus::launch {
namespace {

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

}  // namespace

Finding examine_cuda() {
  const std::string reason = cuda::unavailable_reason();
  if (!reason.empty()) return {"CUDA", Health::note, reason + "; everything runs on the CPU"};
  return {"CUDA", Health::good,
          fmt::format("{} {}; the driver supports CUDA {}, this build is of toolkit {}", cuda::device_count(),
                      cuda::device_count() == 1 ? "device" : "devices", version_text(cuda::driver_version()),
                      version_text(cuda::toolkit_version()))};
}

std::vector<Finding> examine_gpus() {
  std::vector<Finding> findings;
  const Topology topology;
  for (int index = 0; index < cuda::device_count(); ++index) {
    const std::string subject = fmt::format("GPU {}", index);
    try {
      const cuda::DeviceProperties gpu = cuda::properties(index);
      const Cpus near = topology.near(gpu.pci_bus_id);
      Finding finding{
          subject, Health::good,
          fmt::format("{} at {}: capability {}.{}, {} multiprocessors, {} of {} free{}", gpu.name, gpu.pci_bus_id, gpu.major, gpu.minor,
                      gpu.multiprocessors, bytes_text(static_cast<double>(gpu.free_bytes)),
                      bytes_text(static_cast<double>(gpu.memory_bytes)), near.empty() ? "" : "; near cores " + to_string(near))};
      if (gpu.major < 8) {
        finding.health = Health::note;
        finding.remedy = "attention has kernels with matrix instructions for capability 8.0 and newer; here it is slow";
      }
      findings.push_back(std::move(finding));
    } catch (const std::exception& error) {
      findings.push_back({subject, Health::trouble, error.what(), "another process may hold it exclusively, or it needs a reset"});
    }
  }
  return findings;
}

Finding examine_nccl() {
  const char* const use = PERIPLUS_HAS_NCCL ? "" : "; this build does not use it (PERIPLUS_WITH_NCCL)";
  void* const library = dlopen("libnccl.so.2", RTLD_LAZY | RTLD_LOCAL);  // never unloaded: it may have started threads
  if (library == nullptr) return {"NCCL", Health::note, "not installed (libnccl.so.2); only ranks on several GPUs need it"};
  auto* const get_version = reinterpret_cast<int (*)(int*)>(dlsym(library, "ncclGetVersion"));
  int version = 0;
  if (get_version == nullptr || get_version(&version) != 0) return {"NCCL", Health::note, "installed, but does not tell its version"};
  return {"NCCL", PERIPLUS_HAS_NCCL ? Health::good : Health::note,
          fmt::format("version {}.{}.{}{}", version / 10000, version / 100 % 100, version % 100, use)};
}

}  // namespace periplus::launch
