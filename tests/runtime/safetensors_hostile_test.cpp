// Damaged and hostile safetensors files: each is refused with a message that names file, tensor and fault, at once, and
// without allocating what the file merely claims.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "runtime/error.h"
#include "runtime/safetensors.h"
#include "tests/runtime/scratch_folder.h"

namespace {
std::atomic<std::size_t> allocated_bytes{0};
}

// Counting replacements: what the reader asks for is part of its contract. Inlined, GCC 12 takes new and free for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  allocated_bytes += bytes;
  if (void* const memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace periplus {
namespace {

using test::ScratchFolder;

std::string with_length(std::uint64_t length, const std::string& rest) {
  std::string contents(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) contents[i] = static_cast<char>(length >> (8 * i));
  return contents + rest;
}

/// A file of this header and `data_bytes` bytes of data.
std::string file_of(const std::string& header, std::size_t data_bytes = 0) {
  return with_length(header.size(), header + std::string(data_bytes, 'd'));
}

std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"w":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

/// The message of the refusal; a failure if the file is accepted, or slow or hungry to be refused.
std::string refusal(const std::filesystem::path& path, std::size_t allocation_limit, double seconds_limit) {
  const auto begin = std::chrono::steady_clock::now();
  const std::size_t allocated_before = allocated_bytes;
  std::string message;
  try {
    const SafetensorsFile file(path);
    ADD_FAILURE() << "accepted";
  } catch (const InvalidArgument& error) {
    message = error.what();
  }
  EXPECT_LE(allocated_bytes - allocated_before, allocation_limit);
  EXPECT_LE(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), seconds_limit);
  EXPECT_NE(message.find(path.string()), std::string::npos) << message;
  EXPECT_LE(message.size(), 1000U);
  return message;
}

struct Case {
  std::string contents;
  const char* expected;
};

void check_all(const std::vector<Case>& cases) {
  const ScratchFolder folder;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE("case " + std::to_string(i) + ": " + cases[i].contents.substr(0, 200));
    const std::string message = refusal(folder.write("bad.safetensors", cases[i].contents), 256U << 10, 2.0);
    EXPECT_NE(message.find(cases[i].expected), std::string::npos) << message;
  }
}

TEST(SafetensorsHostile, FramesAreRefused) {
  check_all({
      {"", "too few"},
      {"\x02\0\0\0\0\0\0", "too few"},
      {with_length(0, ""), "does not begin with '{'"},
      {with_length(2, ""), "header of 2 bytes in a file of 8 bytes"},
      {with_length(3, "{}"), "header of 3 bytes in a file of 10 bytes"},
      {with_length(~std::uint64_t{0}, "{}"), "the limit is"},
      {with_length(std::uint64_t{1} << 63, "{}"), "the limit is"},
      {with_length((64U << 20) + 1, "{}"), "the limit is"},
      {with_length(64U << 20, "{}"), "in a file of 10 bytes"},
      {file_of(" {}"), "does not begin with '{'"},
      {file_of("\xef\xbb\xbf{}"), "does not begin with '{'"},
      {file_of("[]"), "does not begin with '{'"},
      {file_of("null"), "does not begin with '{'"},
      {file_of("{}", 1), "1 bytes follow the last tensor"},
  });
}

TEST(SafetensorsHostile, BrokenJsonIsRefused) {
  check_all({
      {file_of("{"), "not JSON"},
      {file_of("{}}"), "not JSON"},
      {file_of("{} x"), "not JSON"},
      {file_of(std::string("{}\0\0", 4)), "NUL"},
      {file_of(std::string("{\"a\0\":1}", 8)), "NUL"},
      {file_of("{'w':1}"), "not JSON"},
      {file_of("{\"w\" 1}"), "not JSON"},
      {file_of("{\"w\":}"), "not JSON"},
      {file_of("{\"w"), "not JSON"},
      {file_of("{\"\xff\":1}"), "not JSON"},
      {file_of("{\"\\ud800\":1}"), "not JSON"},
      {file_of(R"({"__metadata__":{},})"), "not JSON"},
      {file_of("{/**/}"), "not JSON"},
      {file_of(tensor(R"("U8")", "[1,]", "[0,1]"), 1), "not JSON"},
      {file_of(tensor(R"("U8")", "[01]", "[0,1]"), 1), "not JSON"},
      {file_of(tensor(R"("U8")", "[NaN]", "[0,1]"), 1), "not JSON"},
      {file_of("{\"" + std::string(5000, 'x') + "\n\":1}"), "not JSON"},
  });
}

TEST(SafetensorsHostile, WrongGrammarIsRefusedNamingTheTensor) {
  check_all({
      {file_of(R"({"w":1})"), "tensor 'w': expected an object, found the number 1"},
      {file_of(R"({"w":null})"), "tensor 'w': expected an object, found null"},
      {file_of(R"({"w":true})"), "tensor 'w': expected an object, found a boolean"},
      {file_of(R"({"w":[]})"), "tensor 'w': expected an object, found an array"},
      {file_of(R"({"w":"U8"})"), "tensor 'w': expected an object, found the string 'U8'"},
      {file_of(R"({"w":{}})"), "tensor 'w': field 'dtype' is missing"},
      {file_of(R"({"w":{"dtype":"U8"}})"), "tensor 'w': field 'shape' is missing"},
      {file_of(R"({"w":{"dtype":"U8","shape":[]}})"), "tensor 'w': field 'data_offsets' is missing"},
      {file_of(R"({"w":{"shape":[],"data_offsets":[0,1]}})", 1), "tensor 'w': field 'dtype' is missing"},
      {file_of(R"({"w":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}})", 1), "field 'dtype' appears twice"},
      {file_of(R"({"w":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", 1), "field 'shape' appears twice"},
      {file_of(R"({"w":{"dtype":"U8","shape":[],"data_offsets":[0,1],"data_offsets":[0,1]}})", 1), "'data_offsets' appears twice"},
      {file_of(R"({"w":{"dtype":"U8","shape":[],"data_offsets":[0,1],"extra":1}})", 1), "unknown field 'extra'"},
      {file_of(tensor("1", "[1]", "[0,1]"), 1), "dtype: expected a string, found the number 1"},
      {file_of(tensor("[]", "[1]", "[0,1]"), 1), "dtype: expected a string, found an array"},
      {file_of(tensor("{}", "[1]", "[0,1]"), 1), "dtype: expected a string, found an object"},
      {file_of(tensor(R"("U8")", "1", "[0,1]"), 1), "shape: expected an array, found the number 1"},
      {file_of(tensor(R"("U8")", R"("1")", "[0,1]"), 1), "shape: expected an array, found the string '1'"},
      {file_of(tensor(R"("U8")", "[[1]]", "[0,1]"), 1), "shape: expected an unsigned integer, found an array"},
      {file_of(tensor(R"("U8")", "[{}]", "[0,1]"), 1), "shape: expected an unsigned integer, found an object"},
      {file_of(tensor(R"("U8")", "[null]", "[0,1]"), 1), "shape: expected an unsigned integer, found null"},
      {file_of(tensor(R"("U8")", R"(["1"])", "[0,1]"), 1), "shape: expected an unsigned integer, found the string"},
      {file_of(R"({"w":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[],"data_offsets":[0,1]}})", 1),
       "tensor 'w': appears twice"},
      {file_of(R"({"w":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"\u0077":{"dtype":"U8","shape":[],"data_offsets":[1,2]}})", 2),
       "tensor 'w': appears twice"},
  });
}

TEST(SafetensorsHostile, WrongMetadataIsRefused) {
  check_all({
      {file_of(R"({"__metadata__":1})"), "__metadata__: expected an object"},
      {file_of(R"({"__metadata__":[]})"), "__metadata__: expected an object"},
      {file_of(R"({"__metadata__":{"k":1}})"), "__metadata__: key 'k': expected a string, found the number 1"},
      {file_of(R"({"__metadata__":{"k":null}})"), "__metadata__: key 'k': expected a string, found null"},
      {file_of(R"({"__metadata__":{"k":{}}})"), "__metadata__: key 'k': expected a string, found an object"},
      {file_of(R"({"__metadata__":{"k":[]}})"), "__metadata__: key 'k': expected a string, found an array"},
      {file_of(R"({"__metadata__":{"k":"a","k":"a"}})"), "__metadata__: key 'k' appears twice"},
      {file_of(R"({"__metadata__":{},"__metadata__":{}})"), "__metadata__: appears twice"},
  });
}

TEST(SafetensorsHostile, WrongNumbersAreRefusedNamingTheTensor) {
  const std::string u8 = R"("U8")";
  check_all({
      {file_of(tensor(R"("F8_E4M3")", "[1]", "[0,1]"), 1), "tensor 'w': dtype 'F8_E4M3' is not supported"},
      {file_of(tensor(R"("f32")", "[1]", "[0,4]"), 4), "tensor 'w': dtype 'f32' is not supported"},
      {file_of(tensor(R"("")", "[1]", "[0,1]"), 1), "tensor 'w': dtype '' is not supported"},
      {file_of(tensor(R"("F32\u0000")", "[1]", "[0,4]"), 4), "is not supported"},
      {file_of(tensor(u8, "[-1]", "[0,1]"), 1), "shape: expected an unsigned integer, found the negative number -1"},
      {file_of(tensor(u8, "[-0]", "[0,0]")), "shape: expected an unsigned integer"},
      {file_of(tensor(u8, "[1.0]", "[0,1]"), 1), "shape: expected an unsigned integer, found the number 1.0"},
      {file_of(tensor(u8, "[1e0]", "[0,1]"), 1), "shape: expected an unsigned integer, found the number 1e0"},
      {file_of(tensor(u8, "[18446744073709551616]", "[0,1]"), 1), "found the number 18446744073709551616"},
      {file_of(tensor(u8, "[18446744073709551615]", "[0,1]"), 1), "shape [18446744073709551615] is too large"},
      {file_of(tensor(u8, "[9223372036854775808]", "[0,1]"), 1), "is too large"},
      {file_of(tensor(u8, "[4294967296,4294967296]", "[0,0]")), "shape [4294967296, 4294967296] is too large"},
      {file_of(tensor(R"("F64")", "[2305843009213693952]", "[0,0]")), "is too large"},
      {file_of(tensor(u8, "[4294967296,4294967296,0]", "[0,0]")), "is too large"},
      {file_of(tensor(u8, "[0,4294967296,4294967296]", "[0,0]")), "is too large"},
      {file_of(tensor(u8, "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1), "shape has more than 8 entries"},
      {file_of(tensor(u8, "[1]", "[]"), 1), "data_offsets has 0 entries instead of 2"},
      {file_of(tensor(u8, "[1]", "[0]"), 1), "data_offsets has 1 entries instead of 2"},
      {file_of(tensor(u8, "[1]", "[0,1,1]"), 1), "data_offsets has more than 2 entries"},
      {file_of(tensor(u8, "[1]", "[1,0]"), 1), "data_offsets [1, 0] end before they begin"},
      {file_of(tensor(u8, "[1]", "[0,-1]"), 1), "data_offsets: expected an unsigned integer"},
      {file_of(tensor(u8, "[2]", "[0,2]"), 1), "data_offsets [0, 2] reach beyond the 1 bytes of data"},
      {file_of(tensor(u8, "[1]", "[18446744073709551615,18446744073709551615]"), 1), "reach beyond"},
      {file_of(tensor(R"("F32")", "[1]", "[0,3]"), 3), "hold 3 bytes; shape and dtype need 4"},
      {file_of(tensor(R"("F32")", "[]", "[0,0]")), "hold 0 bytes; shape and dtype need 4"},
      {file_of(tensor(u8, "[0]", "[0,1]"), 1), "hold 1 bytes; shape and dtype need 0"},
      {file_of(tensor(R"("I64")", "[1152921504606846975]", "[0,8]"), 8), "shape and dtype need 9223372036854775800"},
  });
}

std::string two(const std::string& first, const std::string& second, std::size_t data_bytes) {
  return file_of(R"({"a":{"dtype":"U8","shape":)" + first + R"(},"b":{"dtype":"U8","shape":)" + second + "}}", data_bytes);
}

TEST(SafetensorsHostile, OverlapsGapsAndTrailingBytesAreRefused) {
  check_all({
      {two(R"([2],"data_offsets":[0,2])", R"([2],"data_offsets":[1,3])", 3),
       "tensor 'b': begins at byte 1 of the data, the one before ends at 2: they overlap"},
      {two(R"([2],"data_offsets":[0,2])", R"([2],"data_offsets":[0,2])", 2), "they overlap"},
      {two(R"([4],"data_offsets":[0,4])", R"([0],"data_offsets":[2,2])", 4), "they overlap"},
      {two(R"([1],"data_offsets":[0,1])", R"([1],"data_offsets":[2,3])", 3),
       "tensor 'b': begins at byte 2 of the data, the one before ends at 1: there is a gap"},
      {two(R"([1],"data_offsets":[1,2])", R"([1],"data_offsets":[2,3])", 3),
       "tensor 'a': begins at byte 1 of the data, the one before ends at 0: there is a gap"},
      {two(R"([1],"data_offsets":[0,1])", R"([1],"data_offsets":[1,2])", 3), "1 bytes follow the last tensor"},
      {two(R"([1],"data_offsets":[0,1])", R"([0],"data_offsets":[2,2])", 2), "there is a gap"},
  });
}

TEST(SafetensorsHostile, NamesAreShownShortAndPrintable) {
  const ScratchFolder folder;
  const std::string message =
      refusal(folder.write("a", file_of("{\"\\u001b[31m\\n\x7f" + std::string(100000, 'x') + "\":1}")), 4U << 20, 2.0);
  EXPECT_EQ(message.find('\x1b'), std::string::npos);
  EXPECT_EQ(message.find('\n'), std::string::npos);
  EXPECT_EQ(message.find('\x7f'), std::string::npos);
}

TEST(SafetensorsHostile, BombsAreRefusedBeforeAnythingLargeIsAllocated) {
  const ScratchFolder folder;
  const auto name = [](std::size_t i) { return std::to_string(i).append("\"").insert(0, 1, '"'); };
  EXPECT_NE(refusal(folder.write("elements", file_of(tensor(R"("F32")", "[1152921504606846976]", "[0,4]"), 900)), 64U << 10, 1.0).find("w"),
            std::string::npos);
  for (const std::string& opening : {std::string("["), std::string("{\"a\":")}) {
    std::string nested = "{\"w\":";
    for (int depth = 0; depth < 1000000; ++depth) nested += opening;
    EXPECT_NE(refusal(folder.write("nesting", file_of(nested)), 64U << 10, 2.0).find("tensor 'w'"), std::string::npos);
  }
  std::string many = "{";
  for (std::size_t i = 0; i < 1000000; ++i) many += name(i) + R"(:{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)";
  many.back() = '}';
  EXPECT_NE(refusal(folder.write("names", file_of(many)), 128U << 20, 8.0).find("more than 131072 tensors"), std::string::npos);
  std::string keys = "{\"__metadata__\":{";
  for (std::size_t i = 0; i < 1000000; ++i) keys += name(i) + ":\"\",";
  keys.back() = '}';
  EXPECT_NE(refusal(folder.write("keys", file_of(keys + "}")), 128U << 20, 8.0).find("more than 131072 keys"), std::string::npos);
  std::filesystem::resize_file(folder.write("long", with_length(100U << 20, "{")), 101U << 20);
  EXPECT_NE(refusal(folder / "long", 64U << 10, 2.0).find("header of 104857600 bytes"), std::string::npos);
}

TEST(SafetensorsHostile, WhatIsNotARegularFileIsRefusedAtOnce) {
  const ScratchFolder folder;
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  std::filesystem::create_symlink("loop", folder / "loop");
  for (const std::filesystem::path& path :
       {folder / "fifo", folder.path(), std::filesystem::path("/dev/zero"), folder / "absent", folder / "loop"}) {
    EXPECT_NE(test::message_of<DeviceError>([&] { const SafetensorsFile file(path); }).find(path.string()), std::string::npos);
  }
}

/// The small valid file that the damage tests start from.
std::string small_file() {
  std::string header =
      R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}} )";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return file_of(header, 11);
}

struct Loaded {
  std::vector<std::pair<std::string, std::pair<DType, std::uint64_t>>> tensors;
  std::uint64_t data_begin = 0;
};

/// Loads the file and reads every tensor's bytes; nothing if it is refused.
std::optional<Loaded> load(const std::filesystem::path& path, std::size_t file_bytes) {
  try {
    const SafetensorsFile file(path);
    Loaded loaded;
    std::uint64_t covered = 0;
    for (const auto& [name, info] : file.tensors()) {
      EXPECT_LE(info.offset + info.bytes, file_bytes);
      covered += info.bytes;
      int sum = 0;
      for (const std::byte* byte = file.view(name).bytes(); byte != file.view(name).bytes() + info.bytes; ++byte)
        sum += std::to_integer<int>(*byte);
      EXPECT_EQ(sum, 'd' * static_cast<int>(info.bytes));
      loaded.tensors.push_back({name, {info.dtype, info.bytes}});
    }
    EXPECT_EQ(covered, 11U);
    return loaded;
  } catch (const InvalidArgument&) {
    return std::nullopt;
  }
}

TEST(SafetensorsHostile, EveryTruncationIsRefused) {
  const ScratchFolder folder;
  const std::string contents = small_file();
  ASSERT_TRUE(load(folder.write("a", contents), contents.size()));
  for (std::size_t bytes = 0; bytes < contents.size(); ++bytes) {
    SCOPED_TRACE(bytes);
    refusal(folder.write("a", contents.substr(0, bytes)), 256U << 10, 2.0);
  }
  refusal(folder.write("a", contents + "d"), 256U << 10, 2.0);
}

TEST(SafetensorsHostile, EverySingleBitFlipOfTheHeaderIsRefusedOrHarmless) {
  const ScratchFolder folder;
  const std::string contents = small_file();
  int refused = 0;
  int accepted = 0;
  for (std::size_t bit = 0; bit < 8 * (contents.size() - 11); ++bit) {
    SCOPED_TRACE(bit);
    std::string damaged = contents;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    const std::optional<Loaded> loaded = load(folder.write("a", damaged), damaged.size());
    ++(loaded ? accepted : refused);
    // What is accepted differs in a name, a metadata text or a shape of equal size; sizes in bytes are untouched.
    if (loaded) {
      ASSERT_EQ(loaded->tensors.size(), 2U);
      EXPECT_EQ(loaded->tensors[0].second.second + loaded->tensors[1].second.second, 11U);
    }
  }
  EXPECT_GT(refused, 10 * accepted);
  EXPECT_GT(accepted, 0);
}

}  // namespace
}  // namespace periplus
