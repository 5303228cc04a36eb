#include "runtime/file.h"

#include <thread>

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "runtime/error.h"
#include "runtime/file_descriptor.h"
#include "tests/runtime/scratch_folder.h"

namespace periplus {
namespace {

using test::message_of;
using test::ScratchFolder;

constexpr std::uint64_t kNoLimit = std::uint64_t{1} << 40;

/// While it lives, no file of this process may grow beyond `bytes`: writes come up short and then fail.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    old_handler_ = ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &old_limit_);
    const rlimit limit{bytes, old_limit_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_limit_);
    ::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_limit_{};
  sighandler_t old_handler_;
};

TEST(File, ReadsWhatWasWrittenUpToTheLimit) {
  const ScratchFolder folder;
  for (const std::size_t bytes : {0U, 1U, 4096U, 3000001U}) {
    std::string contents(bytes, 'x');
    if (bytes > 0) contents.back() = '\0';
    write_file_atomically(folder / "a", contents);
    EXPECT_TRUE(read_file(folder / "a", bytes) == contents);
    if (bytes > 0) {
      const std::string message = message_of<InvalidArgument>([&] { read_file(folder / "a", bytes - 1); });
      EXPECT_NE(message.find((folder / "a").string()), std::string::npos) << message;
      EXPECT_NE(message.find(std::to_string(bytes - 1)), std::string::npos) << message;
    }
  }
}

TEST(File, ReadsFilesThatDoNotKnowTheirSize) {
  EXPECT_NE(read_file("/proc/self/status", kNoLimit).find("Pid:"), std::string::npos);
  EXPECT_THROW(read_file("/proc/self/status", 10), InvalidArgument);
}

TEST(File, RefusesWhatIsNotARegularFileAtOnce) {
  const ScratchFolder folder;
  const std::string fifo = (folder / "fifo").string();
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  for (const std::string& path : {fifo, folder.path().string(), std::string("/dev/zero"), (folder / "absent").string(), std::string()}) {
    EXPECT_NE(message_of<DeviceError>([&] { read_file(path, kNoLimit); }).find(path), std::string::npos);
    EXPECT_THROW(digest_of_file(path), DeviceError);
  }
}

TEST(File, AtomicWriteReplacesAndLeavesNothingBeside) {
  const ScratchFolder folder;
  write_file_atomically(folder / "a", "old");
  write_file_atomically(folder / "a", "new and longer");
  EXPECT_EQ(read_file(folder / "a", 100), "new and longer");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"a"});
}

TEST(File, AtomicWriteReplacesALinkInsteadOfFollowingIt) {
  const ScratchFolder folder;
  folder.write("target", "precious");
  std::filesystem::create_symlink("target", folder / "link");
  write_file_atomically(folder / "link", "new");
  EXPECT_EQ(read_file(folder / "target", 100), "precious");
  EXPECT_EQ(read_file(folder / "link", 100), "new");
}

TEST(File, AtomicWriteReplacesNothingButFiles) {
  const ScratchFolder folder;
  const std::filesystem::path fifo = folder / "fifo", link = folder / "link";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);  // stands for /dev/null, which a test must not risk
  std::filesystem::create_symlink("fifo", link);
  for (const std::filesystem::path& path : {fifo, link}) {
    EXPECT_NE(message_of<InvalidArgument>([&] { write_file_atomically(path, "new"); }).find(path.string()), std::string::npos);
  }
  EXPECT_TRUE(std::filesystem::is_fifo(fifo));
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_EQ(folder.names().size(), 2U);
}

TEST(File, CreatesFoldersOrSaysWhyNot) {
  const ScratchFolder folder;
  create_folders(folder / "a" / "b");
  create_folders(folder / "a" / "b");
  EXPECT_TRUE(std::filesystem::is_directory(folder / "a" / "b"));
  folder.write("file", "");
  const std::string path = (folder / "file" / "c").string();
  EXPECT_NE(message_of<DeviceError>([&] { create_folders(path); }).find(path), std::string::npos);
}

