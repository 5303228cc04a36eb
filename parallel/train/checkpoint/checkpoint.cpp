// Checkpoints that are whole or not there: written beside, synced, renamed; read only after every byte is verified.
#include "parallel/train/checkpoint/checkpoint.h"

#include <algorithm>
#include <array>
#include <exception>
#include <functional>
#include <optional>
#include <span>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "parallel/train/agree.h"
#include "parallel/train/checkpoint/hugging_face.h"
#include "runtime/device_tensor.h"
#include "runtime/error.h"
#include "runtime/file.h"
#include "runtime/safetensors.h"

namespace periplus::train {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kKeep = 2;
constexpr std::string_view kStepPrefix = "step-";
constexpr std::string_view kUnfinished = ".tmp";
constexpr std::size_t kStepDigits = 8;

std::string folder_name(std::int64_t step) { return fmt::format("{}{:0{}}", kStepPrefix, step, kStepDigits); }

bool is_step_name(std::string_view name) {
  if (!name.starts_with(kStepPrefix)) return false;
  name.remove_prefix(kStepPrefix.size());
  return name.size() >= kStepDigits && std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
}

fs::path checkpoints_of(const fs::path& run_directory) { return run_directory / "checkpoints"; }

/// Complete checkpoints, oldest first.
std::vector<std::string> complete_steps(const fs::path& checkpoints) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entries(checkpoints, error); !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const std::string name = entries->path().filename().string();
    if (is_step_name(name) && fs::exists(entries->path() / "manifest.json", error)) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// The three tensors that are kept for every parameter.
struct State {
  std::string_view prefix;
  TensorView shard;
};
std::array<State, 3> states_of(const ShardedAdamw& optimizer) {
  return {State{"", optimizer.master()}, State{"optimizer.exp_avg.", optimizer.exp_avg()},
          State{"optimizer.exp_avg_sq.", optimizer.exp_avg_sq()}};
}

/// The whole tensors that this rank writes, a section and a state at a time: of those that it owns a part of, the ones that keep the
/// files of all ranks equally long. What others own of them arrives in one exchange.
class WholeTensors {
 public:
  WholeTensors(const ShardedAdamw& optimizer, StreamView stream) : optimizer_(optimizer), stream_(stream) {
    std::vector<std::int64_t> written(static_cast<std::size_t>(optimizer.communicator().size()));  // elements, by rank
    const auto of = [&](const Part& part) -> std::int64_t& { return written[static_cast<std::size_t>(part.rank)]; };
    for (const Parameter& parameter : optimizer.parameters().all()) {
      const std::vector<Part> parts = optimizer.shards().owners(parameter.offset, parameter.elements);
      const Part& writer = *std::ranges::min_element(parts, {}, of);
      of(writer) += parameter.elements;
      writers_.push_back(writer.rank);
    }
  }

  std::vector<TensorOutline> outlines() const {
    std::vector<TensorOutline> result;
    for_each_group([&](std::size_t section, const State& state) {
      for_each_parameter(section, [&](const Parameter& parameter, int writer) {
        if (writer == self()) result.push_back({std::string(state.prefix) + parameter.name, state.shard.dtype(), parameter.shape});
      });
    });
    return result;
  }

  /// Calls `take` for each of them, in the order of outlines(). Collective.
  void visit(const std::function<void(ConstTensorView)>& take) const {
    for_each_group([&](std::size_t section, const State& state) { visit_group(section, state, take); });
  }

 private:
  using Part = Shards::Part;
  int self() const { return optimizer_.communicator().rank(); }

  template <class Body>
  void for_each_group(const Body& body) const {
    for (std::size_t section = 0; section <= optimizer_.parameters().last_section(); ++section) {
      for (const State& state : states_of(optimizer_)) body(section, state);
    }
  }
  template <class Body>
  void for_each_parameter(std::size_t section, const Body& body) const {
    const auto [begin, elements] = optimizer_.parameters().sections()[section];
    for (std::size_t i = 0; i < writers_.size(); ++i) {
      const Parameter& parameter = optimizer_.parameters().all()[i];
      if (parameter.offset >= begin && parameter.offset < begin + elements) body(parameter, writers_[i]);
    }
  }

