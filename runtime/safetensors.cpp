// Reader and writer of safetensors files. The reader trusts nothing in the file: see HeaderReader and check_layout.
#include "runtime/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <string_view>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/mman.h>

#include "runtime/error.h"
#include "runtime/file_descriptor.h"

namespace periplus {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kMaxHeaderBytes = std::uint64_t{64} << 20;
constexpr std::size_t kMaxFileDims = 8;
/// Bounds the memory that a header full of tiny entries can make us allocate.
constexpr std::size_t kMaxEntries = std::size_t{1} << 17;
constexpr std::size_t kLengthBytes = 8;
constexpr std::string_view kMetadataName = "__metadata__";

constexpr std::array<std::pair<std::string_view, DType>, 7> kFileDTypes = {{{"F64", DType::f64},
                                                                            {"F32", DType::f32},
                                                                            {"BF16", DType::bf16},
                                                                            {"F16", DType::f16},
                                                                            {"I64", DType::i64},
                                                                            {"I32", DType::i32},
                                                                            {"U8", DType::u8}}};

/// Text from a file, made fit for an error message.
std::string shown(std::string_view text) {
  constexpr std::size_t kShownBytes = 120;
  std::string result(text.substr(0, kShownBytes));
  std::replace_if(
      result.begin(), result.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
  if (text.size() > kShownBytes) result += "...";
  return result;
}

struct Header {
  std::map<std::string, TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
};

/// SAX handler that accepts exactly the grammar of a safetensors header. Nothing nests deeper than the grammar does, and the
/// DOM, which would keep the last of two equal names, is never built. Offsets are relative to the data here.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  HeaderReader(std::string file, std::uint64_t data_bytes) : file_(std::move(file)), data_bytes_(data_bytes) {}
  Header take() { return std::move(header_); }

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_integer(std::int64_t value) override { return unexpected(fmt::format("the negative number {}", value)); }
  bool number_float(double, const std::string& text) override { return unexpected(fmt::format("the number {}", shown(text))); }
  bool binary(Json::binary_t&) override { return unexpected("binary data"); }

  bool number_unsigned(std::uint64_t value) override {
    if (place_ != Place::array) return unexpected(fmt::format("the number {}", value));
    const std::size_t limit = field_ == "shape" ? kMaxFileDims : 2;
    if (numbers_.size() == limit) fail(fmt::format("{} has more than {} entries", field_, limit));
    numbers_.push_back(value);
    return true;
  }

  bool string(std::string& value) override {
    if (place_ == Place::metadata) {
      header_.metadata.emplace(metadata_key_, std::move(value));
      return true;
    }
    if (place_ != Place::tensor || field_ != "dtype") return unexpected(fmt::format("the string '{}'", shown(value)));
    const auto* const known = std::find_if(kFileDTypes.begin(), kFileDTypes.end(), [&](const auto& entry) { return entry.first == value; });
    if (known == kFileDTypes.end()) {
      fail(fmt::format("dtype '{}' is not supported; known are F64, F32, BF16, F16, I64, I32, U8", shown(value)));
    }
    dtype_ = known->second;
    return true;
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::outside) {
      place_ = Place::root;
    } else if (place_ == Place::root) {
      place_ = name_ == kMetadataName ? Place::metadata : Place::tensor;
      dtype_.reset();
      shape_.reset();
      range_.reset();
    } else {
      return unexpected("an object");
    }
    return true;
  }

  bool key(std::string& value) override {
    switch (place_) {
      case Place::root:
        name_ = std::move(value);
        return new_tensor_name();
      case Place::metadata:
        if (header_.metadata.contains(value)) fail(fmt::format("key '{}' appears twice", shown(value)));
        if (header_.metadata.size() == kMaxEntries) fail(fmt::format("more than {} keys", kMaxEntries));
        metadata_key_ = std::move(value);
        return true;
      default:
        field_ = std::move(value);
        return new_tensor_field();
    }
  }

