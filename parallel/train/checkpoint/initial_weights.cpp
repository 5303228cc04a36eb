// Weights of others: where they lie, and whether they are of this model.
#include "parallel/train/checkpoint/initial_weights.h"

#include <atomic>
#include <cstring>
#include <map>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "parallel/train/agree.h"
#include "parallel/train/checkpoint/checkpoint.h"
#include "parallel/train/checkpoint/hugging_face.h"
#include "runtime/error.h"
#include "runtime/file.h"
#include "runtime/safetensors.h"

namespace periplus::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Texts = std::map<std::string, std::string>;

constexpr std::uint64_t kLargestText = std::uint64_t{256} << 20;
constexpr const char *kHead = "lm_head.weight", *kEmbedding = "model.embed_tokens.weight";

/// A trained model in a folder.
class Weights {
 public:
  explicit Weights(const fs::path& folder) : folder_(folder) {
    if (const auto newest = newest_checkpoint(folder)) folder_ = *newest;
    if (fs::exists(folder_ / "manifest.json")) {
      take_checkpoint();
    } else if (fs::exists(folder_ / "config.json")) {
      try {
        model_ = model_of_hugging_face(read_file(folder_ / "config.json", kLargestText));
      } catch (const InvalidArgument& error) {
        throw unusable(fmt::format("config.json: {}", error.what()));
      }
      find_tensors();
    } else {
      throw unusable("it holds neither a checkpoint (manifest.json) nor a model of transformers (config.json)");
    }
  }

  InvalidArgument unusable(const std::string& what) const {
    return InvalidArgument(fmt::format("weights: {}: {}; correct run.initial_weights", folder_.string(), what));
  }
  const fs::path& folder() const { return folder_; }
  /// model.* keys, as key_values() writes them.
  const Texts& model() const { return model_; }

  /// The files of a checkpoint are as they were written. All ranks share that work.
  void verify(int rank, int ranks) const {
    for (std::size_t i = static_cast<std::size_t>(rank); i < written_.size(); i += static_cast<std::size_t>(ranks)) {
      if (digest_of_file(folder_ / written_[i].name) != written_[i].digest)
        throw unusable(fmt::format("the digest of {} does not match", written_[i].name));
    }
  }

  /// All tensors are those of the parameters.
  void check(const ParameterTable& parameters) {
    Texts extra = file_of_;
    for (const Parameter& parameter : parameters.all()) {
      if (extra.erase(parameter.name) == 0) throw unusable(fmt::format("there is no tensor {}", parameter.name));
      const TensorInfo& info = file_with(parameter.name).tensors().at(parameter.name);
      const Extents& wanted = parameter.shape;
      if (!info.has_shape(wanted) || !is_floating(info.dtype)) {
        throw unusable(fmt::format("tensor {} is {} [{}], and [{}] of a floating-point type is needed", parameter.name,
                                   to_string(info.dtype), fmt::join(info.shape, ","),
                                   fmt::join(wanted.value.begin(), wanted.value.begin() + wanted.dims, ",")));
      }
    }
    if (extra.erase(kHead) != 0 && !equal(kHead, kEmbedding))
      throw unusable(fmt::format("{} is not {}, and the model is one that ties them", kHead, kEmbedding));
    std::erase_if(extra, [](const auto& entry) { return entry.first.ends_with("rotary_emb.inv_freq"); });  // computed
    if (!extra.empty()) {
      throw unusable(fmt::format("tensor {}{} is of no layer that this model has", extra.begin()->first,
                                 extra.size() > 1 ? fmt::format(" (and {} more)", extra.size() - 1) : ""));
    }
  }

  /// The whole tensor, flat.
  ConstTensorView of(const Parameter& parameter) const {
    return files_.at(file_of_.at(parameter.name)).view(parameter.name).reshape({parameter.elements});
  }

 private:
  void take_checkpoint() {
    Manifest manifest = read_manifest(folder_);
    const auto defaults = key_values(Config{});
    manifest.config.insert(defaults.begin(), defaults.end());  // of keys that are younger than it
    for (const auto& [key, value] : manifest.config) {
      if (key.starts_with("model.")) model_[key] = value;
    }
    for (const Manifest::File& file : manifest.files) {
      for (const std::string& tensor : file.tensors) add(tensor, file.name);
    }
    written_ = std::move(manifest.files);
  }

