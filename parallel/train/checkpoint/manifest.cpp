// manifest.json: what a checkpoint says about itself, and whether a run may continue from it.
#include <map>
#include <string>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "parallel/train/checkpoint/checkpoint.h"
#include "parallel/train/config.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace periplus::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t kLargestManifest = std::uint64_t{256} << 20;
constexpr int kFormat = 1;

/// Paths need not be UTF-8, which JSON is.
std::string dump(const json& object, int indent = -1) { return object.dump(indent, ' ', false, json::error_handler_t::replace); }

json to_json(const Manifest& manifest) {
  json files = json::array();
  for (const Manifest::File& file : manifest.files) {
    files.push_back({{"name", file.name}, {"xxh3_128", file.digest}, {"bytes", file.bytes}, {"tensors", file.tensors}});
  }
  return {{"format", kFormat},
          {"step", manifest.step},
          {"epoch", manifest.epoch},
          {"ranks", manifest.ranks},
          {"corpus_digest", manifest.corpus_digest},
          {"config", manifest.config},
          {"files", std::move(files)}};
}

Manifest from_json(const json& object) {
  Manifest manifest;
  if (object.at("format").get<int>() != kFormat) throw InvalidArgument(fmt::format("its format is not {}", kFormat));
  object.at("step").get_to(manifest.step);
  object.at("epoch").get_to(manifest.epoch);
  object.at("ranks").get_to(manifest.ranks);
  object.at("corpus_digest").get_to(manifest.corpus_digest);
  object.at("config").get_to(manifest.config);
  for (const json& file : object.at("files")) {
    manifest.files.push_back({file.at("name").get<std::string>(), file.at("xxh3_128").get<std::string>(),
                              file.at("bytes").get<std::uint64_t>(), file.at("tensors").get<std::vector<std::string>>()});
    // A name must stay inside the checkpoint.
    const fs::path name = manifest.files.back().name;
    if (name.empty() || name != name.filename() || name == "..") throw InvalidArgument("it names a file outside its folder");
  }
  if (manifest.step < 0) throw InvalidArgument("its step is negative");
  return manifest;
}

/// What the numbers of a run depend on. Schedule, layout, strategy and rank count may change on the way.
bool decides_numbers(std::string_view key) {
  return key.starts_with("model.") || key == "data.token_type" || key == "data.document_end" || key == "data.context" ||
         key == "data.packing" || key == "data.rows_per_step" || key == "run.seed" || key == "run.dtype";
}

InvalidArgument differs(std::string_view key, std::string_view saved, std::string_view now) {
  return InvalidArgument(fmt::format(
      "checkpoint: it was written with {} = {}, this run has {}; continue with the same value or start in another run.directory", key,
      saved, now));
}

}  // namespace

std::string to_text(const Manifest& manifest) {
  json object = to_json(manifest);
  object["xxh3_128"] = digest_of_bytes(dump(object));
  return dump(object, 1) + "\n";
}

Manifest read_manifest(const fs::path& checkpoint) {
  const fs::path path = checkpoint / "manifest.json";
  const auto refuse = [&](std::string_view reason) { return damaged(checkpoint, fmt::format("manifest.json: {}", reason)); };
  json object = json::parse(read_file(path, kLargestManifest), nullptr, false);
  if (!object.is_object()) throw refuse("this is no JSON object");
  try {
    const auto digest = object.at("xxh3_128").get<std::string>();
    object.erase("xxh3_128");
    if (digest != digest_of_bytes(dump(object))) throw InvalidArgument("its digest does not match");
    return from_json(object);
  } catch (const json::exception& error) {
    throw refuse(error.what());
  } catch (const InvalidArgument& error) {
    throw refuse(error.what());
  }
}

void require_same_run(const Manifest& saved, const Manifest& now) {
  // A checkpoint older than a key was written with what is its default now.
  const auto entries = key_values(Config{});
  const std::map<std::string, std::string> defaults(entries.begin(), entries.end());
  for (const auto& [key, value] : now.config) {
    if (!decides_numbers(key)) continue;
    const auto entry = saved.config.find(key);
    const std::string& before = entry != saved.config.end() ? entry->second : defaults.at(key);
    if (before != value) throw differs(key, before, value);
  }
  if (saved.corpus_digest != now.corpus_digest)
    throw differs("corpus digest (paths and sizes of data.paths without data.validation_paths)", saved.corpus_digest, now.corpus_digest);
}

}  // namespace periplus::train