  void visit_group(std::size_t section, const State& state, const std::function<void(ConstTensorView)>& take) const {
    const Part& part = optimizer_.shards().part(section, self());
    ConstTensorView own = state.shard.slice(0, part.offset, part.count);
    const bool on_device = stream_.device().kind != DeviceKind::cpu;
    const Tensor fetched = on_device ? to_host(own, stream_) : Tensor();
    if (on_device) own = fetched;
    std::vector<comm::Send> sends;
    std::vector<comm::Receive> receives;
    std::vector<Tensor> whole;
    for_each_parameter(section, [&](const Parameter& parameter, int writer) {
      if (writer == self()) whole.emplace_back(parameter.shape, own.dtype(), Memory());
      for (const Part& piece : optimizer_.shards().owners(parameter.offset, parameter.elements)) {
        const bool is_own = piece.rank == self();
        const ConstTensorView held = is_own ? own.slice(0, piece.offset - part.offset, piece.count) : ConstTensorView();
        if (writer != self()) {
          if (is_own) sends.push_back({writer, held.bytes(), held.size_bytes()});
          continue;
        }
        const TensorView place = whole.back().view().reshape({parameter.elements}).slice(0, piece.begin - parameter.offset, piece.count);
        if (is_own) {
          copy(held, place);
        } else {
          receives.push_back({piece.rank, place.bytes(), place.size_bytes()});
        }
      }
    });
    optimizer_.communicator().exchange(sends, receives, {.operation = "checkpoint"}, Stream()).wait();
    for (const Tensor& tensor : whole) take(tensor);
  }

  const ShardedAdamw& optimizer_;
  StreamView stream_;
  std::vector<int> writers_;  // by parameter
};

/// One line per file, so that rank 0 can list what the others wrote: name, digest, bytes, tensors.
std::string to_line(const Manifest::File& file) {
  std::string line = fmt::format("{}\n{}\n{}", file.name, file.digest, file.bytes);
  for (const std::string& tensor : file.tensors) line += "\n" + tensor;
  return line;
}
Manifest::File from_line(const std::string& line) {
  std::vector<std::string> fields;
  for (std::size_t begin = 0; begin <= line.size();) {
    const std::size_t end = std::min(line.find('\n', begin), line.size());
    fields.push_back(line.substr(begin, end - begin));
    begin = end + 1;
  }
  return {fields.at(0), fields.at(1), std::stoull(fields.at(2)), {fields.begin() + 3, fields.end()}};
}

/// Collective.
Manifest::File write_own_file(const fs::path& folder, const ShardedAdamw& optimizer, StreamView stream) {
  const comm::Communicator& communicator = optimizer.communicator();
  const WholeTensors tensors(optimizer, stream);
  const std::vector<TensorOutline> outlines = tensors.outlines();
  Manifest::File file;
  file.name = fmt::format("rank-{:05}-of-{:05}.safetensors", communicator.rank(), communicator.size());
  for (const TensorOutline& tensor : outlines) file.tensors.push_back(tensor.name);
  std::optional<SafetensorsWriter> writer;
  // transformers refuses files without "format".
  all_or_none(communicator, [&] { writer.emplace(folder / file.name, outlines, std::map<std::string, std::string>{{"format", "pt"}}); });
  std::exception_ptr failure;  // others wait for this rank's messages all the same
  tensors.visit([&](ConstTensorView tensor) {
    if (failure) return;
    try {
      writer->append(tensor);
    } catch (...) {
      failure = std::current_exception();
    }
  });
  all_or_none(communicator, [&] {
    if (failure) std::rethrow_exception(failure);
    writer->commit();
    file.digest = digest_of_file(folder / file.name);
    file.bytes = fs::file_size(folder / file.name);
  });
  return file;
}

/// Nothing of it is read here.
void write_for_transformers(const fs::path& folder, const Manifest& manifest, const ShardedAdamw& optimizer) {
  const DType dtype = optimizer.master().dtype();
  const auto bytes = optimizer.parameters().elements() * static_cast<std::int64_t>(size_of(dtype));
  write_file_atomically(folder / "model.safetensors.index.json", hugging_face_index(manifest, bytes));
  if (const std::string config = hugging_face_config(manifest, dtype); !config.empty()) {
    write_file_atomically(folder / "config.json", config);
  }
}

/// The manifest goes first: without it the rest is no checkpoint any more, whatever interrupts the removal.
void remove_checkpoint(const fs::path& folder) {
  fs::remove(folder / "manifest.json");
  fs::remove_all(folder);
}

void remove_older(const fs::path& checkpoints, const std::string& newest) {
  std::vector<std::string> names = complete_steps(checkpoints);
  std::erase_if(names, [&](const std::string& name) { return name > newest; });
  for (std::size_t i = 0; i + kKeep < names.size(); ++i) remove_checkpoint(checkpoints / names[i]);
}

/// What saving left behind that a full disk or a killed process ended: it may be as large as a checkpoint.
void remove_unfinished(const fs::path& checkpoints) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator entries(checkpoints, error); !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const fs::path& path = entries->path();
    if (path.extension() == kUnfinished && is_step_name(path.stem().string())) found.push_back(path);
  }
  for (const fs::path& path : found) fs::remove_all(path);
}

