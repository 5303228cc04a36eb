#include "parallel/train/trace_file.h"

#include <algorithm>
#include <exception>
#include <vector>

#include <nlohmann/json.hpp>

#include "parallel/train/agree.h"
#include "runtime/file.h"
#include "runtime/host.h"

namespace periplus::train {
namespace {

using nlohmann::json;

std::string to_bytes(const Tracer& tracer) {
  json events = json::array();
  for (const TraceEvent& event : tracer.events()) {
    json messages = json::array();
    for (const TraceMessage& message : event.messages) messages.push_back({message.peer, message.sent});
    events.push_back({event.name, event.track, event.begin_us, event.duration_us, event.step, event.bytes, std::move(messages)});
  }
  const std::vector<std::uint8_t> packed = json::to_msgpack(events);
  return {packed.begin(), packed.end()};
}

Tracer from_bytes(int rank, const std::string& bytes) {
  Tracer tracer(rank);
  for (const json& event : json::from_msgpack(bytes)) {
    TraceEvent restored{event.at(0), event.at(1), event.at(2), event.at(3), event.at(4), event.at(5)};
    for (const json& message : event.at(6)) restored.messages.push_back({message.at(0), message.at(1)});
    tracer.record(std::move(restored));
  }
  return tracer;
}

}  // namespace

TraceScope::~TraceScope() {
  try {
    if (traced_) span_.end({.name = name_, .track = "train"});
  } catch (const std::exception&) {
    // A device that fails says so where its results are asked for.
  }
}

void restart_together(Tracer& tracer, const comm::Communicator& communicator) {
  communicator.barrier(Stream());
  const std::string host = host_id();
  Tracer::Clock::time_point epoch = Tracer::Clock::now();
  const json mine = {host, epoch.time_since_epoch().count()};
  for (const std::string& bytes : communicator.all_gather_bytes(mine.dump(), Stream())) {
    const json theirs = json::parse(bytes);
    if (theirs.at(0) == host) epoch = std::min(epoch, Tracer::Clock::time_point(Tracer::Clock::duration(theirs.at(1).get<std::int64_t>())));
  }
  tracer.restart(epoch);
}

void write_trace(const std::filesystem::path& path, const Tracer& tracer, const comm::Communicator& communicator) {
  const std::vector<std::string> gathered = communicator.all_gather_bytes(to_bytes(tracer), Stream());
  on_rank0(communicator, [&] {
    std::vector<Tracer> tracers;
    for (std::size_t rank = 0; rank < gathered.size(); ++rank) tracers.push_back(from_bytes(static_cast<int>(rank), gathered[rank]));
    std::vector<const Tracer*> pointers;
    for (const Tracer& each : tracers) pointers.push_back(&each);
    write_file_atomically(path, to_chrome_trace(pointers));
  });
}

}  // namespace periplus::train
