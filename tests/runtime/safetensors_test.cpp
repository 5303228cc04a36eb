#include "runtime/safetensors.h"

#include <cstring>

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "runtime/file.h"
#include "tests/runtime/scratch_folder.h"

namespace periplus {
namespace {

using test::message_of;
using test::ScratchFolder;

Tensor filled(const Extents& shape, DType dtype, int seed) {
  Tensor tensor(shape, dtype, Memory());
  for (std::size_t i = 0; i < tensor.view().size_bytes(); ++i) {
    tensor.view().bytes()[i] = static_cast<std::byte>((i * 37 + static_cast<std::size_t>(seed) * 11) & 0xff);
  }
  return tensor;
}

bool same_bytes(const ConstTensorView& a, const ConstTensorView& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         (a.size_bytes() == 0 || std::memcmp(a.bytes(), b.bytes(), a.size_bytes()) == 0);
}

std::string contents_of(const std::filesystem::path& path) { return read_file(path, 1 << 20); }

TEST(Safetensors, EveryTypeAndShapeComesBackAsItWent) {
  const ScratchFolder folder;
  std::vector<Tensor> tensors;
  NamedTensors named;
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8}) {
    for (const Extents& shape : {Extents{}, Extents{0}, Extents{7}, Extents{3, 0, 2}, Extents{5, 3}, Extents{2, 3, 4, 5}, Extents{1, 1}}) {
      tensors.push_back(filled(shape, dtype, static_cast<int>(tensors.size())));
      named.emplace_back(std::string(to_string(dtype)) + to_string(shape), tensors.back());
    }
  }
  named.emplace_back("strange \" \\ \n \xc3\xa4 / .. name", tensors[2]);
  named.emplace_back("", tensors[4]);
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"quote \"", "line\nbreak \xe2\x82\xac"}, {"", ""}};
  write_safetensors(folder / "a.safetensors", named, metadata);
  const SafetensorsFile file(folder / "a.safetensors");
  EXPECT_EQ(file.metadata(), metadata);
  EXPECT_EQ(file.tensors().size(), named.size());
  for (const auto& [name, tensor] : named) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(file.contains(name));
    EXPECT_TRUE(same_bytes(file.view(name), tensor));
  }
  EXPECT_EQ(folder.names().size(), 1U);
}

