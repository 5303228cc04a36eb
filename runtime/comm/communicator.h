#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/comm/aborted_by_peer.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace periplus::comm {

class Transport;
class Operation;

/// One outgoing and one incoming message. Zero bytes and `peer == own rank` are allowed in the verbs.
struct Send {
  int peer;
  const void* data;
  std::size_t bytes;
};
struct Receive {
  int peer;
  void* data;
  std::size_t bytes;
};

/// What an operation is, for error messages and traces, and on which lane its messages match.
struct Purpose {
  std::string_view operation = "exchange";  ///< Must outlive the operation: a literal or a plan's label.
  int step = -1;                            ///< Plan step id, -1 outside plans.
  int lane = 0;                             ///< 0 to 2 for plans; the other verbs use a lane of their own.
  /// All ranks of the group post the messages of an all-gather: equal shares, in rank order in memory, the own one in place.
  /// A transport may then let its library's all-gather move them, if these are all of its ranks.
  bool all_gather = false;
};

inline constexpr int kLanes = 4;
inline constexpr int kCollectiveLane = 3;

/// An operation in flight. Move-only; a default one is already done. Destroying an unfinished one waits for it, except
/// while an exception unwinds, when the group is aborted instead; so a forgotten wait is slow, never corrupt.
class Pending {
 public:
  Pending() = default;
  explicit Pending(std::shared_ptr<Operation> operation) : operation_(std::move(operation)) {}
  Pending(Pending&&) = default;
  Pending& operator=(Pending&& other);
  ~Pending();

  /// Makes progress and says whether the operation has finished; rethrows its failure. Never blocks.
  bool done();
  /// Blocks the host until finished. Throws CommError at the deadline, naming operation, plan step, peers and bytes.
  void wait();
  /// Blocks until at least one of the unfinished `pending`, all of one communicator, has finished; the deadline error names
  /// them all.
  static void wait_any(std::span<Pending* const> pending);
  /// The same, but gives up at `until`, without an error; false if none has finished.
  static bool wait_any_until(std::span<Pending* const> pending, std::chrono::steady_clock::time_point until);

 private:
  std::shared_ptr<Operation> operation_;
};

struct Traffic {
  std::size_t bytes_sent = 0;      ///< Payload to other ranks.
  std::size_t bytes_received = 0;  ///< Payload from other ranks.
  std::size_t messages_sent = 0;
  double wait_seconds = 0;  ///< Host time spent blocked in Pending::wait.
};

enum class Reduce { sum, max };

/// A group of ranks 0..size-1 that exchange bytes. A value: copies share the group. One thread per rank uses it (with
/// MPI the thread that initialised MPI). Collective verbs must be called by all ranks in the same order with matching
/// sizes; they are built from `exchange`, so every transport gives the same bits: sums run in rank order.
class Communicator {
 public:
  Communicator() = default;  ///< A group of one, with no transport behind it.
  explicit Communicator(std::shared_ptr<Transport> transport) : transport_(std::move(transport)) {}

  int rank() const noexcept;
  int size() const noexcept;
  std::string_view transport_name() const noexcept;  ///< "none", "thread", "mpi", "tcp", "nccl".

  /// Why exchange() does not move messages in memory of `device`, as a clause; empty if it does.
  std::string refusal(Device device) const;

  /// Posts all sends and receives together. Messages of an ordered pair and lane match in posted order and must agree in
  /// size. Spans must not overlap, and must stay alive and unchanged until the operation is done.
  /// Messages are in memory of the stream's device. On a device the exchange is part of the stream: it sends what earlier work
  /// there wrote, later work sees what arrived; the operation is done once both ends of every message are *enqueued*, the
  /// stream must live until then, and the spans until the stream has passed.
  /// Errors: InvalidArgument for a bad peer, lane or device; CommError for a size mismatch or a failed peer.
  Pending exchange(std::span<const Send> sends, std::span<const Receive> receives, const Purpose& purpose, StreamView stream) const;

  /// The verbs from here on work on host memory and refuse streams of devices; all_gather takes them, as exchange() does.
  /// tensor (f64, f32, i64, i32; contiguous) := reduction over ranks, in rank order, equal bits on every rank.
  /// Cost 2 (P-1)/P of its bytes per rank.
  void all_reduce(TensorView tensor, Reduce reduce, StreamView stream) const;
  /// counts[r] elements of rank r, laid out in rank order in `gathered`; `mine` may be its own part of `gathered`.
  void all_gather(ConstTensorView mine, TensorView gathered, std::span<const std::int64_t> counts, StreamView stream) const;
  /// mine := sum over ranks, in rank order, of their `parts` at this rank's counts range.
  void reduce_scatter(ConstTensorView parts, TensorView mine, std::span<const std::int64_t> counts, StreamView stream) const;
  void broadcast(TensorView tensor, int root, StreamView stream) const;
  void barrier(StreamView stream) const;

  /// Bytes of every rank, of any length each, in rank order. For bootstrap, digests and messages; not for tensors.
  std::vector<std::string> all_gather_bytes(std::string_view mine, StreamView stream) const;

  /// Ranks first .. first + size - 1 as a group of their own, numbered from 0. Not collective and free: messages are the same as
  /// between those ranks here, so a pair must post them in the same order whatever groups it is in. An abort reaches all ranks.
  /// Errors: InvalidArgument for ranks that do not exist, or if the own one is not among them.
  Communicator group(int first, int size) const;
  /// What group() calls `rank`, in the group that no other was made from.
  int outermost(int rank) const noexcept;

  /// Moves messages without blocking; the progress hook of a CPU stream calls it.
  void progress() const;
  /// Throws CommError or DeviceError if an exchange on a device's stream failed after its Pending was done. Call it once
  /// the stream has passed and before the data is used.
  void throw_if_failed() const;
  /// Makes every pending and later operation of every reachable rank fail with `reason`, and where the transport can tell them so with
  /// an AbortedByPeer of that cause. Idempotent, never throws.
  void abort(std::string_view reason, AbortCause cause = AbortCause::failure) const noexcept;
  Traffic traffic() const;

 private:
  std::shared_ptr<Transport> transport_;
};

struct NamedDigest {
  std::uint64_t digest;
  std::string_view what;
};

/// Throws InvalidArgument naming the first rank that differs and the first of `digests` in which it does, unless they are the same on
/// all ranks. Collective; all ranks give equally many.
void require_same_on_all_ranks(const Communicator& communicator, std::span<const NamedDigest> digests, StreamView stream);
/// The same for one.
void require_same_on_all_ranks(const Communicator& communicator, std::uint64_t digest, std::string_view what, StreamView stream);

}  // namespace periplus::comm