TEST(File, FailedWriteKeepsTheOldFileAndRemovesTheTemporaryOne) {
  const ScratchFolder folder;
  write_file_atomically(folder / "a", "old");
  {
    const FileSizeLimit limit(10000);
    const std::string message = message_of<DeviceError>([&] { write_file_atomically(folder / "a", std::string(20000, 'x')); });
    EXPECT_NE(message.find("write"), std::string::npos) << message;
    EXPECT_NE(message.find("File too large"), std::string::npos) << message;
  }
  EXPECT_EQ(read_file(folder / "a", 100), "old");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"a"});
}

TEST(File, WriteToAFolderThatCannotTakeItNamesThePath) {
  const ScratchFolder folder;
  std::filesystem::create_directories(folder / "taken/inside");
  EXPECT_NE(message_of<DeviceError>([&] { write_file_atomically(folder / "absent/a", "x"); }).find("absent"), std::string::npos);
  EXPECT_NE(message_of<InvalidArgument>([&] { write_file_atomically(folder / "taken", "x"); }).find("taken is a folder"),
            std::string::npos);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"taken"});
  for (const char* name : {"", "/", ".", "..", "a/"}) EXPECT_THROW(write_file_atomically(name, "x"), InvalidArgument) << name;
}

TEST(File, NewFilesAreNotWritableByOthersAndObeyTheUmask) {
  const ScratchFolder folder;
  for (const auto& [mask, expected] : {std::pair<mode_t, mode_t>{0, 0644}, {022, 0644}, {077, 0600}}) {
    const mode_t old = ::umask(mask);
    write_file_atomically(folder / "a", "x");
    ::umask(old);
    struct stat status {};
    ASSERT_EQ(::stat((folder / "a").c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777U, expected);
  }
}

TEST(File, ConcurrentWritersLeaveOneCompleteFile) {
  const ScratchFolder folder;
  std::vector<std::thread> writers;
  for (int writer = 0; writer < 4; ++writer) {
    writers.emplace_back([&, writer] {
      for (int round = 0; round < 10; ++round) write_file_atomically(folder / "a", std::string(50000, static_cast<char>('0' + writer)));
    });
  }
  for (std::thread& writer : writers) writer.join();
  const std::string contents = read_file(folder / "a", kNoLimit);
  EXPECT_TRUE(contents == std::string(50000, contents.at(0)));
  EXPECT_EQ(folder.names().size(), 1U);
}

TEST(File, RenamesFilesAndFolders) {
  const ScratchFolder folder;
  std::filesystem::create_directories(folder / "from");
  write_file_atomically(folder / "from/a", "x");
  rename_durably(folder / "from", folder / "to");
  EXPECT_EQ(read_file(folder / "to/a", 1), "x");
  EXPECT_NE(message_of<DeviceError>([&] { rename_durably(folder / "from", folder / "to2"); }).find("from"), std::string::npos);
  EXPECT_THROW(sync_directory(folder / "to/a"), DeviceError);
}

TEST(File, LocksEndWithTheirDescriptor) {
  const ScratchFolder folder;
  std::optional<FileDescriptor> lock = try_lock(folder / "lock");
  ASSERT_TRUE(lock);
  EXPECT_FALSE(try_lock(folder / "lock"));
  lock.reset();
  EXPECT_TRUE(try_lock(folder / "lock"));
  EXPECT_THROW(try_lock(folder / "none/lock"), DeviceError);
}

TEST(File, DigestsMatchThePublishedValuesOfXxh3) {
  EXPECT_EQ(digest_of_bytes(""), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(hash64(""), 0x2d06800538d394c2U);
  EXPECT_NE(hash64("a"), hash64("a", 1));
  EXPECT_NE(digest_of_bytes("a"), digest_of_bytes("b"));
}

TEST(File, DigestOfAFileIsThatOfItsBytes) {
  const ScratchFolder folder;
  std::string contents(2500000, 'a');
  for (std::size_t i = 0; i < contents.size(); ++i) contents[i] = static_cast<char>(i * 31 % 251);
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{5}, std::size_t{1} << 20, contents.size()}) {
    const std::string part = contents.substr(0, bytes);
    EXPECT_EQ(digest_of_file(folder.write("a", part)), digest_of_bytes(part));
  }
}

}  // namespace
}  // namespace periplus
