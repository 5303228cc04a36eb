// Checkpoints that are whole or not there: written beside, synced, renamed; read only after every byte is verified.
#include "parallel/train/checkpoint/checkpoint.h"

#include <algorithm>
#include <array>
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

/// The same in host memory: the shards themselves on a CPU stream, else copies.
class HostStates {
 public:
  HostStates(const ShardedAdamw& optimizer, StreamView stream) : there_(states_of(optimizer)), here_(there_), stream_(stream) {
    for (std::size_t i = 0; i < here_.size() && on_device(); ++i) {
      copies_[i] = Tensor(there_[i].shard.shape(), there_[i].shard.dtype(), Memory());
      here_[i].shard = copies_[i];
    }
  }
  std::span<const State> all() const { return here_; }
  /// From the optimizer to here, and back. The host waits.
  void fetch() {
    for (std::size_t i = 0; i < here_.size() && on_device(); ++i) copy(to_host(there_[i].shard, stream_), here_[i].shard);
  }
  void store() const {
    for (std::size_t i = 0; i < here_.size() && on_device(); ++i) upload(here_[i].shard, there_[i].shard, stream_);
  }

 private:
  bool on_device() const { return stream_.device().kind == DeviceKind::cuda; }
  std::array<State, 3> there_, here_;
  std::array<Tensor, 3> copies_;
  StreamView stream_;
};

/// The whole tensors that this rank writes: of those that it owns a part of, the ones that keep the files of all ranks equally long.
/// What others own of them arrives in one exchange.
class WholeTensors {
 public:
  /// `states` outlive it.
  WholeTensors(const ShardedAdamw& optimizer, const HostStates& states)
      : optimizer_(optimizer), states_(states), written_(index(optimizer.communicator().size())) {
    for (const Parameter& parameter : optimizer.parameters().all()) add(parameter);
    optimizer.communicator().exchange(sends_, receives_, {.operation = "checkpoint"}, Stream()).wait();
  }
  const NamedTensors& tensors() const { return tensors_; }

 private:
  using Part = Shards::Part;

  void add(const Parameter& parameter) {
    const int self = optimizer_.communicator().rank();
    const std::vector<Part> parts = optimizer_.shards().owners(parameter.offset, parameter.elements);
    const int writer = std::ranges::min_element(parts, {}, [&](const Part& part) { return written_[index(part.rank)]; })->rank;
    written_[index(writer)] += parameter.elements;
    const auto mine = std::ranges::find(parts, self, &Part::rank);
    if (mine == parts.end()) return;
    for (const State& state : states_.all()) {
      const TensorView own = state.shard.slice(0, mine->offset, mine->count);
      if (self != writer) {
        sends_.push_back({writer, own.bytes(), own.size_bytes()});
        continue;
      }
      const TensorView whole = parts.size() == 1 ? own : assemble(parameter, parts, own);
      tensors_.emplace_back(std::string(state.prefix) + parameter.name, whole.reshape(parameter.shape));
    }
  }

  TensorView assemble(const Parameter& parameter, const std::vector<Part>& parts, ConstTensorView own) {
    assembled_.emplace_back(Extents{parameter.elements}, own.dtype(), Memory());
    const TensorView whole = assembled_.back();
    for (const Part& part : parts) {
      const TensorView place = whole.slice(0, part.begin - parameter.offset, part.count);
      if (part.rank == optimizer_.communicator().rank()) {
        copy(own, place);
      } else {
        receives_.push_back({part.rank, place.bytes(), place.size_bytes()});
      }
    }
    return whole;
  }

  static std::size_t index(int rank) { return static_cast<std::size_t>(rank); }

  const ShardedAdamw& optimizer_;
  const HostStates& states_;
  std::vector<std::int64_t> written_;  // elements, by rank
  NamedTensors tensors_;
  std::vector<Tensor> assembled_;
  std::vector<comm::Send> sends_;
  std::vector<comm::Receive> receives_;
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

Manifest::File write_own_file(const fs::path& folder, const ShardedAdamw& optimizer, const NamedTensors& tensors) {
  Manifest::File file;
  file.name = fmt::format("rank-{:05}-of-{:05}.safetensors", optimizer.communicator().rank(), optimizer.communicator().size());
  write_safetensors(folder / file.name, tensors, {{"format", "pt"}});  // transformers refuses files without
  file.digest = digest_of_file(folder / file.name);
  file.bytes = fs::file_size(folder / file.name);
  for (const auto& [name, tensor] : tensors) file.tensors.push_back(name);
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
                const HostStates& states) {
  std::map<std::string, SafetensorsFile> open;
  const int self = optimizer.communicator().rank();
  for (const Parameter& parameter : optimizer.parameters().all()) {
    const Shards::Part part = optimizer.shards().held(self, parameter.offset, parameter.elements);
    if (part.count == 0) continue;
    for (const State& state : states.all()) {
      const std::string name = std::string(state.prefix) + parameter.name;
      const SafetensorsFile& file = open.try_emplace(file_of.at(name), checkpoint / file_of.at(name)).first->second;
      const ConstTensorView whole = file.view(name).reshape({parameter.elements});
      copy(whole.slice(0, part.begin - parameter.offset, part.count), state.shard.slice(0, part.offset, part.count));
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
  HostStates states(optimizer, stream);
  states.fetch();
  const WholeTensors whole(optimizer, states);
  Manifest::File own;
  all_or_none(communicator, [&] { own = write_own_file(unfinished, optimizer, whole.tensors()); });
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
  all_or_none(communicator, [&] {
    const HostStates states(optimizer, stream);
    read_shard(checkpoint, file_of, optimizer, states);
    states.store();
  });
}

}  // namespace periplus::train