  bool end_object() override {
    if (place_ == Place::tensor) add_tensor();
    place_ = place_ == Place::root ? Place::outside : Place::root;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::tensor || field_ == "dtype") return unexpected("an array");
    place_ = Place::array;
    numbers_.clear();
    return true;
  }

  bool end_array() override {
    place_ = Place::tensor;
    if (field_ == "data_offsets" && numbers_.size() != 2) fail(fmt::format("data_offsets has {} entries instead of 2", numbers_.size()));
    (field_ == "shape" ? shape_ : range_) = numbers_;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const Json::exception& error) override {
    throw InvalidArgument(fmt::format("safetensors: {}: the header is not JSON at byte {}: {}", file_, position, shown(error.what())));
  }

 private:
  enum class Place { outside, root, metadata, tensor, array };

  [[noreturn]] void fail(const std::string& what) const {
    if (name_ == kMetadataName) throw InvalidArgument(fmt::format("safetensors: {}: {}: {}", file_, kMetadataName, what));
    throw InvalidArgument(fmt::format("safetensors: {}: tensor '{}': {}", file_, shown(name_), what));
  }

  bool unexpected(const std::string& found) const {
    switch (place_) {
      case Place::outside:
        throw InvalidArgument(fmt::format("safetensors: {}: the header is {} instead of an object", file_, found));
      case Place::root:
        fail(fmt::format("expected an object, found {}", found));
      case Place::metadata:
        fail(fmt::format("key '{}': expected a string, found {}", shown(metadata_key_), found));
      case Place::tensor:
        fail(fmt::format("{}: expected {}, found {}", field_, field_ == "dtype" ? "a string" : "an array", found));
      case Place::array:
        fail(fmt::format("{}: expected an unsigned integer, found {}", field_, found));
    }
    return false;
  }

  bool new_tensor_name() {
    const bool is_metadata = name_ == kMetadataName;
    const bool twice = is_metadata ? std::exchange(has_metadata_, true) : header_.tensors.contains(name_);
    if (twice) fail("appears twice");
    if (!is_metadata && header_.tensors.size() == kMaxEntries) fail(fmt::format("the file has more than {} tensors", kMaxEntries));
    return true;
  }

  bool new_tensor_field() const {
    if (field_ != "dtype" && field_ != "shape" && field_ != "data_offsets") fail(fmt::format("unknown field '{}'", shown(field_)));
    if ((field_ == "dtype" && dtype_) || (field_ == "shape" && shape_) || (field_ == "data_offsets" && range_)) {
      fail(fmt::format("field '{}' appears twice", field_));
    }
    return true;
  }

  void add_tensor() {
    if (!dtype_ || !shape_ || !range_) fail(fmt::format("field '{}' is missing", !dtype_ ? "dtype" : !shape_ ? "shape" : "data_offsets"));
    TensorInfo info;
    info.dtype = *dtype_;
    info.bytes = checked_bytes();
    const std::uint64_t begin = (*range_)[0];
    const std::uint64_t end = (*range_)[1];
    if (begin > end) fail(fmt::format("data_offsets [{}, {}] end before they begin", begin, end));
    if (end > data_bytes_) fail(fmt::format("data_offsets [{}, {}] reach beyond the {} bytes of data", begin, end, data_bytes_));
    if (end - begin != info.bytes) {
      fail(fmt::format("data_offsets [{}, {}] hold {} bytes; shape and dtype need {}", begin, end, end - begin, info.bytes));
    }
    info.offset = begin;
    info.shape.assign(shape_->begin(), shape_->end());
    header_.tensors.emplace(name_, std::move(info));
  }

  std::uint64_t checked_bytes() const {
    constexpr std::uint64_t kLargest = std::numeric_limits<std::int64_t>::max();
    // A size of 0 must not hide that the others overflow: strides are products of the others.
    std::uint64_t bytes = size_of(*dtype_);
    bool is_empty = false;
    for (const std::uint64_t size : *shape_) {
      is_empty = is_empty || size == 0;
      if (__builtin_mul_overflow(bytes, std::max<std::uint64_t>(size, 1), &bytes) || bytes > kLargest) {
        fail(fmt::format("shape [{}] is too large", fmt::join(*shape_, ", ")));
      }
    }
    return is_empty ? 0 : bytes;
  }

  std::string file_;
  std::uint64_t data_bytes_;
  Header header_;
  Place place_ = Place::outside;
  bool has_metadata_ = false;
  std::string name_;
  std::string metadata_key_;
  std::string field_;
  std::vector<std::uint64_t> numbers_;
  std::optional<DType> dtype_;
  std::optional<std::vector<std::uint64_t>> shape_;
  std::optional<std::vector<std::uint64_t>> range_;
};