  void add(const std::string& tensor, const std::string& file) {
    if (fs::path(file).filename() != file || file == "..") throw unusable(fmt::format("{} lies outside the folder", file));
    if (!tensor.starts_with(kOptimizerPrefix)) file_of_[tensor] = file;
  }
  const SafetensorsFile& open(const std::string& file) { return files_.try_emplace(file, folder_ / file).first->second; }
  const SafetensorsFile& file_with(const std::string& tensor) {
    const std::string& name = file_of_.at(tensor);
    const SafetensorsFile& file = open(name);
    if (!file.contains(tensor)) throw unusable(fmt::format("{} does not hold tensor {}", name, tensor));
    return file;
  }
  bool equal(const std::string& tensor, const std::string& other) {
    const ConstTensorView a = file_with(tensor).view(tensor), b = file_with(other).view(other);
    return a.dtype() == b.dtype() && a.shape() == b.shape() && std::memcmp(a.bytes(), b.bytes(), a.size_bytes()) == 0;
  }

  void find_tensors() {
    constexpr const char *kIndex = "model.safetensors.index.json", *kWhole = "model.safetensors";
    if (fs::exists(folder_ / kWhole)) {
      for (const auto& [tensor, info] : open(kWhole).tensors()) add(tensor, kWhole);
      return;
    }
    if (!fs::exists(folder_ / kIndex)) {
      const bool pickled = fs::exists(folder_ / "pytorch_model.bin") || fs::exists(folder_ / "pytorch_model.bin.index.json");
      throw unusable(fmt::format("it has neither {} nor {}{}", kWhole, kIndex,
                                 pickled ? ", and pytorch_model.bin is not read here; save the model with safe_serialization=True" : ""));
    }
    const json index = json::parse(read_file(folder_ / kIndex, kLargestText), nullptr, false);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
      throw unusable(fmt::format("{} has no weight_map", kIndex));
    for (const auto& [tensor, file] : index["weight_map"].items()) {
      if (!file.is_string()) throw unusable(fmt::format("{} names no file for tensor {}", kIndex, tensor));
      add(tensor, file);
    }
  }

  static bool is_floating(DType dtype) { return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }

  fs::path folder_;
  Texts model_, file_of_;
  std::map<std::string, SafetensorsFile> files_;
  std::vector<Manifest::File> written_;  // of a checkpoint
};

/// Layers of full and of windowed attention have the same tensors.
bool only_softmax(const std::string& pattern) { return pattern.find_first_not_of("SW") == pattern.npos; }

/// Sentences about keys that may differ. Throws if others do.
std::vector<std::string> compare(const Weights& weights, const Config& config) {
  const auto entries = key_values(config);
  const Texts here(entries.begin(), entries.end());
  std::vector<std::string> remarks, wrong;
  for (const auto& [key, there] : weights.model()) {
    const auto entry = here.find(key);
    if (entry == here.end()) throw weights.unusable(fmt::format("its {} = {} is not known", key, there));
    if (entry->second == there) continue;
    const bool free = key.starts_with("model.rope_") || key == "model.window" ||
                      (key == "model.pattern" && only_softmax(there) && only_softmax(entry->second));
    if (free) {
      remarks.push_back(fmt::format("{} is {} there and {} here", key, there, entry->second));
    } else {
      wrong.push_back(fmt::format("{}={}", key, there));
    }
  }
  if (!wrong.empty())
    throw InvalidArgument(
        fmt::format("weights: {} is of another model than the configured one; set {}", weights.folder().string(), fmt::join(wrong, " ")));
  return remarks;
}

}  // namespace

std::map<std::string, std::string> model_of_weights(const fs::path& folder) { return Weights(folder).model(); }

std::vector<std::string> load_initial_weights(const fs::path& folder, const Config& config, ShardedAdamw& optimizer, StreamView stream) {
  std::optional<Weights> weights;
  std::vector<std::string> remarks;
  all_or_none(optimizer.communicator(), [&] {
    weights.emplace(folder);
    remarks = compare(*weights, config);
    weights->verify(optimizer.communicator().rank(), optimizer.communicator().size());
    weights->check(optimizer.parameters());
  });
  std::atomic<const Parameter*> not_finite = nullptr;
  const auto values = [&](const Parameter& parameter, std::int64_t first, TensorView to) {
    copy(weights->of(parameter).slice(0, first, to.elements()), to);
    if (!all_finite(to)) not_finite = &parameter;
  };
  optimizer.initialise(values, stream);
  all_or_none(optimizer.communicator(), [&] {
    if (const Parameter* const parameter = not_finite)
      throw weights->unusable(
          fmt::format("tensor {} has values that are not finite in {}", parameter->name, to_string(optimizer.master().dtype())));
  });
  return remarks;
}

}  // namespace periplus::train
