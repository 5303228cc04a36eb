// A folder that exists as long as a test needs it.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>
#include <stdlib.h>

namespace periplus::test {

class ScratchFolder {
 public:
  ScratchFolder() : path_(testing::TempDir() + "/periplus-XXXXXX") {
    if (::mkdtemp(path_.data()) == nullptr) ADD_FAILURE() << "cannot create " << path_;
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  std::filesystem::path operator/(std::string_view name) const { return std::filesystem::path(path_) / name; }
  std::filesystem::path path() const { return path_; }

  std::filesystem::path write(std::string_view name, std::string_view contents) const {
    std::ofstream(*this / name, std::ios::binary).write(contents.data(), static_cast<std::streamsize>(contents.size()));
    return *this / name;
  }

  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) result.push_back(entry.path().filename().string());
    return result;
  }

 private:
  std::string path_;
};

/// The message of the Expected exception that `run` throws; a test failure if it throws another or none.
template <class Expected, class Run>
std::string message_of(const Run& run) {
  try {
    run();
  } catch (const Expected& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another kind of exception: " << error.what();
    return {};
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

}  // namespace periplus::test
