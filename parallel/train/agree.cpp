#include "parallel/train/agree.h"

#include <new>
#include <string>

#include <fmt/format.h>

#include "runtime/error.h"
#include "runtime/out_of_memory.h"

namespace periplus::train {
namespace {

constexpr char kInvalidArgument = 'i';
constexpr char kOther = 'o';

}  // namespace

void all_or_none(const comm::Communicator& communicator, const std::function<void()>& work) {
  std::string failure;
  try {
    work();
  } catch (const CommError&) {
    throw;  // the group is broken: nothing can be agreed on any more
  } catch (const InvalidArgument& error) {
    failure = std::string(1, kInvalidArgument) + error.what();
  } catch (const std::bad_alloc&) {
    failure = std::string(1, kOther) + kOutOfMemory;
  } catch (const std::exception& error) {
    failure = std::string(1, kOther) + error.what();
  }
  const std::vector<std::string> failures = communicator.all_gather_bytes(failure, Stream());
  for (std::size_t rank = 0; rank < failures.size(); ++rank) {
    if (failures[rank].empty()) continue;
    const std::string text = failures[rank].substr(1);
    const std::string message = communicator.size() == 1 ? text : fmt::format("{} (rank {} of {})", text, rank, failures.size());
    if (failures[rank].front() == kInvalidArgument) throw InvalidArgument(message);
    throw DeviceError(message);
  }
}

void on_rank0(const comm::Communicator& communicator, const std::function<void()>& work) {
  all_or_none(communicator, [&] {
    if (communicator.rank() == 0) work();
  });
}

void all_reduce(const comm::Communicator& communicator, std::span<double> values, comm::Reduce reduce) {
  const TensorView view(reinterpret_cast<std::byte*>(values.data()), DType::f64, {static_cast<std::int64_t>(values.size())});
  communicator.all_reduce(view, reduce, Stream());
}

}  // namespace periplus::train