void check_tensors(const fs::path& checkpoint, const Manifest::File& file, const SafetensorsFile& contents, const ShardedAdamw& optimizer) {
  std::map<std::string, const Parameter*> expected;
  for (const Parameter& parameter : optimizer.parameters().all()) {
    for (const State& state : states_of(optimizer)) expected[std::string(state.prefix) + parameter.name] = &parameter;
  }
  if (contents.tensors().size() != file.tensors.size()) {
    throw damaged(checkpoint,
                  fmt::format("{} holds {} tensors, the manifest lists {}", file.name, contents.tensors().size(), file.tensors.size()));
  }
  for (const std::string& name : file.tensors) {
    if (!contents.contains(name)) throw damaged(checkpoint, fmt::format("{} lacks tensor {}", file.name, name));
    const auto entry = expected.find(name);
    if (entry == expected.end())
      throw damaged(checkpoint, fmt::format("{} holds tensor {}, which this model does not have", file.name, name));
    const TensorInfo& info = contents.tensors().at(name);
    const Extents& wanted = entry->second->shape;
    if (!info.has_shape(wanted) || info.dtype != optimizer.master().dtype()) {
      throw damaged(checkpoint, fmt::format("{}: tensor {} is {} [{}], this run needs {} {}", file.name, name, to_string(info.dtype),
                                            fmt::join(info.shape, ","), to_string(optimizer.master().dtype()), to_string(wanted)));
    }
  }
}

void verify_file(const fs::path& checkpoint, const Manifest::File& file, const ShardedAdamw& optimizer) {
  const fs::path path = checkpoint / file.name;
  const std::string holds = fmt::format("it holds {}{}", file.tensors.empty() ? "no tensors" : file.tensors.front(),
                                        file.tensors.size() > 1 ? fmt::format(" and {} more tensors", file.tensors.size() - 1) : "");
  std::error_code error;
  const std::uintmax_t bytes = fs::file_size(path, error);
  if (error) throw damaged(checkpoint, fmt::format("{} cannot be read ({}); {}", file.name, error.message(), holds));
  if (bytes != file.bytes)
    throw damaged(checkpoint, fmt::format("{} has {} bytes, the manifest says {}; {}", file.name, bytes, file.bytes, holds));
  if (digest_of_file(path) != file.digest) throw damaged(checkpoint, fmt::format("the digest of {} does not match; {}", file.name, holds));
  check_tensors(checkpoint, file, SafetensorsFile(path), optimizer);
}

std::map<std::string, std::string> file_of_tensors(const fs::path& checkpoint, const Manifest& manifest, const ShardedAdamw& optimizer) {
  std::map<std::string, std::string> file_of;
  for (const Manifest::File& file : manifest.files) {
    for (const std::string& tensor : file.tensors) {
      if (!file_of.emplace(tensor, file.name).second) throw damaged(checkpoint, fmt::format("tensor {} is listed twice", tensor));
    }
  }
  for (const Parameter& parameter : optimizer.parameters().all()) {
    for (const State& state : states_of(optimizer)) {
      const std::string name = std::string(state.prefix) + parameter.name;
      if (!file_of.contains(name)) throw damaged(checkpoint, fmt::format("no file holds tensor {}", name));
    }
  }
  return file_of;
}

