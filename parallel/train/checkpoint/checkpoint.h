#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/train/optimizer.h"
#include "runtime/comm/communicator.h"
#include "runtime/error.h"

namespace periplus::train {

/// How the names of tensors begin that are no weights.
inline constexpr std::string_view kOptimizerPrefix = "optimizer.";

/// What a checkpoint says about itself: manifest.json.
struct Manifest {
  std::int64_t step = 0;  ///< The last finished step; with the seed it decides everything that follows.
  std::int64_t epoch = 0;
  int ranks = 1;  ///< Ranks that wrote it; any number may read it.
  std::string corpus_digest;
  std::map<std::string, std::string> config = {};  ///< key_values() of the run.

  struct File {
    std::string name;
    std::string digest;  ///< XXH3-128
    std::uint64_t bytes = 0;
    std::vector<std::string> tensors;
  };
  std::vector<File> files = {};  ///< Filled by save_checkpoint.
};

/// Writes run_directory/checkpoints/step-XXXXXXXX: one safetensors file per rank with whole tensors (master weights under
/// their Hugging Face names, optimizer.exp_avg.*, optimizer.exp_avg_sq.*), what transformers needs to read them (hugging_face.h) and,
/// last, manifest.json. Everything goes to a folder beside it, is synced and renamed; then LATEST follows. Keeps the newest two, and
/// nothing of a save that was killed. Collective; a failure on one rank
/// is thrown on all. `stream` is of the optimizer's device; files are the same for all devices.
/// Cost: the bytes over the links once; in host memory, of one state of one section, what the rank writes and, on a device, owns.
void save_checkpoint(const std::filesystem::path& run_directory, Manifest manifest, const ShardedAdamw& optimizer, StreamView stream);

/// Folder of the newest complete checkpoint: what LATEST names, else the highest step that has a manifest; nothing if
/// there is none. InvalidArgument if LATEST names one that is not there.
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& run_directory);

/// What is wrong with a checkpoint, and how to continue from the one before it, if there is one.
InvalidArgument damaged(const std::filesystem::path& checkpoint, const std::string& what);

/// Throws `damaged` naming the file for anything that is no manifest.
Manifest read_manifest(const std::filesystem::path& checkpoint);

/// Its text, with a digest of itself.
std::string to_text(const Manifest& manifest);

/// Refuses to continue another run: InvalidArgument naming the key and both values if what the numbers depend on (model,
/// context, packing, seed, data) differs. Schedule, layout, strategy and rank count may differ.
void require_same_run(const Manifest& saved, const Manifest& now);

/// Fills the optimizer's shard. Every file's size, digest and tensors are checked before any of it is used; the ranks share
/// that work. Errors: InvalidArgument naming file and tensor, thrown on all ranks. Collective.
void load_checkpoint(const std::filesystem::path& checkpoint, const Manifest& manifest, ShardedAdamw& optimizer, StreamView stream);

}  // namespace periplus::train
