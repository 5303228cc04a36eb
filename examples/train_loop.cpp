// A training loop of an own program, with data of its own: train_loop 3 has ranks that are threads, mpirun -n 3 train_loop processes.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "parallel/train/agree.h"
#include "parallel/train/data/batch.h"
#include "parallel/train/engine.h"
#include "runtime/comm/process_ranks.h"
#include "runtime/comm/thread_transport.h"
#include "runtime/error.h"

using namespace periplus;

namespace {

constexpr std::int64_t kSteps = 40;
constexpr DType kType = DType::f64;  // to see that the number of ranks changes nothing; bf16 and f32 are for speed

/// Two layers of softmax attention and one with a state of fixed size.
train::Config configuration() {
  train::Config config;
  config.model = {.layers = 3,
                  .hidden = 64,
                  .heads = 4,
                  .kv_heads = 2,
                  .head_size = 16,
                  .ffn = 128,
                  .vocabulary = 32,
                  .pattern = "SLS",
                  .gate = "retention"};
  config.optimizer.learning_rate = 5e-3;
  config.run.steps = kSteps;
  return config;
}

/// Documents that count on by a stride of their own, packed into one row. No length has to divide by anything.
struct Row {
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> cu_seqlens{0};
};
Row row_of_step(std::int64_t step) {
  Row row;
  for (const std::int64_t length : {97, 201, 54, 3}) {
    const std::int64_t first = 7 * step + length, stride = 1 + (step + length) % 5;
    for (std::int64_t i = 0; i < length; ++i) row.tokens.push_back(static_cast<std::int32_t>((first + i * stride) % 32));
    row.cu_seqlens.push_back(std::ssize(row.tokens));
  }
  return row;
}

/// What one rank does. Mean loss of every step, nats per token, on every rank.
std::vector<double> losses_of_run(const comm::Communicator& communicator) {
  std::vector<double> losses;
  const train::Config config = configuration();
  const Stream stream([communicator] { communicator.progress(); });  // messages move while kernels work
  train::Engine engine(config, kType, Memory(), communicator, stream);
  engine.optimizer().initialise(config.run.seed, stream);
  engine.publish();
  for (std::int64_t step = 1; step <= kSteps; ++step) {
    const Row row = row_of_step(step);
    const train::Share share{
        .group = communicator,
        .batch = train::shard_row(row.tokens, row.cu_seqlens, LayoutKind::zigzag, communicator.size(), communicator.rank())};
    const std::int64_t labels = share.batch->valid_labels;
    double loss = engine.step({&share, 1}, step, labels).loss;
    train::all_reduce(communicator, {&loss, 1}, comm::Reduce::sum);
    losses.push_back(loss / static_cast<double>(labels));
  }
  return losses;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<double> one, many;
  const auto on_all = [&](const comm::Communicator& communicator) {
    const std::vector<double> losses = losses_of_run(communicator);
    if (communicator.rank() == 0) many = losses;
  };
  try {
    comm::run_thread_ranks(1, [&](const comm::Communicator& communicator) { one = losses_of_run(communicator); });
    if (argc > 1) {
      comm::run_thread_ranks(std::atoi(argv[1]), on_all);
    } else {
      comm::run_mpi_rank(on_all);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "train_loop: %s\n", error.what());
    return comm::exit_code_of(error);
  }
  if (many.empty()) return 0;  // a process that is not rank 0
  for (std::size_t i = 9; i < one.size(); i += 10) std::printf("step %zu: loss on one rank %.12f, on all %.12f\n", i + 1, one[i], many[i]);
  const bool equal = std::abs(one.back() - many.back()) < 1e-9, learned = many.back() < one.front() / 2;
  return equal && learned ? 0 : 1;
}
