#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/comm/communicator.h"
#include "runtime/comm/nccl_api.h"
#include "runtime/comm/transport.h"
#include "runtime/device.h"

namespace periplus::comm {

/// Why NCCL cannot be used, in one sentence; empty if it can.
std::string nccl_unavailable_reason() noexcept;

/// Communicator over memory of CUDA device `device`, one NCCL communicator per lane, with the ranks of `bootstrap` (mpi, tcp or thread),
/// which also moves the messages in host memory from then on, so that all verbs of Communicator work. Collective, also in its errors: if
/// one rank fails, all throw, and the others name it. A rank needs a GPU of its own.
/// An exchange is one grouped call on the stream it is given; its Pending is done once the call is in the stream, so work
/// enqueued on the stream after that comes after the messages. The stream must live until then. If the peers never take
/// part, the stream stands still: a watchdog then aborts the communicators after the deadline, the stream moves on, and
/// Communicator::throw_if_failed and every later call throw. So throw_if_failed() must follow the last synchronize, before results are
/// used. NCCL does not compare the sizes of the two ends: a mismatch ends at the deadline. The ranks of a failed group that are blocked in
/// exchanges end at their own deadlines. Errors: BackendUnavailable without NCCL or CUDA device, InvalidArgument for two ranks on one GPU,
/// CommError, DeviceError.
Communicator make_nccl_communicator(int device, const Communicator& bootstrap, const TransportOptions& options = {});

namespace nccl {

/// Hands in the bytes of this rank, returns those of every rank in rank order. It must end (with an exception) if a rank is missing.
using AllGatherBytes = std::function<std::vector<std::string>(std::string_view)>;

/// What one rank brings to a group.
struct Endpoint {
  const Api* api = nullptr;
  Device device;     ///< Where the memory of its messages is.
  std::string host;  ///< Names the machine to people.
  std::string card;  ///< Equal for two ranks only if they share a GPU.
};

/// Records the point that a stream has reached and returns whether the stream has passed it; an empty function where the
/// host itself runs the stream. The transport watches exchanges on the device with it.
using RecordMark = std::function<std::function<bool()>(StreamView)>;

/// The end that a rank with this GPU brings. Errors: BackendUnavailable without NCCL or CUDA device.
Endpoint find_endpoint(int device);

/// `find` may throw: the other ranks are told. `host` moves messages in host memory, if it is given.
std::shared_ptr<Transport> connect(const std::function<Endpoint()>& find, int rank, const AllGatherBytes& all_gather,
                                   const TransportOptions& options, const RecordMark& record_mark, std::optional<Communicator> host = {});
/// The transport behind make_nccl_communicator; without a `host` verbs on host memory are refused.
std::shared_ptr<Transport> connect_device(int device, int rank, const AllGatherBytes& all_gather, const TransportOptions& options,
                                          std::optional<Communicator> host = {});

}  // namespace nccl
}  // namespace periplus::comm
