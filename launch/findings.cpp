// What `periplus doctor` finds out about the processor, memory and libraries. OpenBLAS is looked at through dlopen,
// because a missing one is a finding and not a reason to fail.
#include "launch/findings.h"

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <dlfcn.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/uio.h>
#include <unistd.h>

#include "kernels/cpu_level.h"
#include "kernels/matmul.h"
#include "launch/bytes_text.h"
#include "launch/cores.h"
#include "launch/ranks.h"
#include "runtime/comm/mpi_process.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

/// Value of the first "name : value" line of a /proc file.
std::string proc_value(const char* file, const std::string& name) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(name)) continue;
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

std::string first_line(const char* file) {
  std::ifstream lines(file);
  std::string line;
  std::getline(lines, line);
  return line;
}

bool cpu_has(const std::string& feature) {
  std::istringstream words(proc_value("/proc/cpuinfo", "flags"));
  for (std::string word; words >> word;) {
    if (word == feature) return true;
  }
  return false;
}

bool in_path(const std::string& program) {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path == nullptr ? "" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (access((folder + "/" + program).c_str(), X_OK) == 0) return true;
  }
  return false;
}

/// A shared library that may be absent; stays loaded, since unloading GPU drivers is not safe.
class Library {
 public:
  explicit Library(const char* name) : handle_(dlopen(name, RTLD_LAZY | RTLD_LOCAL)) {}
  bool found() const noexcept { return handle_ != nullptr; }
  template <class Function>
  Function* function(const char* name) const {
    return reinterpret_cast<Function*>(dlsym(handle_, name));
  }

 private:
  void* handle_;
};

}  // namespace

Finding examine_cpu() {
  std::string features;
  constexpr std::array<std::pair<const char*, const char*>, 6> kNamed = {{{"avx2", "AVX2"},
                                                                          {"avx512f", "AVX-512"},
                                                                          {"avx512_bf16", "AVX-512 BF16"},
                                                                          {"avx512_fp16", "AVX-512 FP16"},
                                                                          {"amx_tile", "AMX"},
                                                                          {"amx_bf16", "AMX BF16"}}};
  for (const auto& [flag, name] : kNamed) {
    if (cpu_has(flag)) features += (features.empty() ? "" : ", ") + std::string(name);
  }
  const std::string model = proc_value("/proc/cpuinfo", "model name");
  return {"CPU", Health::good,
          fmt::format("{}: {}", model.empty() ? "unknown model" : model, features.empty() ? "no vector extensions known here" : features)};
}

Finding examine_kernels() {
  const kernels::CpuLevel level = kernels::cpu_level(), best = kernels::best_cpu_level();
  Finding finding{"Kernels", Health::good,
                  fmt::format("attention runs at level {}; matrix products in {}", to_string(level),
                              kernels::bf16_is_native() ? "bf16 on native instructions" : "f32, because this CPU has no native bf16")};
  if (level != best) {
    finding.health = Health::trouble;
    finding.remedy = fmt::format("this CPU can run level {}; unset PERIPLUS_CPU_LEVEL", to_string(best));
  }
  return finding;
}

Finding examine_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int usable = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  const char* threads = std::getenv("OMP_NUM_THREADS");
  Finding finding{"Cores", Health::good,
                  fmt::format("{} of {} online cores may be used; OMP_NUM_THREADS is {}", usable, online,
                              threads == nullptr ? "not set (all of them)" : threads)};
  std::istringstream quota(first_line("/sys/fs/cgroup/cpu.max"));
  double limit = 0, period = 0;
  if (quota >> limit >> period && period > 0 && limit / period < usable) {
    finding.health = Health::trouble;
    finding.remedy =
        fmt::format("the container may use only {:.1f} cores' time; set OMP_NUM_THREADS to that or raise the quota", limit / period);
  } else if (threads != nullptr && std::atoi(threads) > usable) {
    finding.health = Health::trouble;
    finding.remedy = fmt::format("more threads than cores slow every barrier; set OMP_NUM_THREADS to at most {}", usable);
  }
  return finding;
}

