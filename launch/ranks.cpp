#include "launch/ranks.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include <fmt/format.h>

#include "launch/cores.h"
#include "runtime/comm/mpi_process.h"
#include "runtime/comm/nccl_transport.h"
#include "runtime/comm/process_ranks.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

std::optional<int> number_in(const Environment& environment, const char* name) {
  const std::optional<std::string> text = environment(name);
  int number = 0;
  if (!text || std::from_chars(text->data(), text->data() + text->size(), number).ec != std::errc{}) return std::nullopt;
  return number;
}

struct Launched {
  std::string by;
  int rank = 0;
  int size = 1;
};

/// The process manager that MPI_Init would talk to, if there is one.
std::optional<Launched> mpi_launcher(const Environment& environment) {
  for (const comm::ProcessManager& manager : comm::kProcessManagers) {
    const auto rank = number_in(environment, manager.rank);
    const auto size = number_in(environment, manager.size);
    if (rank && size) return Launched{manager.name, *rank, *size};
  }
  return std::nullopt;
}

/// torchrun, or whoever sets the same variables.
std::optional<Launched> torch_launcher(const Environment& environment) {
  const std::optional<int> size = number_in(environment, "WORLD_SIZE");
  if (!size) return std::nullopt;
  return Launched{"torchrun", number_in(environment, "RANK").value_or(-1), *size};
}

std::optional<Launched> launcher(const Environment& environment) {
  const std::optional<Launched> by_mpi = mpi_launcher(environment);
  return by_mpi ? by_mpi : torch_launcher(environment);
}

void refuse_processes_without_mpi(const Environment& environment) {
  if (const int size = number_in(environment, "SLURM_STEP_NUM_TASKS").value_or(1); size > 1) {
    throw InvalidArgument(
        fmt::format("srun started {} processes without a process manager for MPI; start them with srun --mpi=pmix -n {} "
                    "periplus ..., or use mpirun inside the allocation",
                    size, size));
  }
}

void check_ranks(const RankOptions& options, const Launched& launched) {
  if (options.ranks != 0 && options.ranks != launched.size) {
    throw InvalidArgument(fmt::format("--ranks {} contradicts {}, which started {}; leave --ranks out{}", options.ranks, launched.by,
                                      launched.size, launched.size == 1 ? " or add --transport thread" : ""));
  }
}

RankSource mpi_ranks(const RankOptions& options, const Launched& launched) {
  check_ranks(options, launched);
  return {true, launched.size, launched.rank};
}

RankSource tcp_ranks(const RankOptions& options, const Launched& launched, const Environment& environment) {
  check_ranks(options, launched);
  const std::optional<std::string> host = environment("MASTER_ADDR");
  const std::optional<int> port = number_in(environment, "MASTER_PORT");
  if (launched.rank < 0 || launched.rank >= launched.size || !host || host->empty() || port.value_or(0) < 1 || *port > 65535) {
    throw InvalidArgument(fmt::format(
        "{} started {} processes, which need RANK (0 to {}; here it is {}), MASTER_ADDR (where rank 0 is) and MASTER_PORT (a free "
        "port there) to find each other; start them with torchrun --no-python --nproc-per-node N periplus ..., or with "
        "mpirun -n {} periplus ...",
        launched.by, launched.size, launched.size - 1, launched.rank, launched.size));
  }
  comm::TcpGroup group{.rank = launched.rank, .size = launched.size, .host = *host, .port = static_cast<std::uint16_t>(*port)};
  // torchrun's agent has its own store at that port, and starts all ranks anew after a failure.
  if (environment("TORCHELASTIC_USE_AGENT_STORE") == "True") {
    group.store_key = fmt::format("periplus/{}/{}", environment("TORCHELASTIC_RUN_ID").value_or(""),
                                  environment("TORCHELASTIC_RESTART_COUNT").value_or("0"));
  }
  return {false, launched.size, launched.rank, {}, std::move(group)};
}

void check_transport(const RankOptions& options, const DeviceRequest& device) {
  const bool gpu = device.kind == DeviceKind::cuda;
  if (gpu && (options.transport == "mpi" || options.transport == "tcp")) {
    throw InvalidArgument(
        fmt::format("--transport {} moves host memory only; with --device {} use --transport nccl", options.transport, options.device));
  }
  if (!gpu && options.transport == "nccl") {
    throw InvalidArgument("--transport nccl moves memory of GPUs only; add --device cuda, or use --transport mpi or tcp");
  }
}

