#pragma once

#include <filesystem>

#include "runtime/comm/communicator.h"
#include "runtime/trace.h"

namespace periplus::train {

/// Gathers the events of all ranks on rank 0, which writes them as one Chrome trace. Collective.
void write_trace(const std::filesystem::path& path, const Tracer& tracer, const comm::Communicator& communicator);

/// Records the time between its construction and its end as one event of the track "train".
class TraceSpan {
 public:
  TraceSpan(Tracer* tracer, const char* name) : tracer_(tracer), name_(name), begin_us_(tracer ? tracer->now_us() : 0) {}
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;
  ~TraceSpan();

 private:
  Tracer* tracer_;
  const char* name_;
  double begin_us_;
};

}  // namespace periplus::train
