#include "runtime/trace.h"

#include <iterator>
#include <map>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace periplus {
namespace {

// Names that are not UTF-8 must not make the whole trace unwritable.
std::string quoted(const std::string& text) { return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace); }

class ChromeTraceWriter {
 public:
  void write(const Tracer& tracer) {
    const int process = tracer.rank();
    append(R"({{"ph":"M","name":"process_name","pid":{},"args":{{"name":"rank {}"}}}})", process, process);
    append(R"({{"ph":"M","name":"process_sort_index","pid":{},"args":{{"sort_index":{}}}}})", process, process);
    for (const TraceEvent& event : tracer.events()) {
      const auto [entry, is_new] = threads_.try_emplace({process, event.track}, static_cast<int>(threads_.size()));
      const int thread = entry->second;
      if (is_new) {
        append(R"({{"ph":"M","name":"thread_name","pid":{},"tid":{},"args":{{"name":{}}}}})", process, thread, quoted(event.track));
      }
      append(R"({{"ph":"X","name":{},"pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f},"args":{{"step":{},"bytes":{}}}}})", quoted(event.name),
             process, thread, event.begin_us, event.duration_us, event.step, event.bytes);
    }
  }

  std::string finish() { return "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[" + events_ + "\n]}\n"; }

 private:
  template <class... Arguments>
  void append(fmt::format_string<Arguments...> pattern, Arguments&&... arguments) {
    events_ += events_.empty() ? "\n" : ",\n";
    fmt::format_to(std::back_inserter(events_), pattern, std::forward<Arguments>(arguments)...);
  }

  std::string events_;
  std::map<std::pair<int, std::string>, int> threads_;  // several tracers may belong to one rank
};

}  // namespace

std::string to_chrome_trace(const std::vector<const Tracer*>& tracers) {
  ChromeTraceWriter writer;
  for (const Tracer* tracer : tracers) writer.write(*tracer);
  return writer.finish();
}

}  // namespace periplus