/// The tensors must tile the data: no overlap, no gap, nothing behind the last one.
void check_layout(const std::string& file, const std::map<std::string, TensorInfo>& tensors, std::uint64_t data_bytes) {
  using Entry = std::map<std::string, TensorInfo>::value_type;
  std::vector<const Entry*> order;
  for (const Entry& entry : tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) {
    return std::pair(a->second.offset, a->second.bytes) < std::pair(b->second.offset, b->second.bytes);
  });
  std::uint64_t end = 0;
  for (const Entry* entry : order) {
    const std::uint64_t begin = entry->second.offset;
    if (begin != end) {
      throw InvalidArgument(fmt::format("safetensors: {}: tensor '{}': begins at byte {} of the data, the one before ends at {}: {}", file,
                                        shown(entry->first), begin, end, begin < end ? "they overlap" : "there is a gap"));
    }
    end += entry->second.bytes;
  }
  if (end != data_bytes) {
    throw InvalidArgument(fmt::format("safetensors: {}: {} bytes follow the last tensor", file, data_bytes - end));
  }
}

Header read_header(const std::string& file, const std::byte* data, std::uint64_t file_bytes) {
  const auto refuse = [&](const std::string& what) { throw InvalidArgument(fmt::format("safetensors: {}: {}", file, what)); };
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i) length |= std::uint64_t{std::to_integer<std::uint8_t>(data[i])} << (8 * i);
  if (length > kMaxHeaderBytes) refuse(fmt::format("header of {} bytes; the limit is {}", length, kMaxHeaderBytes));
  if (length > file_bytes - kLengthBytes) refuse(fmt::format("header of {} bytes in a file of {} bytes", length, file_bytes));
  const char* const begin = reinterpret_cast<const char*>(data) + kLengthBytes;
  // The JSON library skips a byte order mark and takes NUL for the end of its input.
  if (length == 0 || *begin != '{') refuse("the header does not begin with '{'");
  if (std::memchr(begin, 0, length) != nullptr) refuse("the header contains a NUL byte");
  const std::uint64_t data_bytes = file_bytes - kLengthBytes - length;
  HeaderReader reader(file, data_bytes);
  Json::sax_parse(begin, begin + length, &reader);
  Header header = reader.take();
  check_layout(file, header.tensors, data_bytes);
  for (auto& [name, info] : header.tensors) info.offset += kLengthBytes + length;
  return header;
}

std::string_view file_dtype(DType dtype) {
  for (const auto& [name, known] : kFileDTypes) {
    if (known == dtype) return name;
  }
  throw InternalError(fmt::format("safetensors: dtype {} has no name in files", to_string(dtype)));
}

std::string quoted(const std::string& file, const std::string& text) {
  try {
    return Json(text).dump();
  } catch (const Json::exception&) {
    throw InvalidArgument(fmt::format("safetensors: {}: '{}' is not valid UTF-8", file, shown(text)));
  }
}

std::uint64_t bytes_of(const TensorOutline& tensor) { return static_cast<std::uint64_t>(tensor.shape.product()) * size_of(tensor.dtype); }

std::string tensor_entry(const std::string& file, const TensorOutline& tensor, std::uint64_t begin) {
  const auto shape = tensor.shape.value.begin();
  return fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", quoted(file, tensor.name), file_dtype(tensor.dtype),
                     fmt::join(shape, shape + tensor.shape.dims, ","), begin, begin + bytes_of(tensor));
}

[[noreturn]] void refuse(const std::string& file, const std::string& what) {
  throw InvalidArgument(fmt::format("safetensors: {}: {}", file, what));
}