void read_shard(const fs::path& checkpoint, const std::map<std::string, std::string>& file_of, const ShardedAdamw& optimizer,
                StreamView stream) {
  std::map<std::string, SafetensorsFile> open;
  const int self = optimizer.communicator().rank();
  for (const Parameter& parameter : optimizer.parameters().all()) {
    const Shards::Part part = optimizer.shards().held(self, parameter.offset, parameter.elements);
    if (part.count == 0) continue;
    for (const State& state : states_of(optimizer)) {
      const std::string name = std::string(state.prefix) + parameter.name;
      const SafetensorsFile& file = open.try_emplace(file_of.at(name), checkpoint / file_of.at(name)).first->second;
      const ConstTensorView whole = file.view(name).reshape({parameter.elements});
      upload(whole.slice(0, part.begin - parameter.offset, part.count), state.shard.slice(0, part.offset, part.count), stream);
    }
  }
}

}  // namespace

InvalidArgument damaged(const fs::path& checkpoint, const std::string& what) {
  std::string remedy = "no older complete checkpoint exists";
  for (const std::string& name : complete_steps(checkpoint.parent_path())) {
    if (name >= checkpoint.filename().string()) break;
    remedy = fmt::format("to continue from the older {0}, write {0} to {1}", name, (checkpoint.parent_path() / "LATEST").string());
  }
  return InvalidArgument(fmt::format("checkpoint: {} is damaged: {}; {}", checkpoint.string(), what, remedy));
}

void save_checkpoint(const fs::path& run_directory, Manifest manifest, const ShardedAdamw& optimizer, StreamView stream) {
  const comm::Communicator& communicator = optimizer.communicator();
  const fs::path checkpoints = checkpoints_of(run_directory);
  const std::string name = folder_name(manifest.step);
  const fs::path unfinished = checkpoints / (name + std::string(kUnfinished));
  on_rank0(communicator, [&] {
    remove_unfinished(checkpoints);
    create_folders(unfinished);
  });
  const Manifest::File own = write_own_file(unfinished, optimizer, optimizer.stream_of_states(stream));
  manifest.ranks = communicator.size();
  for (const std::string& line : communicator.all_gather_bytes(to_line(own), Stream())) manifest.files.push_back(from_line(line));
  on_rank0(communicator, [&] {
    write_for_transformers(unfinished, manifest, optimizer);
    write_file_atomically(unfinished / "manifest.json", to_text(manifest));
    sync_directory(unfinished);
    if (fs::exists(checkpoints / name)) remove_checkpoint(checkpoints / name);
    rename_durably(unfinished, checkpoints / name);
    write_file_atomically(checkpoints / "LATEST", name + "\n");
    remove_older(checkpoints, name);
  });
}

std::optional<fs::path> newest_checkpoint(const fs::path& run_directory) {
  const fs::path checkpoints = checkpoints_of(run_directory), latest = checkpoints / "LATEST";
  const std::vector<std::string> names = complete_steps(checkpoints);
  if (!fs::exists(latest)) return names.empty() ? std::nullopt : std::optional(checkpoints / names.back());
  std::string name = read_file(latest, 4096);
  while (!name.empty() && name.back() == '\n') name.pop_back();
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    throw InvalidArgument(
        fmt::format("checkpoint: {} names '{}', which is no complete checkpoint; {}", latest.string(), name,
                    names.empty() ? "there is none" : fmt::format("to continue from {0}, write {0} to it", names.back())));
  }
  return checkpoints / name;
}

void load_checkpoint(const fs::path& checkpoint, const Manifest& manifest, ShardedAdamw& optimizer, StreamView stream) {
  const comm::Communicator& communicator = optimizer.communicator();
  std::map<std::string, std::string> file_of;
  all_or_none(communicator, [&] {
    file_of = file_of_tensors(checkpoint, manifest, optimizer);
    for (std::size_t i = static_cast<std::size_t>(communicator.rank()); i < manifest.files.size(); i += communicator.size()) {
      verify_file(checkpoint, manifest.files[i], optimizer);
    }
  });
  all_or_none(communicator, [&] { read_shard(checkpoint, file_of, optimizer, optimizer.stream_of_states(stream)); });
}

}  // namespace periplus::train
