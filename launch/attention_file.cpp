#include "launch/attention_file.h"

#include <fmt/format.h>

namespace periplus::launch {

AttentionFile::AttentionFile(const std::filesystem::path& path)
    : file_(path, "attention", {"q", "k", "v", "grad_out", "grad_lse", "cu_seqlens", "sink"}) {
  read_required();
  read_optional();
  cu_seqlens_ = file_.documents(tensors_.q.size(0));
}

void AttentionFile::read_required() {
  tensors_.q = file_.need("q", 3);
  tensors_.k = file_.need("k", 3);
  tensors_.v = file_.need("v", 3);
  file_.expect_float("q");
  for (const char* const name : {"k", "v"}) file_.expect_dtype(name, dtype(), "q, k and v share one type");
  const std::int64_t tokens = tensors_.q.size(0);
  file_.need("k", {tokens, kv_heads(), head_size()}, "[tokens of q, KV heads, head size of q]");
  file_.need("v", {tokens, kv_heads(), value_size()}, "[tokens of q, heads of k, value size]");
  if (q_heads() % kv_heads() != 0) {
    file_.refuse(fmt::format("q has {} heads, which is not a multiple of the {} heads of k and v", q_heads(), kv_heads()));
  }
}

void AttentionFile::read_optional() {
  const std::int64_t tokens = tensors_.q.size(0);
  if (file_.contains("grad_out")) {
    tensors_.dout = file_.need("grad_out", {tokens, q_heads(), value_size()}, "[tokens, heads of q, value size]");
    file_.expect_dtype("grad_out", dtype(), "the type of q, k and v");
  }
  if (file_.contains("grad_lse")) {
    tensors_.dlse = file_.need("grad_lse", {tokens, q_heads()}, "[tokens, heads of q]").reshape({tokens, q_heads(), 1});
    file_.expect_dtype("grad_lse", accumulator_of(dtype()), "the type of lse");
    if (!file_.contains("grad_out")) file_.refuse("'grad_lse' needs 'grad_out' beside it");
  }
  if (file_.contains("sink")) {
    sink_ = file_.in_accumulator_type("sink", file_.need("sink", {q_heads()}, "[heads of q]").reshape({1, q_heads(), 1}), dtype());
    tensors_.sink = sink_;
  }
}

}  // namespace periplus::launch