std::string make_header(const std::string& file, const std::vector<TensorOutline>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  if (tensors.size() > kMaxEntries || metadata.size() > kMaxEntries) {
    refuse(file, fmt::format("{} tensors and {} metadata keys; the limit is {} of each", tensors.size(), metadata.size(), kMaxEntries));
  }
  std::string header = "{";
  if (!metadata.empty()) {
    header += fmt::format("\"{}\":{{", kMetadataName);
    for (const auto& [key, value] : metadata) header += quoted(file, key) + ":" + quoted(file, value) + ",";
    header.back() = '}';
    header += ',';
  }
  std::set<std::string_view> names;
  std::uint64_t begin = 0;
  for (const TensorOutline& tensor : tensors) {
    if (tensor.name == kMetadataName) refuse(file, fmt::format("a tensor cannot be named {}", kMetadataName));
    if (!names.insert(tensor.name).second) refuse(file, fmt::format("tensor '{}' is given twice", shown(tensor.name)));
    header += tensor_entry(file, tensor, begin) + ",";
    begin += bytes_of(tensor);
  }
  if (header.back() == ',') header.pop_back();
  header += '}';
  header.resize((header.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  if (header.size() > kMaxHeaderBytes) refuse(file, fmt::format("header of {} bytes; the limit is {}", header.size(), kMaxHeaderBytes));
  return header;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : path_(path.string()) {
  std::uint64_t size = 0;
  const FileDescriptor file = open_regular_file(path, size);
  if (size < kLengthBytes) {
    throw InvalidArgument(fmt::format("safetensors: {}: {} bytes are too few for a safetensors file", path_, size));
  }
  void* const map = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (map == MAP_FAILED) throw_system_error("mmap", path);
  const auto unmap = [size](const std::byte* data) { ::munmap(const_cast<std::byte*>(data), size); };
  std::unique_ptr<const std::byte, decltype(unmap)> mapping(static_cast<const std::byte*>(map), unmap);
  Header header = read_header(path_, mapping.get(), size);
  tensors_ = std::move(header.tensors);
  metadata_ = std::move(header.metadata);
  data_ = mapping.release();
  bytes_ = size;
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept { *this = std::move(other); }

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(tensors_, other.tensors_);
  std::swap(metadata_, other.metadata_);
  return *this;
}

SafetensorsFile::~SafetensorsFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), bytes_);
}

ConstTensorView SafetensorsFile::view(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw InvalidArgument(fmt::format("safetensors: {}: no tensor '{}' among its {} tensors", path_, shown(name), tensors_.size()));
  }
  const TensorInfo& info = found->second;
  if (info.shape.size() > kMaxDims) {
    throw InvalidArgument(fmt::format("safetensors: {}: tensor '{}' has {} dimensions; at most {} can be used", path_, shown(name),
                                      info.shape.size(), kMaxDims));
  }
  return ConstTensorView(data_ + info.offset, info.dtype, Extents(info.shape));
}

void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors, const std::map<std::string, std::string>& metadata) {
  std::vector<TensorOutline> outlines;
  for (const auto& [name, tensor] : tensors) outlines.push_back({name, tensor.dtype(), tensor.shape()});
  SafetensorsWriter writer(path, std::move(outlines), metadata);
  for (const auto& [name, tensor] : tensors) writer.append(tensor);
  writer.commit();
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorOutline> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : path_(path.string()), tensors_(std::move(tensors)) {
  const std::string header = make_header(path_, tensors_, metadata);
  std::array<std::uint8_t, kLengthBytes> length{};
  for (std::size_t i = 0; i < kLengthBytes; ++i) length[i] = static_cast<std::uint8_t>(std::uint64_t{header.size()} >> (8 * i));
  file_ = std::make_unique<AtomicFileWriter>(path);
  file_->append(length.data(), length.size());
  file_->append(header.data(), header.size());
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::append(ConstTensorView tensor) {
  if (next_ == tensors_.size()) refuse(path_, fmt::format("there are {} tensors, and one more was given", next_));
  const TensorOutline& outline = tensors_[next_++];
  if (tensor.dtype() != outline.dtype || tensor.shape() != outline.shape) {
    refuse(path_, fmt::format("tensor '{}' is {} {}, and {} {} was given", shown(outline.name), to_string(outline.dtype),
                              to_string(outline.shape), to_string(tensor.dtype()), to_string(tensor.shape())));
  }
  if (!tensor.contiguous()) {
    refuse(path_, fmt::format("tensor '{}' of shape {} with strides {} is not contiguous; copy it first", shown(outline.name),
                              to_string(tensor.shape()), to_string(tensor.strides())));
  }
  if (tensor.bytes() == nullptr && tensor.size_bytes() > 0) refuse(path_, fmt::format("tensor '{}' has no memory", shown(outline.name)));
  file_->append(tensor.bytes(), tensor.size_bytes());
}

void SafetensorsWriter::commit() {
  if (next_ < tensors_.size()) throw InternalError(fmt::format("safetensors: {}: {} of {} tensors given", path_, next_, tensors_.size()));
  file_->commit();
}

}  // namespace periplus