TEST(Safetensors, BytesAreTheOnesTheFormatAsksFor) {
  const ScratchFolder folder;
  const Tensor a = filled({2, 3}, DType::bf16, 1);
  const Tensor b = filled({}, DType::i64, 2);
  write_safetensors(folder / "a", {{"w", a}, {"s", b}}, {{"k", "v"}});
  std::string header =
      R"({"__metadata__":{"k":"v"},"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"s":{"dtype":"I64","shape":[],"data_offsets":[12,20]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string expected(8, '\0');
  expected[0] = static_cast<char>(header.size());
  expected += header;
  expected.append(reinterpret_cast<const char*>(a.view().bytes()), 12);
  expected.append(reinterpret_cast<const char*>(b.view().bytes()), 8);
  ASSERT_LT(header.size(), 256U);
  EXPECT_EQ(contents_of(folder / "a"), expected);
  EXPECT_EQ(SafetensorsFile(folder / "a").tensors().at("s").offset, 8 + header.size() + 12);
}

TEST(Safetensors, DataStartsAlignedWhateverTheHeaderLength) {
  const ScratchFolder folder;
  const Tensor tensor = filled({3}, DType::f64, 1);
  for (std::size_t length = 0; length < 17; ++length) {
    write_safetensors(folder / "a", {{std::string(length, 'n'), tensor}});
    const SafetensorsFile file(folder / "a");
    EXPECT_EQ(file.tensors().begin()->second.offset % 8, 0U);
    EXPECT_TRUE(same_bytes(file.view(std::string(length, 'n')), tensor));
  }
}

TEST(Safetensors, EmptyTensorMayShareItsOffsetWhateverItsName) {
  const ScratchFolder folder;
  const Tensor full = filled({3}, DType::u8, 1);
  const Tensor empty = filled({0}, DType::f64, 1);
  write_safetensors(folder / "a", {{"z", empty}, {"m", full}, {"a", empty}});
  const SafetensorsFile file(folder / "a");
  EXPECT_TRUE(same_bytes(file.view("m"), full));
  EXPECT_EQ(file.view("z").elements(), 0);
}

TEST(Safetensors, FileWithoutTensorsIsValid) {
  const ScratchFolder folder;
  write_safetensors(folder / "a", {});
  const SafetensorsFile file(folder / "a");
  EXPECT_TRUE(file.tensors().empty());
  EXPECT_TRUE(file.metadata().empty());
}

TEST(Safetensors, WriterRefusesWhatTheFormatCannotHold) {
  const ScratchFolder folder;
  const Tensor tensor = filled({4, 4}, DType::f32, 1);
  const auto refused = [&](const NamedTensors& tensors, const std::map<std::string, std::string>& metadata = {}) {
    return message_of<InvalidArgument>([&] { write_safetensors(folder / "a", tensors, metadata); });
  };
  EXPECT_NE(refused({{"w", tensor}, {"w", tensor}}).find("'w' is given twice"), std::string::npos);
  EXPECT_NE(refused({{"w", tensor.view().slice(1, 0, 2)}}).find("'w' of shape [4, 2] with strides [4, 1] is not contiguous"),
            std::string::npos);
  EXPECT_NE(refused({{"__metadata__", tensor}}).find("__metadata__"), std::string::npos);
  EXPECT_NE(refused({{"bad \xff", tensor}}).find("UTF-8"), std::string::npos);
  EXPECT_NE(refused({}, {{"k", "\xc3"}}).find("UTF-8"), std::string::npos);
  EXPECT_NE(refused({{"w", TensorView()}}).find("'w' has no memory"), std::string::npos);
  EXPECT_TRUE(folder.names().empty());
}

TEST(Safetensors, TensorsMayComeOneByOne) {
  const ScratchFolder folder;
  const std::array<Tensor, 2> tensors = {filled({4, 4}, DType::f32, 1), filled({3}, DType::bf16, 2)};
  const std::vector<TensorOutline> outlines = {{"w", DType::f32, {4, 4}}, {"b", DType::bf16, {3}}};
  write_safetensors(folder / "at_once", {{"w", tensors[0]}, {"b", tensors[1]}}, {{"k", "v"}});
  SafetensorsWriter writer(folder / "one_by_one", outlines, {{"k", "v"}});
  for (const Tensor& tensor : tensors) writer.append(tensor);
  EXPECT_FALSE(std::filesystem::exists(folder / "one_by_one"));
  writer.commit();
  EXPECT_EQ(read_file(folder / "one_by_one", 1 << 16), read_file(folder / "at_once", 1 << 16));

  const auto refused = [&](const std::function<void(SafetensorsWriter&)>& use) {
    return message_of<InvalidArgument>([&] {
      SafetensorsWriter unfinished(folder / "never", outlines);
      use(unfinished);
    });
  };
  EXPECT_NE(refused([&](auto& it) { it.append(tensors[1]); }).find("'w' is f32 [4, 4], and bf16 [3] was given"), std::string::npos);
  EXPECT_NE(refused([&](auto& it) {
              for (const int i : {0, 1, 1}) it.append(tensors[static_cast<std::size_t>(i)]);
            }).find("there are 2 tensors, and one more was given"),
            std::string::npos);
  SafetensorsWriter unfinished(folder / "never", outlines);
  unfinished.append(tensors[0]);
  EXPECT_THROW(unfinished.commit(), InternalError);
  EXPECT_FALSE(std::filesystem::exists(folder / "never"));
}

TEST(Safetensors, WriterKeepsTheOldFileWhenItFails) {
  const ScratchFolder folder;
  const Tensor tensor = filled({4}, DType::f32, 1);
  std::filesystem::create_directories(folder / "taken/inside");
  EXPECT_THROW(write_safetensors(folder / "taken", {{"w", tensor}}), InvalidArgument);
  EXPECT_EQ(folder.names().size(), 1U);
  EXPECT_THROW(write_safetensors(folder / "absent/a", {{"w", tensor}}), DeviceError);
}

TEST(Safetensors, MappedFileSurvivesItsReplacement) {
  const ScratchFolder folder;
  const Tensor old = filled({1000}, DType::f32, 1);
  write_safetensors(folder / "a", {{"w", old}});
  const SafetensorsFile file(folder / "a");
  write_safetensors(folder / "a", {{"w", filled({1}, DType::f32, 2)}});
  EXPECT_TRUE(same_bytes(file.view("w"), old));
  EXPECT_EQ(SafetensorsFile(folder / "a").view("w").elements(), 1);
}

TEST(Safetensors, MovesWithItsMapping) {
  const ScratchFolder folder;
  const Tensor tensor = filled({8}, DType::i32, 3);
  write_safetensors(folder / "a", {{"w", tensor}}, {{"k", "v"}});
  write_safetensors(folder / "b", {});
  SafetensorsFile first(folder / "a");
  SafetensorsFile second(std::move(first));
  SafetensorsFile third(folder / "b");
  third = std::move(second);
  EXPECT_TRUE(same_bytes(third.view("w"), tensor));
  EXPECT_EQ(third.metadata().at("k"), "v");
}

TEST(Safetensors, MissingTensorAndTooManyDimensionsNameTheTensor) {
  const ScratchFolder folder;
  std::string header = R"({"w":{"dtype":"U8","shape":[1,1,1,1,1],"data_offsets":[0,1]}})";
  std::string contents(8, '\0');
  contents[0] = static_cast<char>(header.size());
  const SafetensorsFile file(folder.write("a", contents + header + "x"));
  EXPECT_EQ(file.tensors().at("w").shape.size(), 5U);
  EXPECT_NE(message_of<InvalidArgument>([&] { file.view("w"); }).find("tensor 'w' has 5 dimensions"), std::string::npos);
  EXPECT_NE(message_of<InvalidArgument>([&] { file.view("v"); }).find("no tensor 'v'"), std::string::npos);
}

}  // namespace
}  // namespace periplus
