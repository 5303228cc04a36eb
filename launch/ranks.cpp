#include "launch/ranks.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include <fmt/format.h>

#include "launch/cores.h"
#include "launch/ranks_mpi.h"
#include "runtime/comm/mpi_transport.h"
#include "runtime/comm/nccl_transport.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"
#include "runtime/out_of_memory.h"

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
  struct Names {
    const char *by, *rank, *size;
  };
  // srun tells the world size of a PMIx job only in its own variable.
  constexpr Names kKnown[] = {{"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                              {"the process manager", "PMI_RANK", "PMI_SIZE"},
                              {"srun", "PMIX_RANK", "SLURM_STEP_NUM_TASKS"}};
  for (const Names& names : kKnown) {
    const auto rank = number_in(environment, names.rank);
    const auto size = number_in(environment, names.size);
    if (rank && size) return Launched{names.by, *rank, *size};
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
    return {false, std::max(options.ranks, 1), 0};
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
  return {false, std::max(options.ranks, 1), 0};
}

/// Every rank of a job usually fails alike: rank 0 gets time to say it and end the job. A rank that is still alive after
/// that has a problem of its own.
void let_rank_zero_speak(int rank, const comm::Communicator& ranks = {}) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  while (rank > 0 && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    try {
      ranks.progress();
      ranks.throw_if_failed();
    } catch (const CommError&) {
      std::_Exit(kBadInput);  // rank 0 has spoken, and nobody else ends this process
    }
  }
}

int exit_code_of(const std::exception& error) {
  return dynamic_cast<const InvalidArgument*>(&error) != nullptr ? kBadInput : kRuntimeFailure;
}

/// The standard library's exceptions say little, and what a message quotes of a file must not control the terminal.
std::string message_of(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return kOutOfMemory;
  const auto* const refused = dynamic_cast<const std::system_error*>(&error);
  if (refused != nullptr && refused->code() == std::errc::resource_unavailable_try_again)
    return "threads: the system starts no more; use fewer ranks or threads, or raise the limit (ulimit -u, ulimit -v, a container's)";
  std::string message = error.what();
  const auto controls = [](char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f; };
  std::ranges::replace_if(message, controls, '?');
  return message;
}

void say(const std::string& line) {
  std::fputs((line + "\n").c_str(), stderr);
  std::fflush(stderr);
}

/// Ends this process if MPI, whose start and end know no deadline, takes longer than the deadline (and 10 s, which starting may well
/// take). Rank 0 speaks first: when it has ended, mpirun ends the others.
class MpiWatch {
 public:
  MpiWatch(const RankSource& source, const RankOptions& options, const char* call)
      : thread_([=, rank = source.rank, ranks = source.ranks, deadline = options.deadline_seconds](const std::stop_token& stop) {
          const double seconds = std::max(deadline, 10.0);
          std::mutex mutex;
          std::unique_lock lock(mutex);
          const auto stopped = [&] { return stop.stop_requested(); };
          if (std::condition_variable_any().wait_for(lock, stop, std::chrono::duration<double>(seconds + (rank > 0 ? 2 : 0)), stopped))
            return;
          say(
              fmt::format("periplus: rank {} of {}: {} has not finished after {} s; check that every rank is alive, or raise the deadline "
                          "(--deadline, run.deadline_seconds)",
                          rank, ranks, call, seconds));
          std::_Exit(kRuntimeFailure);
        }) {}

 private:
  std::jthread thread_;
};

/// Uses MPI only where it is known to be sane: after a communication failure any MPI call may hang, and a launcher ends
/// the job anyway when a process leaves with an error.
[[noreturn]] void end_failed_rank(const std::exception& error, const RankSource& source, const MpiWorld& world,
                                  const comm::Communicator& ranks) {
  const int code = exit_code_of(error);
  const auto* const of_peer = dynamic_cast<const comm::AbortedByPeer*>(&error);
  if (of_peer != nullptr && of_peer->cause() == comm::AbortCause::invalid_argument) std::_Exit(kBadInput);  // that rank has spoken
  if (code == kBadInput) let_rank_zero_speak(world.rank, ranks);
  const std::string who = fmt::format("rank {} of {}: ", world.rank, world.size), message = message_of(error);
  const std::string line = (message.starts_with(who) ? "" : who) + message;
  say("periplus: " + line);
  std::fflush(stdout);
  ranks.abort(line, code == kBadInput ? comm::AbortCause::invalid_argument : comm::AbortCause::failure);
  if (!source.mpi || dynamic_cast<const CommError*>(&error) != nullptr) std::_Exit(code);
  abort_mpi(code);
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

comm::Communicator join_processes(const RankSource& source, const RankOptions& options, const MpiWorld& world) {
  if (source.tcp) {
    comm::TcpGroup group = *source.tcp;
    group.patience = transport_options(options).deadline;
    return comm::make_tcp_communicator(group, transport_options(options));
  }
  if (world.size != source.ranks) {
    throw InvalidArgument(
        fmt::format("the launcher announced {} processes but MPI has {}; was this program started by the mpirun of another "
                    "MPI than {}?",
                    source.ranks, world.size, describe_mpi().text));
  }
  return comm::make_mpi_world(transport_options(options));
}

int run_process_rank(const RankSource& source, const RankOptions& options,
                     const std::function<int(const comm::Communicator&, Device)>& body) {
  std::optional<MpiWatch> watch;
  if (source.mpi) watch.emplace(source, options, "MPI_Init");
  const MpiWorld world = source.mpi ? start_mpi() : MpiWorld{source.rank, source.ranks};
  int code = kOk;
  // They outlive a failing body: freeing a communicator while other ranks still wait in it could hang.
  comm::Communicator communicator, of_devices;
  try {
    communicator = join_processes(source, options, world);
    watch.reset();
    std::optional<Device> own;
    if (uses_nccl(source, options)) {
      const Topology topology;
      own = own_device(source.device, communicator, topology);
      bind_near_gpu(communicator, cuda::properties(own->index).pci_bus_id, topology);
    }
    share_cores(communicator);
    if (own) {
      const Device device = *own;
      of_devices = comm::make_nccl_communicator(device.index, communicator, transport_options(options));
      code = body(of_devices, device);
    } else if (source.device.kind == DeviceKind::cuda) {
      code = body(of_devices, shared_device(source.device));  // one rank needs no transport
    } else {
      code = body(communicator, Device());
    }
    communicator.barrier(Stream());
  } catch (const std::exception& error) {
    end_failed_rank(error, source, world, communicator);
  }
  of_devices = {};
  if (source.mpi) watch.emplace(source, options, "MPI_Finalize");
  communicator = {};
  if (source.mpi) finish_mpi();
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
             .help = "Ranks as threads of this process; 0: one, or as many processes as mpirun or torchrun started.",
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
  if (launched) let_rank_zero_speak(launched->rank);
  say(fmt::format("periplus{}{}: {}", command.empty() ? "" : " ", command, message_of(error)));
  return exit_code_of(error);
}

}  // namespace periplus::launch
