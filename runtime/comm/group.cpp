// A group of consecutive ranks: the transport of all of them, with other numbers.
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "runtime/comm/transport.h"
#include "runtime/error.h"

namespace periplus::comm {
namespace {

class GroupTransport : public Transport {
 public:
  GroupTransport(std::shared_ptr<Transport> all, int first, int size) : all_(std::move(all)), first_(first), size_(size) {}

  int rank() const noexcept override { return all_->rank() - first_; }
  int size() const noexcept override { return size_; }
  std::string_view name() const noexcept override { return all_->name(); }
  const TransportOptions& options() const noexcept override { return all_->options(); }
  std::string refusal(Device device) const override { return all_->refusal(device); }
  Traffic& traffic() noexcept override { return all_->traffic(); }
  int outermost(int rank) const noexcept override { return all_->outermost(rank + first_); }

  /// The operation is the other transport's: it names ranks as that does, and is waited for there.
  std::shared_ptr<Operation> post(std::span<const Send> sends, std::span<const Receive> receives, const Purpose& purpose,
                                  StreamView stream) override {
    std::vector<Send> outgoing(sends.begin(), sends.end());
    std::vector<Receive> incoming(receives.begin(), receives.end());
    for (Send& send : outgoing) send.peer += first_;
    for (Receive& receive : incoming) receive.peer += first_;
    return all_->post(outgoing, incoming, purpose, stream);
  }
  bool wait_any(std::span<Operation* const> operations, std::chrono::steady_clock::time_point until) override {
    return all_->wait_any(operations, until);
  }
  void progress() noexcept override { all_->progress(); }
  void throw_if_failed() override { all_->throw_if_failed(); }
  void abort(std::string_view reason, AbortCause cause) noexcept override { all_->abort(reason, cause); }

 private:
  std::shared_ptr<Transport> all_;
  int first_, size_;
};

}  // namespace

Communicator Communicator::group(int first, int size) const {
  if (first < 0 || size < 1 || first > this->size() - size) {
    throw InvalidArgument(
        fmt::format("communicator: a group of {} ranks from rank {} on; ranks of this one are 0..{}", size, first, this->size() - 1));
  }
  if (rank() < first || rank() >= first + size) {
    throw InvalidArgument(fmt::format("communicator: rank {} is not in the group of ranks {}..{}; only its members may make it", rank(),
                                      first, first + size - 1));
  }
  if (size == this->size()) return *this;
  return Communicator(std::make_shared<GroupTransport>(transport_, first, size));
}

}  // namespace periplus::comm
