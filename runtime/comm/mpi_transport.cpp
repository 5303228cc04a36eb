// Ranks as MPI processes. Only non-blocking point-to-point calls with named source and tag move data; messages travel as
// fragments, in order per (peer, lane), and every wait is a polling loop, so that a deadline can end it.
#include "runtime/comm/mpi_transport.h"

#include <algorithm>
#include <array>
#include <optional>
#include <thread>

#include <fmt/format.h>
#include <mpi.h>

#include "runtime/comm/split.h"
#include "runtime/error.h"

namespace periplus::comm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPollWindow = 64;  // requests looked at per poll: a poll stays cheap for huge messages

std::string error_text(int code) {
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  if (MPI_Error_string(code, text.data(), &length) != MPI_SUCCESS) return fmt::format("MPI error {}", code);
  return std::string(text.data(), static_cast<std::size_t>(length));
}

/// For calls outside operations.
void check(int code, std::string_view call) {
  if (code != MPI_SUCCESS) throw CommError(fmt::format("mpi transport: {}: {}", call, error_text(code)));
}

class MpiOperation;

class MpiTransport final : public Transport, public std::enable_shared_from_this<MpiTransport> {
 public:
  MpiTransport(MPI_Comm parent, const TransportOptions& options) : options_(options) {
    check(MPI_Comm_dup(parent, &comm_), "MPI_Comm_dup");
    check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  }
  MpiTransport(const MpiTransport&) = delete;
  MpiTransport& operator=(const MpiTransport&) = delete;
  ~MpiTransport() override {
    // After a failure MPI may hang on anything; the process is about to end, so the communicator is left alone.
    int finalized = 0;
    if (!failure_ && MPI_Finalized(&finalized) == MPI_SUCCESS && !finalized) MPI_Comm_free(&comm_);
  }

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }
  std::string_view name() const noexcept override { return "mpi"; }
  const TransportOptions& options() const noexcept override { return options_; }
  std::string refusal(Device device) const override {
    if (device.kind == DeviceKind::cpu) return "";
    return "the mpi transport moves host memory only (MPI is often built without CUDA, as Debian's Open MPI is); copy to the host first or "
           "use another transport";
  }
  std::shared_ptr<Operation> post(std::span<const Send> sends, std::span<const Receive> receives, const Purpose& purpose,
                                  StreamView stream) override;
  bool wait_any(std::span<Operation* const> operations, Clock::time_point until) override;
  void progress() noexcept override;
  void abort(std::string_view reason, AbortCause = AbortCause::failure) noexcept override {
    if (failure_) return;
    try {
      failure_ = reason;
    } catch (const std::bad_alloc&) {
      failure_.emplace();
    }
  }

  MPI_Comm comm() const noexcept { return comm_; }
  const std::optional<std::string>& failure() const noexcept { return failure_; }
  void add(MpiOperation* operation) { open_.push_back(operation); }
  void remove(MpiOperation* operation) noexcept { std::erase(open_, operation); }

 private:
  TransportOptions options_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  std::optional<std::string> failure_;
  std::vector<MpiOperation*> open_;
};

/// If destroyed with open requests (only after a failure), MPI may still write to the caller's spans: a failed process
/// must end without further MPI calls.
class MpiOperation final : public Operation {
 public:
  MpiOperation(std::shared_ptr<MpiTransport> transport, const Purpose& purpose) : transport_(std::move(transport)), purpose_(purpose) {
    transport_->add(this);
  }
  MpiOperation(const MpiOperation&) = delete;
  MpiOperation& operator=(const MpiOperation&) = delete;
  ~MpiOperation() override { transport_->remove(this); }

  void post(std::span<const Send> sends, std::span<const Receive> receives) {
    // Receives first: a message that finds its receive posted is not copied twice.
    for (const Receive& receive : receives) {
      auto* data = static_cast<std::byte*>(receive.data);
      post_fragments(receive.peer, receive.bytes, false, [&](const Fragment& piece, MPI_Request* request) {
        check_call(MPI_Irecv(data + piece.offset, piece.bytes, MPI_BYTE, receive.peer, purpose_.lane, transport_->comm(), request),
                   "MPI_Irecv");
      });
    }
    for (const Send& send : sends) {
      const auto* data = static_cast<const std::byte*>(send.data);
      post_fragments(send.peer, send.bytes, true, [&](const Fragment& piece, MPI_Request* request) {
        check_call(MPI_Isend(data + piece.offset, piece.bytes, MPI_BYTE, send.peer, purpose_.lane, transport_->comm(), request),
                   "MPI_Isend");
      });
    }
  }

  bool test() override {
    if (finished()) return true;
    throw_if_failed();
    return poll();
  }

  std::string describe() const override {
    return describe_open(purpose_, parts_, [](const Part& part) { return part.open_fragments > 0; });
  }

  Transport& transport() const noexcept override { return *transport_; }

  void throw_if_failed() const {
    if (!transport_->failure()) return;
    throw CommError(
        fmt::format("rank {} of {}: {} cannot finish: {}", transport_->rank(), transport_->size(), describe(), *transport_->failure()));
  }

  bool finished() const noexcept { return first_open_ == requests_.size(); }

