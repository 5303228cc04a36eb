#include "launch/tensor_file.h"

#include <algorithm>
#include <climits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "launch/suggest.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

const std::vector<std::string>& known_names() {
  static const std::vector<std::string> names = {"q", "k", "v", "grad_out", "grad_lse", "cu_seqlens", "sink"};
  return names;
}

template <class Integer>
std::vector<std::int64_t> to_int64(std::span<const Integer> values) {
  return {values.begin(), values.end()};
}

}  // namespace

AttentionFile::AttentionFile(const std::filesystem::path& path) : path_(path), file_(path) {
  for (const auto& [name, info] : file_.tensors()) {
    if (std::ranges::find(known_names(), name) == known_names().end()) {
      throw InvalidArgument(fmt::format("{}: attention has no operand '{}'{}; it takes {}, and nothing is ignored", path.string(), name,
                                        did_you_mean(name, known_names()), fmt::join(known_names(), ", ")));
    }
  }
  read_required();
  read_optional();
  read_documents();
}

ConstTensorView AttentionFile::need(const std::string& name, int dims) const {
  if (!file_.contains(name)) throw InvalidArgument(fmt::format("{}: there is no tensor '{}'", path_.string(), name));
  const TensorInfo& info = file_.tensors().at(name);
  if (static_cast<int>(info.shape.size()) != dims) {
    throw InvalidArgument(fmt::format("{}: '{}' has {} dimensions; {} are expected", path_.string(), name, info.shape.size(), dims));
  }
  constexpr std::int64_t kLargest = INT_MAX;
  if (dims > 1 && std::ranges::any_of(info.shape.begin() + 1, info.shape.end(), [](auto size) { return size < 1 || size > kLargest; })) {
    throw InvalidArgument(fmt::format("{}: '{}' has shape [{}]; heads and widths lie between 1 and {}", path_.string(), name,
                                      fmt::join(info.shape, ", "), kLargest));
  }
  return file_.view(name);
}

void AttentionFile::expect_shape(const std::string& name, const Extents& shape, const std::string& meaning) const {
  const ConstTensorView view = need(name, shape.dims);
  if (view.shape() != shape) {
    throw InvalidArgument(
        fmt::format("{}: '{}' has shape {}; {} is expected: {}", path_.string(), name, to_string(view.shape()), to_string(shape), meaning));
  }
}

void AttentionFile::expect_dtype(const std::string& name, DType dtype, const std::string& reason) const {
  const DType found = file_.tensors().at(name).dtype;
  if (found != dtype) {
    throw InvalidArgument(
        fmt::format("{}: '{}' is {}; {} is expected: {}", path_.string(), name, to_string(found), to_string(dtype), reason));
  }
}

void AttentionFile::read_required() {
  tensors_.q = need("q", 3);
  tensors_.k = need("k", 3);
  tensors_.v = need("v", 3);
  const DType type = dtype();
  if (type != DType::f64 && type != DType::f32 && type != DType::bf16 && type != DType::f16) {
    throw InvalidArgument(fmt::format("{}: 'q' is {}; F64, F32, BF16 and F16 are accepted", path_.string(), to_string(type)));
  }
  expect_dtype("k", type, "q, k and v share one type");
  expect_dtype("v", type, "q, k and v share one type");
  const std::int64_t tokens = tensors_.q.size(0);
  expect_shape("k", {tokens, kv_heads(), head_size()}, "[tokens of q, KV heads, head size of q]");
  expect_shape("v", {tokens, kv_heads(), value_size()}, "[tokens of q, heads of k, value size]");
  if (q_heads() % kv_heads() != 0) {
    throw InvalidArgument(
        fmt::format("{}: q has {} heads, which is not a multiple of the {} heads of k and v", path_.string(), q_heads(), kv_heads()));
  }
}

void AttentionFile::read_optional() {
  const std::int64_t tokens = tensors_.q.size(0);
  const DType accumulator = accumulator_of(dtype());
  if (file_.contains("grad_out")) {
    expect_shape("grad_out", {tokens, q_heads(), value_size()}, "[tokens, heads of q, value size]");
    expect_dtype("grad_out", dtype(), "the type of q, k and v");
    tensors_.dout = file_.view("grad_out");
  }
  if (file_.contains("grad_lse")) {
    expect_shape("grad_lse", {tokens, q_heads()}, "[tokens, heads of q]");
    expect_dtype("grad_lse", accumulator, "the type of lse");
    if (!backward()) throw InvalidArgument(fmt::format("{}: 'grad_lse' needs 'grad_out' beside it", path_.string()));
    tensors_.dlse = file_.view("grad_lse").reshape({tokens, q_heads(), 1});
  }
  if (file_.contains("sink")) {
    expect_shape("sink", {q_heads()}, "[heads of q]");
    if (file_.tensors().at("sink").dtype != dtype()) expect_dtype("sink", accumulator, "the type of q or of lse");
    sink_ = Tensor({1, q_heads(), 1}, accumulator, Memory());
    copy(file_.view("sink").reshape({1, q_heads(), 1}), sink_);
    tensors_.sink = sink_;
  }
}

void AttentionFile::read_documents() {
  const std::int64_t tokens = tensors_.q.size(0);
  cu_seqlens_ = {0, tokens};
  if (!file_.contains("cu_seqlens")) return;
  const ConstTensorView view = need("cu_seqlens", 1);
  if (view.dtype() != DType::i32 && view.dtype() != DType::i64) {
    throw InvalidArgument(fmt::format("{}: 'cu_seqlens' is {}; I32 and I64 are accepted", path_.string(), to_string(view.dtype())));
  }
  cu_seqlens_ = view.dtype() == DType::i32 ? to_int64(view.span<std::int32_t>()) : to_int64(view.span<std::int64_t>());
  const bool covers = cu_seqlens_.size() >= 2 && cu_seqlens_.front() == 0 && cu_seqlens_.back() == tokens;
  if (!covers || !std::ranges::is_sorted(cu_seqlens_)) {
    throw InvalidArgument(fmt::format("{}: 'cu_seqlens' must rise from 0 to the {} tokens of q", path_.string(), tokens));
  }
}

}  // namespace periplus::launch
