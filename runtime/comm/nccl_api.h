#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

/// What the NCCL transport uses of NCCL, as a table of functions: the library found at run time, or a fake of tests.
namespace periplus::comm::nccl {

enum class Result : std::uint8_t {
  success,
  unhandled_cuda_error,
  system_error,
  internal_error,
  invalid_argument,
  invalid_usage,
  remote_error,
  in_progress,
};

struct UniqueId {
  std::array<char, 128> bytes{};
};
using Comm = void*;

struct Api {
  int version;  ///< 22809 for 2.28.9
  Result (*get_unique_id)(UniqueId* id);
  /// Makes a non-blocking communicator for a CUDA device; its state is in_progress until all `size` ranks have called.
  Result (*comm_init_rank)(Comm* comm, int size, const UniqueId* id, int rank, int device);
  /// May be called while another thread is inside a call on the same communicator.
  Result (*comm_get_async_error)(Comm comm, Result* state);
  Result (*group_start)();
  Result (*group_end)();
  Result (*send)(const void* data, std::size_t bytes, int peer, Comm comm, void* stream);
  Result (*receive)(void* data, std::size_t bytes, int peer, Comm comm, void* stream);
  /// Inside a group too. `bytes` of each rank, in rank order in `gathered`; `mine` may lie in its place there.
  Result (*all_gather)(const void* mine, void* gathered, std::size_t bytes, Comm comm, void* stream);
  Result (*comm_finalize)(Comm comm);
  Result (*comm_destroy)(Comm comm);
  Result (*comm_abort)(Comm comm);
  const char* (*get_error_string)(Result result);
  const char* (*get_last_error)();
};

/// libnccl.so.2, loaded at the first call and kept.
/// Errors: BackendUnavailable if this build or machine has none, or one that is too old.
const Api& library();

/// "2.28.9"
std::string version_text(int version);

}  // namespace periplus::comm::nccl
