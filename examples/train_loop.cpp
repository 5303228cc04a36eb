// A training loop of an own program, with data of its own: train_loop [ranks]. Ranks are threads here; in a program that mpirun starts,
// MPI_Init_thread comes first, the body runs once with comm::make_mpi_world(), and a rank that fails ends with MPI_Abort, or the others
// wait for it until their deadline.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "parallel/train/agree.h"
#include "parallel/train/data/batch.h"
#include "parallel/train/engine.h"
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

/// Mean loss of every step, nats per token.
std::vector<double> train_on(int ranks) {
  std::vector<double> losses;
  comm::run_thread_ranks(ranks, [&](comm::Communicator communicator) {
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
      if (communicator.rank() == 0) losses.push_back(loss / static_cast<double>(labels));
    }
  });
  return losses;
}

}  // namespace

int main(int argc, char** argv) {
  const int ranks = argc > 1 ? std::atoi(argv[1]) : 4;
  try {
    const std::vector<double> one = train_on(1), many = train_on(ranks);
    for (std::size_t i = 9; i < one.size(); i += 10)
      std::printf("step %zu: loss %.12f on 1 rank, %.12f on %d\n", i + 1, one[i], many[i], ranks);
    const bool equal = std::abs(one.back() - many.back()) < 1e-9, learned = many.back() < one.front() / 2;
    return equal && learned ? 0 : 1;
  } catch (const Error& error) {
    std::fprintf(stderr, "train_loop: %s\n", error.what());
    return 2;
  }
}