RankSource thread_ranks(const RankOptions& options) { return {false, options.ranks != 0 ? options.ranks : options.alone, 0}; }

RankSource where_ranks_are(const RankOptions& options, const Environment& environment) {
  const std::optional<Launched> by_torch = torch_launcher(environment);
  std::optional<Launched> launched = mpi_launcher(environment);
  const bool tcp = options.transport == "tcp" || (!launched && options.transport != "mpi" && by_torch && by_torch->size > 1);
  if (tcp) launched = by_torch;
  if (options.transport == "thread") {
    if (launched && launched->size > 1) {
      throw InvalidArgument(fmt::format("--transport thread contradicts {}, which started {} processes; start one process with --ranks {}",
                                        launched->by, launched->size, launched->size));
    }
    return thread_ranks(options);
  }
  if (launched) return tcp ? tcp_ranks(options, *launched, environment) : mpi_ranks(options, *launched);
  refuse_processes_without_mpi(environment);
  if (options.transport == "mpi" && by_torch && by_torch->size > 1) {
    throw InvalidArgument(
        fmt::format("--transport mpi contradicts {}, which started {} processes that MPI does not know; leave it out, or "
                    "start them with mpirun -n {} periplus ...",
                    by_torch->by, by_torch->size, by_torch->size));
  }
  if (options.transport == "tcp") {
    throw InvalidArgument(
        fmt::format("--transport tcp needs its processes started: torchrun --no-python --nproc-per-node {} periplus ..., or processes with "
                    "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set",
                    std::max(options.ranks, 1)));
  }
  if (options.transport == "mpi" || options.transport == "nccl") {
    if (options.ranks > 1) {
      throw InvalidArgument(
          fmt::format("--transport {} needs its processes started: mpirun -n {} periplus ...", options.transport, options.ranks));
    }
    return {true, 1, 0};
  }
  return thread_ranks(options);
}

comm::TransportOptions transport_options(const RankOptions& options) {
  return {std::chrono::milliseconds(static_cast<std::int64_t>(std::ceil(options.deadline_seconds * 1e3)))};
}

bool uses_nccl(const RankSource& source, const RankOptions& options) {
  return source.processes() && source.device.kind == DeviceKind::cuda && (source.ranks > 1 || options.transport == "nccl");
}

/// Before MPI starts: what every rank finds missing is said once.
void require_backends(const RankSource& source, const RankOptions& options) {
  require_device(source.device);
  if (!uses_nccl(source, options)) return;
  if (const std::string reason = comm::nccl_unavailable_reason(); !reason.empty()) {
    throw BackendUnavailable(fmt::format("--device cuda: ranks that are processes need NCCL: {}", reason));
  }
}

/// Where a rank that is a process computes; `of_devices` are its peers there.
int run_on_own_device(const RankSource& source, const RankOptions& options, const comm::Communicator& processes,
                      comm::Communicator& of_devices, const std::function<int(const comm::Communicator&, Device)>& body) {
  if (processes.size() != source.ranks) {
    throw InvalidArgument(
        fmt::format("the launcher announced {} processes but MPI has {}; was this program started by the mpirun of another "
                    "MPI than {}?",
                    source.ranks, processes.size(), comm::describe_mpi().text));
  }
  if (!uses_nccl(source, options)) {
    share_cores(processes);
    // On a GPU one rank needs no transport.
    return source.device.kind == DeviceKind::cuda ? body({}, shared_device(source.device)) : body(processes, Device());
  }
  const Topology topology;
  const Device own = own_device(source.device, processes, topology);
  bind_near_gpu(processes, cuda::properties(own.index).pci_bus_id, topology);
  share_cores(processes);
  of_devices = comm::make_nccl_communicator(own.index, processes, transport_options(options));
  return body(of_devices, own);
}

int run_process_rank(const RankSource& source, const RankOptions& options,
                     const std::function<int(const comm::Communicator&, Device)>& body) {
  int code = kOk;
  comm::Communicator of_devices;  // outlives a failing body: freeing it while other ranks still wait in it could hang
  const auto body_of_process = [&](const comm::Communicator& processes) {
    code = run_on_own_device(source, options, processes, of_devices, body);
    processes.barrier(Stream());
    of_devices = {};
  };
  if (source.tcp) {
    comm::TcpGroup group = *source.tcp;
    group.patience = transport_options(options).deadline;
    comm::run_tcp_rank(group, body_of_process, transport_options(options));
  } else {
    comm::run_mpi_rank(body_of_process, transport_options(options));
  }
  return code;
}

}  // namespace

