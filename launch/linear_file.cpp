#include "launch/linear_file.h"

#include <fmt/format.h>

namespace periplus::launch {
namespace {

std::vector<std::string> operands(const std::string& operation) {
  std::vector<std::string> names = {"q", "k", "v", "log_decay", "grad_out", "cu_seqlens"};
  if (operation == "delta_rule") names.emplace_back("beta");
  return names;
}

}  // namespace

LinearFile::LinearFile(const std::filesystem::path& path, const std::string& operation) : file_(path, operation, operands(operation)) {
  read_required();
  read_decay();
  read_rest(operation == "delta_rule");
  cu_seqlens_ = file_.documents(tensors_.q.size(0));
}

Decay LinearFile::decay() const {
  if (log_decay_.empty()) return Decay::none;
  return file_.dims_of("log_decay") == 2 ? Decay::scalar : Decay::diagonal;
}

void LinearFile::read_required() {
  tensors_.q = file_.need("q", 3);
  file_.expect_float("q");
  tensors_.k = file_.need("k", tensors_.q.shape(), "the shape of q");
  tensors_.v = file_.need("v", 3);
  file_.need("v", {tensors_.q.size(0), heads(), value_size()}, "[tokens of q, heads of q, value size]");
  for (const char* const name : {"k", "v"}) file_.expect_dtype(name, dtype(), "q, k and v share one type");
}

void LinearFile::read_decay() {
  if (!file_.contains("log_decay")) return;
  const std::int64_t tokens = tensors_.q.size(0);
  const ConstTensorView given =
      file_.dims_of("log_decay") == 3
          ? file_.need("log_decay", tensors_.q.shape(), "the shape of q, or [tokens, heads]")
          : file_.need("log_decay", {tokens, heads()}, "[tokens, heads of q], or the shape of q").reshape({tokens, heads(), 1});
  log_decay_ = file_.in_accumulator_type("log_decay", given, dtype());
  visit_dtype<double, float>(log_decay_.dtype(), "log_decay", [&]<class A>() {
    const auto values = log_decay_.view().span<A>();
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (!(values[i] <= 0)) {
        file_.refuse(fmt::format("'log_decay' is {} at token {}; a state decays by its exponential, so it must be 0 or less", values[i],
                                 i / (values.size() / static_cast<std::size_t>(tokens))));
      }
    }
  });
  tensors_.log_decay = log_decay_;
}

void LinearFile::read_rest(bool delta_rule) {
  const std::int64_t tokens = tensors_.q.size(0);
  if (delta_rule) {
    beta_ = file_.in_accumulator_type("beta", file_.need("beta", {tokens, heads()}, "[tokens, heads of q]").reshape({tokens, heads(), 1}),
                                      dtype());
    tensors_.beta = beta_;
  }
  if (file_.contains("grad_out")) {
    tensors_.dout = file_.need("grad_out", tensors_.v.shape(), "the shape of v");
    file_.expect_dtype("grad_out", dtype(), "the type of q, k and v");
  }
}

}  // namespace periplus::launch
