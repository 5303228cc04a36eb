// Writes the input of the command-line tests: make_attention_input FILE TOKENS DTYPE [extra tensor name]
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "runtime/safetensors.h"

namespace {

using namespace periplus;

Tensor random_tensor(const Extents& shape, DType dtype, std::mt19937_64& random, const Memory& memory) {
  const Tensor exact(shape, DType::f64, memory);
  std::uniform_real_distribution<double> uniform(-1, 1);
  for (double& value : exact.view().span<double>()) value = uniform(random);
  Tensor tensor(shape, dtype, memory);
  copy(exact, tensor);
  return tensor;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const std::int64_t tokens = std::atoll(argv[2]);
  const DType dtype = dtype_from_string(argv[3]);
  const Memory memory;
  std::mt19937_64 random(11);
  std::vector<std::pair<std::string, Tensor>> tensors;
  const auto add = [&](const std::string& name, const Extents& shape, DType type) {
    tensors.emplace_back(name, random_tensor(shape, type, random, memory));
  };
  add("q", {tokens, 4, 16}, dtype);
  add("k", {tokens, 2, 16}, dtype);
  add("v", {tokens, 2, 8}, dtype);
  add("grad_out", {tokens, 4, 8}, dtype);
  add("grad_lse", {tokens, 4}, accumulator_of(dtype));
  add("sink", {4}, accumulator_of(dtype));
  if (argc > 4) add(argv[4], {tokens}, dtype);
  Tensor borders({4}, DType::i64, memory);
  const std::int64_t values[] = {0, 1, tokens / 3, tokens};
  std::copy(std::begin(values), std::end(values), borders.view().span<std::int64_t>().begin());
  NamedTensors named;
  for (const auto& [name, tensor] : tensors) named.emplace_back(name, tensor);
  named.emplace_back("cu_seqlens", borders);
  write_safetensors(argv[1], named);
  return 0;
}