void add_rank_options(OptionTable& table, RankOptions& options, Devices devices) {
  std::vector<std::string> transports = {"auto", "thread", "mpi", "tcp"};
  if (devices == Devices::any) {
    transports.emplace_back("nccl");
    table.add({.key = "parallel.device",
               .flag = "device",
               .target = &options.device,
               .value = "NAME",
               .help =
                   "Where ranks compute: cpu, cuda or cuda:N. On GPUs the processes of mpirun or torchrun have one each (transport nccl); "
                   "the threads of --ranks share one."});
  }
  table.add({.key = "parallel.ranks",
             .flag = "ranks",
             .target = &options.ranks,
             .value = "N",
             .help = fmt::format("Ranks as threads of this process; 0: as many as mpirun or torchrun started processes, {} if neither did.",
                                 options.alone),
             .least = 0,
             .most = 1024});
  table.add({.key = "parallel.transport",
             .flag = "transport",
             .target = &options.transport,
             .value = "NAME",
             .help = "How ranks reach each other:",
             .choices = std::move(transports)});
  table.add({.key = "run.deadline_seconds",
             .flag = "deadline",
             .target = &options.deadline_seconds,
             .value = "SECONDS",
             .help = "Longest wait for other ranks before the run ends with a message.",
             .least = 0.001,
             .most = 1e6});
}

void add_print_launch_option(OptionTable& table, RankOptions& options) {
  table.add({.flag = "print-launch",
             .target = &options.print_launch,
             .help = "Prints the command lines that start --ranks N as processes with mpirun, srun and torchrun, then ends."});
}

std::optional<std::string> process_environment(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  if (value == nullptr) return std::nullopt;
  return value;
}

RankSource find_ranks(const RankOptions& options, const Environment& environment) {
  const DeviceRequest device = parse_device(options.device);
  check_transport(options, device);
  RankSource source = where_ranks_are(options, environment);
  source.device = device;
  return source;
}

void require_one_process(const Environment& environment) {
  const std::optional<Launched> launched = launcher(environment);
  if (!launched || launched->size <= 1) return;
  throw InvalidArgument(
      fmt::format("this command runs in one process, but {} started {}; start it without a launcher", launched->by, launched->size));
}

std::string describe_launcher(const Environment& environment) {
  const std::optional<Launched> launched = launcher(environment);
  std::string text = launched ? fmt::format("{} started this process as rank {} of {}", launched->by, launched->rank, launched->size)
                              : std::string("none; ranks are threads (--ranks N)");
  std::string seen;
  for (const char* name :
       {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_JOB_ID", "SLURM_NTASKS",
        "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}) {
    if (const std::optional<std::string> value = environment(name)) seen += fmt::format(" {}={}", name, *value);
  }
  return text + (seen.empty() ? "" : "; set:" + seen);
}

int run_ranks(const RankSource& source, const RankOptions& options, const std::function<int(const comm::Communicator&, Device)>& body) {
  require_backends(source, options);
  if (source.processes()) return run_process_rank(source, options, body);
  int code = kOk;
  const auto thread_body = [&](const comm::Communicator& communicator) {
    const int mine = body(communicator, shared_device(source.device));
    if (communicator.rank() == 0) code = mine;
  };
  comm::run_thread_ranks(source.ranks, thread_body, transport_options(options));
  return code;
}

int run_ranks(const RankSource& source, const RankOptions& options, const std::function<int(const comm::Communicator&)>& body) {
  return run_ranks(source, options, [&](const comm::Communicator& communicator, Device) { return body(communicator); });
}

int report(const std::exception& error, const std::string& command) {
  const std::optional<Launched> launched = launcher(process_environment);
  if (launched) comm::let_rank_zero_speak(launched->rank);
  std::string message = comm::message_of(error);
  if (message.starts_with(command + ": ")) message.erase(0, command.size() + 2);  // who calls the library needs that word
  fmt::print(stderr, "periplus{}{}: {}\n", command.empty() ? "" : " ", command, message);
  return comm::exit_code_of(error);
}

}  // namespace periplus::launch
