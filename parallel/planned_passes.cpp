#include "parallel/planned_passes.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "parallel/plan/ops.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus {

PlannedPasses::PlannedPasses(std::string_view name, const SequenceLayout& layout, const std::array<std::uint64_t, 2>& digests,
                             comm::Communicator communicator, Memory memory, Tracer* tracer, Stream stream, const MakeProgram& make)
    : communicator_(std::move(communicator)), memory_(std::move(memory)), tracer_(tracer), stream_(std::move(stream)) {
  if (memory_.device() != stream_.device()) {
    throw InvalidArgument(fmt::format("{}: the memory is on {}, but the stream on {}; use a stream of the memory's device", name,
                                      to_string(memory_.device()), to_string(stream_.device())));
  }
  // First: what is wrong afterwards is wrong on all ranks, and none waits for another.
  const std::string of_layout = fmt::format("{}: the layout", name), of_problem = fmt::format("{}: the problem", name),
                    of_options = fmt::format("{}: the options", name);
  const std::array<comm::NamedDigest, 3> compared = {{{layout.digest(), of_layout}, {digests[0], of_problem}, {digests[1], of_options}}};
  comm::require_same_on_all_ranks(communicator_, compared, Stream());
  if (layout.ranks() != communicator_.size()) {
    throw InvalidArgument(
        fmt::format("{}: the layout is for {} ranks, the communicator has {}", name, layout.ranks(), communicator_.size()));
  }
  const int rank = communicator_.rank();
  programs_ = {make(Pass::forward, rank), make(Pass::backward, rank)};
  workspace_ = Tensor({std::max(programs_[0].workspace_bytes, programs_[1].workspace_bytes)}, DType::u8, memory_);
}

void PlannedPasses::run(Pass pass, const execute::Bindings& bindings) {
  const execute::Context context{.communicator = communicator_, .workspace = workspace_, .tracer = tracer_, .stream = stream_};
  const execute::Statistics cost = execute::execute(program(pass), bindings, context);
  statistics_.seconds += cost.seconds;
  statistics_.exposed_seconds += cost.exposed_seconds;
  for (const plan::Step& step : program(pass).steps) statistics_.flops += plan::flops(program(pass), step);
}

void require_given_as_planned(std::string_view op, const ConstTensorView& tensor, bool planned, std::string_view name,
                              std::string_view flag) {
  if ((tensor.dims() != 0) == planned) return;
  throw InvalidArgument(fmt::format("{}: {} is {}, but problem.{} {}", op, name, planned ? "missing" : "given", flag,
                                    planned ? "asks for it" : "does not ask for it"));
}

}  // namespace periplus