  /// One MPI call: one poll inside a kernel must not copy more than MPI moves in one progress round.
  bool poll() {
    std::array<int, kPollWindow> indices;
    std::array<MPI_Status, kPollWindow> statuses;
    const int window = static_cast<int>(std::min<std::size_t>(kPollWindow, requests_.size() - first_open_));
    int completed = 0;
    const int code = MPI_Testsome(window, &requests_[first_open_], &completed, indices.data(), statuses.data());
    if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) check_call(code, "MPI_Testsome");
    for (int i = 0; i < completed; ++i) {
      const auto slot = static_cast<std::size_t>(i);
      complete(first_open_ + static_cast<std::size_t>(indices[slot]), statuses[slot], code == MPI_ERR_IN_STATUS);
    }
    while (!finished() && requests_[first_open_] == MPI_REQUEST_NULL) ++first_open_;
    return finished();
  }

 private:
  struct Part {
    int peer;
    bool is_send;
    std::size_t bytes;
    std::size_t open_fragments;
  };
  struct Piece {
    std::size_t part;
    int bytes;
  };

  template <class PostOne>
  void post_fragments(int peer, std::size_t bytes, bool is_send, const PostOne& post_one) {
    const std::size_t fragments = fragment_count(bytes);
    parts_.push_back({peer, is_send, bytes, fragments});
    requests_.reserve(requests_.size() + fragments);
    pieces_.reserve(pieces_.size() + fragments);
    for (std::size_t index = 0; index < fragments; ++index) {
      const Fragment piece = fragment(bytes, index);
      pieces_.push_back({parts_.size() - 1, piece.bytes});
      post_one(piece, &requests_.emplace_back(MPI_REQUEST_NULL));
    }
  }

  void complete(std::size_t request, const MPI_Status& status, bool has_error) {
    const Piece& piece = pieces_[request];
    Part& part = parts_[piece.part];
    if (has_error && status.MPI_ERROR != MPI_SUCCESS) {
      int error_class = MPI_SUCCESS;
      MPI_Error_class(status.MPI_ERROR, &error_class);
      if (error_class == MPI_ERR_TRUNCATE) fail_size(part, fmt::format("more than {}", piece.bytes), piece.bytes);
      check_call(status.MPI_ERROR, part.is_send ? "MPI_Isend" : "MPI_Irecv");
    }
    if (!part.is_send) {
      int arrived = 0;
      check_call(MPI_Get_count(&status, MPI_BYTE, &arrived), "MPI_Get_count");
      if (arrived != piece.bytes) fail_size(part, fmt::format("{}", arrived), piece.bytes);
    }
    --part.open_fragments;
  }

  [[noreturn]] void fail_size(const Part& part, std::string_view arrived, int expected) {
    fail(fmt::format(
        "message sizes disagree: rank {} sent {} bytes where {} bytes of a message of {} were expected; every rank must execute the "
        "same program",
        part.peer, arrived, expected, part.bytes));
  }

  void check_call(int code, std::string_view call) {
    if (code != MPI_SUCCESS) fail(fmt::format("{}: {}", call, error_text(code)));
  }

  [[noreturn]] void fail(std::string_view what) {
    const std::string message = fmt::format("rank {} of {}: {}: {}", transport_->rank(), transport_->size(), describe(), what);
    transport_->abort(message);
    throw CommError(message);
  }

  std::shared_ptr<MpiTransport> transport_;
  Purpose purpose_;
  std::vector<Part> parts_;
  std::vector<Piece> pieces_;          // one per request
  std::vector<MPI_Request> requests_;  // all before first_open_ are complete
  std::size_t first_open_ = 0;
};

std::shared_ptr<Operation> MpiTransport::post(std::span<const Send> sends, std::span<const Receive> receives, const Purpose& purpose,
                                              StreamView) {
  auto operation = std::make_shared<MpiOperation>(shared_from_this(), purpose);
  operation->throw_if_failed();
  operation->post(sends, receives);
  return operation;
}

bool MpiTransport::wait_any(std::span<Operation* const> operations, Clock::time_point until) { return poll_any(operations, until); }

void MpiTransport::progress() noexcept {
  for (MpiOperation* operation : open_) {
    if (failure_) return;
    try {
      if (!operation->finished()) operation->poll();
    } catch (const std::exception& error) {
      abort(error.what());
    }
  }
}

void require_initialised() {
  int initialised = 0;
  int finalized = 0;
  check(MPI_Initialized(&initialised), "MPI_Initialized");
  check(MPI_Finalized(&finalized), "MPI_Finalized");
  int level = MPI_THREAD_SINGLE;
  if (initialised && !finalized) check(MPI_Query_thread(&level), "MPI_Query_thread");
  if (level < MPI_THREAD_FUNNELED) {
    throw InvalidArgument(
        "mpi transport: MPI is not running with thread level MPI_THREAD_FUNNELED; call MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, "
        "&provided) before making a communicator and destroy the communicator before MPI_Finalize");
  }
}

}  // namespace

Communicator make_mpi_world(const TransportOptions& options) {
  require_initialised();
  return Communicator(std::make_shared<MpiTransport>(MPI_COMM_WORLD, options));
}

Communicator make_mpi_communicator(int fortran_handle, const TransportOptions& options) {
  require_initialised();
  const MPI_Comm parent = MPI_Comm_f2c(fortran_handle);
  if (parent == MPI_COMM_NULL) throw InvalidArgument(fmt::format("mpi transport: {} is not the handle of a communicator", fortran_handle));
  return Communicator(std::make_shared<MpiTransport>(parent, options));
}

}  // namespace periplus::comm
