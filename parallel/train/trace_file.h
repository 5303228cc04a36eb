#pragma once

#include <filesystem>

#include "runtime/comm/communicator.h"
#include "runtime/trace.h"

namespace periplus::train {

/// Restarts the tracers of all ranks at one moment: exactly on one host, whose processes have one steady clock, and as evenly as a
/// barrier ends between hosts. Collective.
void restart_together(Tracer& tracer, const comm::Communicator& communicator);

/// Gathers the events of all ranks on rank 0, which writes them as one Chrome trace. Collective.
void write_trace(const std::filesystem::path& path, const Tracer& tracer, const comm::Communicator& communicator);

/// Records what is done or enqueued on `stream` while it lives as one event of the track "train".
class TraceScope {
 public:
  TraceScope(Tracer* tracer, const char* name, StreamView stream) : traced_(tracer != nullptr), name_(name), span_(tracer, stream) {}
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;
  ~TraceScope();

 private:
  bool traced_;
  const char* name_;
  TraceSpan span_;
};

}  // namespace periplus::train
