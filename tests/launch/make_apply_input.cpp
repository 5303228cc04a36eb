// Writes the input of the command-line tests: make_apply_input attention|linear_attention|delta_rule FILE TOKENS DTYPE [extra
// tensor name]
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "runtime/safetensors.h"

namespace {

using namespace periplus;

class Input {
 public:
  explicit Input(DType dtype) : dtype_(dtype) {}

  DType storage() const { return dtype_; }
  DType accumulator() const { return accumulator_of(dtype_); }
  void add(const std::string& name, const Extents& shape, DType dtype, double least = -1, double most = 1) {
    const Tensor exact(shape, DType::f64, memory_);
    std::uniform_real_distribution<double> uniform(least, most);
    for (double& value : exact.view().span<double>()) value = uniform(random_);
    tensors_.emplace_back(name, Tensor(shape, dtype, memory_));
    copy(exact, tensors_.back().second);
  }
  void add_documents(std::int64_t tokens) {
    tensors_.emplace_back("cu_seqlens", Tensor({4}, DType::i64, memory_));
    const std::int64_t borders[] = {0, 1, tokens / 3, tokens};
    std::copy(std::begin(borders), std::end(borders), tensors_.back().second.view().span<std::int64_t>().begin());
  }
  void write(const char* path) const {
    NamedTensors named;
    for (const auto& [name, tensor] : tensors_) named.emplace_back(name, tensor);
    write_safetensors(path, named);
  }

 private:
  DType dtype_;
  Memory memory_;
  std::mt19937_64 random_{11};
  std::vector<std::pair<std::string, Tensor>> tensors_;
};

void add_attention(Input& input, std::int64_t tokens) {
  input.add("q", {tokens, 4, 16}, input.storage());
  input.add("k", {tokens, 2, 16}, input.storage());
  input.add("v", {tokens, 2, 8}, input.storage());
  input.add("grad_out", {tokens, 4, 8}, input.storage());
  input.add("grad_lse", {tokens, 4}, input.accumulator());
  input.add("sink", {4}, input.accumulator());
}

void add_linear(Input& input, std::int64_t tokens, bool delta_rule) {
  input.add("q", {tokens, 3, 16}, input.storage());
  input.add("k", {tokens, 3, 16}, input.storage(), -0.25, 0.25);
  input.add("v", {tokens, 3, 8}, input.storage());
  input.add("grad_out", {tokens, 3, 8}, input.storage());
  input.add("log_decay", {tokens, 3}, input.accumulator(), -0.5, 0);
  if (delta_rule) input.add("beta", {tokens, 3}, input.accumulator(), 0, 1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  const std::string operation = argv[1];
  const std::int64_t tokens = std::atoll(argv[3]);
  Input input(dtype_from_string(argv[4]));
  operation == "attention" ? add_attention(input, tokens) : add_linear(input, tokens, operation == "delta_rule");
  if (argc > 5) input.add(argv[5], {tokens}, input.storage());
  input.add_documents(tokens);
  input.write(argv[2]);
  return 0;
}