Finding examine_topology() {
  const std::string summary = Topology().summary();
  if (summary.empty()) {
    return {"Topology", Health::note, "not known, because this build has no hwloc (Debian's libhwloc-dev)",
            "ranks on several GPUs are not bound to the cores near them"};
  }
  return {"Topology", Health::good, fmt::format("{}; this process may use {}", summary, to_string(allowed_cpus()))};
}

Finding examine_memory() {
  const double total = std::atof(proc_value("/proc/meminfo", "MemTotal").c_str()) * 1024;
  const double available = std::atof(proc_value("/proc/meminfo", "MemAvailable").c_str()) * 1024;
  std::string fact = fmt::format("{} of {} available", bytes_text(available), bytes_text(total));
  const std::string limit = first_line("/sys/fs/cgroup/memory.max");
  if (!limit.empty() && limit != "max") fact += fmt::format("; the container is limited to {}", bytes_text(std::atof(limit.c_str())));
  return {"Memory", Health::good, fact};
}

Finding examine_mpi() {
  const comm::MpiFacts facts = comm::describe_mpi();
  if (!facts.built) return {"MPI", Health::note, facts.text, "ranks still run as threads: --ranks N"};
  if (!in_path("mpirun")) return {"MPI", Health::note, facts.text + ", but mpirun is not in PATH", "apt-get install openmpi-bin"};
  return {"MPI", Health::good, facts.text + ", mpirun found"};
}

Finding examine_launcher() {
  Finding finding{"Launcher", Health::good, describe_launcher()};
  try {
    find_ranks({});
  } catch (const InvalidArgument& error) {
    finding.health = Health::trouble;
    finding.remedy = error.what();
  }
  return finding;
}

Finding examine_single_copy() {
  const std::string scope = first_line("/proc/sys/kernel/yama/ptrace_scope");
  std::array<char, 8> from{}, to{};
  const iovec local{to.data(), to.size()}, remote{from.data(), from.size()};
  if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) < 0) {
    return {"Single copy", Health::trouble,
            fmt::format("process_vm_readv is refused ({}), so MPI copies every message twice", std::strerror(errno)),
            "allow it in the container's seccomp profile (docker run --cap-add SYS_PTRACE)"};
  }
  if (!scope.empty() && scope != "0" && geteuid() != 0) {
    return {"Single copy", Health::trouble,
            fmt::format("ptrace_scope is {}, so processes may not read each other and MPI copies every message twice", scope),
            "sysctl kernel.yama.ptrace_scope=0"};
  }
  return {"Single copy", Health::good, "MPI may copy messages directly between processes (CMA)"};
}

Finding examine_onednn() {
  struct Version {  // the stable head of dnnl_version_t
    int major, minor, patch;
  };
  void* const symbol = dlsym(RTLD_DEFAULT, "dnnl_version");
  if (symbol == nullptr) return {"oneDNN", Health::note, "linked statically, version unknown"};
  const Version* const version = reinterpret_cast<const Version* (*)()>(symbol)();
  return {"oneDNN", Health::good, fmt::format("version {}.{}.{} runs the matrix products", version->major, version->minor, version->patch)};
}

Finding examine_openblas() {
  const Library library("libopenblas.so.0");
  if (!library.found()) return {"OpenBLAS", Health::good, "not installed; Periplus does not use it"};
  auto* const core_name = library.function<char*()>("openblas_get_corename");
  const std::string core = core_name == nullptr ? "unknown" : core_name();
  const bool slow = cpu_has("avx512f") && core != "SkylakeX" && core != "Cooperlake" && core != "Sapphirerapids" && core != "Zen";
  Finding finding{"OpenBLAS", Health::good, fmt::format("installed, takes this CPU for '{}'; Periplus does not use it", core)};
  if (slow) {
    finding.health = Health::note;
    finding.remedy = "it does not know this CPU and runs NumPy and other yardsticks slowly; set OPENBLAS_CORETYPE=SkylakeX for them";
  }
  return finding;
}

}  // namespace periplus::launch
