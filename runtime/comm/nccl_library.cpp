// Finds NCCL at run time, so that programs start on machines without it; the header gives types only.
#include <cstring>
#include <utility>

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <nccl.h>

#include "runtime/comm/nccl_api.h"
#include "runtime/comm/nccl_transport.h"
#include "runtime/error.h"

namespace periplus::comm {
namespace nccl {
namespace {

constexpr const char* kFile = "libnccl.so.2";
constexpr int kOldest = NCCL_VERSION(2, 18, 0);  // before, non-blocking communicators could not finalize and abort reliably

static_assert(static_cast<int>(Result::success) == ncclSuccess);
static_assert(static_cast<int>(Result::unhandled_cuda_error) == ncclUnhandledCudaError);
static_assert(static_cast<int>(Result::system_error) == ncclSystemError);
static_assert(static_cast<int>(Result::internal_error) == ncclInternalError);
static_assert(static_cast<int>(Result::invalid_argument) == ncclInvalidArgument);
static_assert(static_cast<int>(Result::invalid_usage) == ncclInvalidUsage);
static_assert(static_cast<int>(Result::remote_error) == ncclRemoteError);
static_assert(static_cast<int>(Result::in_progress) == ncclInProgress);
static_assert(sizeof(UniqueId) == sizeof(ncclUniqueId) && sizeof(UniqueId) == NCCL_UNIQUE_ID_BYTES);

struct Functions {
  decltype(&ncclGetVersion) get_version;
  decltype(&ncclGetUniqueId) get_unique_id;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config;
  decltype(&ncclCommGetAsyncError) comm_get_async_error;
  decltype(&ncclGroupStart) group_start;
  decltype(&ncclGroupEnd) group_end;
  decltype(&ncclSend) send;
  decltype(&ncclRecv) recv;
  decltype(&ncclAllGather) all_gather;
  decltype(&ncclCommFinalize) comm_finalize;
  decltype(&ncclCommDestroy) comm_destroy;
  decltype(&ncclCommAbort) comm_abort;
  decltype(&ncclGetErrorString) get_error_string;
  decltype(&ncclGetLastError) get_last_error;
};

Functions load() {
  void* const file = dlopen(kFile, RTLD_NOW | RTLD_LOCAL);
  if (file == nullptr) {
    const char* const reason = dlerror();
    throw BackendUnavailable(
        fmt::format("nccl transport: {} cannot be loaded ({}); install NCCL 2.18 or newer or add its folder to LD_LIBRARY_PATH", kFile,
                    reason == nullptr ? "no reason given" : reason));
  }
  Functions functions{};
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(file, name));
    if (function == nullptr) {
      throw BackendUnavailable(fmt::format("nccl transport: {} has no {}; install NCCL 2.18 or newer", kFile, name));
    }
  };
  find(functions.get_version, "ncclGetVersion");
  int version = 0;
  if (functions.get_version(&version) != ncclSuccess) version = 0;
  if (version < kOldest) {
    throw BackendUnavailable(
        fmt::format("nccl transport: {} is NCCL {}; non-blocking communicators need 2.18 or newer", kFile, version_text(version)));
  }
  find(functions.get_unique_id, "ncclGetUniqueId");
  find(functions.comm_init_rank_config, "ncclCommInitRankConfig");
  find(functions.comm_get_async_error, "ncclCommGetAsyncError");
  find(functions.group_start, "ncclGroupStart");
  find(functions.group_end, "ncclGroupEnd");
  find(functions.send, "ncclSend");
  find(functions.recv, "ncclRecv");
  find(functions.all_gather, "ncclAllGather");
  find(functions.comm_finalize, "ncclCommFinalize");
  find(functions.comm_destroy, "ncclCommDestroy");
  find(functions.comm_abort, "ncclCommAbort");
  find(functions.get_error_string, "ncclGetErrorString");
  find(functions.get_last_error, "ncclGetLastError");
  return functions;
}

const Functions& functions() {
  static const Functions loaded = load();
  return loaded;
}

Result ours(ncclResult_t result) { return static_cast<Result>(result); }
ncclComm_t theirs(Comm comm) { return static_cast<ncclComm_t>(comm); }

/// NCCL takes the calling thread's current device.
Result comm_init_rank(Comm* comm, int size, const UniqueId* id, int rank, int device) {
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(device) != cudaSuccess) return Result::unhandled_cuda_error;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclUniqueId unique_id;
  std::memcpy(&unique_id, id, sizeof(unique_id));
  ncclComm_t made = nullptr;
  const ncclResult_t result = functions().comm_init_rank_config(&made, size, unique_id, rank, &config);
  *comm = made;
  if (cudaSetDevice(before) != cudaSuccess) return Result::unhandled_cuda_error;
  return ours(result);
}

Result get_async_error(Comm comm, Result* state) {
  ncclResult_t found = ncclSuccess;
  const ncclResult_t result = functions().comm_get_async_error(theirs(comm), &found);
  *state = ours(found);
  return ours(result);
}

Api make_api() {
  int version = 0;
  functions().get_version(&version);
  return {
      .version = version,
      .get_unique_id = [](UniqueId* id) { return ours(functions().get_unique_id(reinterpret_cast<ncclUniqueId*>(id))); },
      .comm_init_rank = comm_init_rank,
      .comm_get_async_error = get_async_error,
      .group_start = [] { return ours(functions().group_start()); },
      .group_end = [] { return ours(functions().group_end()); },
      .send =
          [](const void* data, std::size_t bytes, int peer, Comm comm, void* stream) {
            return ours(functions().send(data, bytes, ncclInt8, peer, theirs(comm), static_cast<cudaStream_t>(stream)));
          },
      .receive =
          [](void* data, std::size_t bytes, int peer, Comm comm, void* stream) {
            return ours(functions().recv(data, bytes, ncclInt8, peer, theirs(comm), static_cast<cudaStream_t>(stream)));
          },
      .all_gather =
          [](const void* mine, void* gathered, std::size_t bytes, Comm comm, void* stream) {
            return ours(functions().all_gather(mine, gathered, bytes, ncclInt8, theirs(comm), static_cast<cudaStream_t>(stream)));
          },
      .comm_finalize = [](Comm comm) { return ours(functions().comm_finalize(theirs(comm))); },
      .comm_destroy = [](Comm comm) { return ours(functions().comm_destroy(theirs(comm))); },
      .comm_abort = [](Comm comm) { return ours(functions().comm_abort(theirs(comm))); },
      .get_error_string = [](Result result) { return functions().get_error_string(static_cast<ncclResult_t>(result)); },
      .get_last_error = [] { return functions().get_last_error(nullptr); },
  };
}

}  // namespace

const Api& library() {
  static const Api api = make_api();
  return api;
}

}  // namespace nccl

}  // namespace periplus::comm
