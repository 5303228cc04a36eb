#include "kernels/transformer.h"
#include "tests/kernels/values.h"

namespace periplus::kernels {
namespace {

using namespace periplus::test;

std::vector<std::int32_t> random_tokens(std::int64_t count, int vocabulary, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<std::int32_t> token(0, vocabulary - 1);
  std::vector<std::int32_t> tokens;
  for (std::int64_t n = 0; n < count; ++n) tokens.push_back(token(random));
  return tokens;
}

TEST(Embedding, GathersRows) {
  for_each_storage_type([]<class T>() {
    const auto table = random_values<T>(9 * 5, 1);
    const auto tokens = random_tokens(40, 9, 2);
    std::vector<T> x(40 * 5);
    const Stream stream;
    embedding(tokens, view(table, {9, 5}), view(x, {40, 5}), stream);
    for (std::size_t n = 0; n < 40; ++n) {
      for (std::size_t c = 0; c < 5; ++c) {
        ASSERT_EQ(static_cast<double>(x[n * 5 + c]), static_cast<double>(table[static_cast<std::size_t>(tokens[n]) * 5 + c]));
      }
    }
  });
}

template <class T>
std::vector<Sum<T>> scattered(const std::vector<std::int32_t>& tokens, int vocabulary, std::int64_t channels) {
  const auto rows = static_cast<std::int64_t>(tokens.size());
  const auto dx = random_values<T>(rows * channels, 3);
  auto dtable = random_values<Sum<T>>(vocabulary * channels, 4);
  const Stream stream;
  embedding_backward(tokens, view(dx, {rows, channels}), view(dtable, {vocabulary, channels}), stream);
  return dtable;
}

TEST(Embedding, BackwardAddsRowsInTokenOrder) {
  for_each_storage_type([]<class T>() {
    const auto tokens = random_tokens(200, 7, 5);
    const auto result = scattered<T>(tokens, 7, 13);
    const auto dx = random_values<T>(200 * 13, 3);
    auto expected = random_values<Sum<T>>(7 * 13, 4);
    for (std::size_t n = 0; n < tokens.size(); ++n) {
      for (std::size_t c = 0; c < 13; ++c) {
        expected[static_cast<std::size_t>(tokens[n]) * 13 + c] += static_cast<Sum<T>>(dx[n * 13 + c]);
      }
    }
    EXPECT_TRUE(same_bits(result, expected));
  });
}

TEST(Embedding, BitsDoNotDependOnThreads) {
  const auto tokens = random_tokens(400, 11, 6);
  for_each_storage_type([&]<class T>() { expect_same_on_all_teams([&] { return scattered<T>(tokens, 11, 300); }); });
}

TEST(Embedding, AcceptsNoTokens) {
  EXPECT_TRUE(same_bits(scattered<float>({}, 7, 13), random_values<float>(7 * 13, 4)));
  std::vector<float> table(35), x;
  const Stream stream;
  embedding({}, view(table, {7, 5}), view(x, {0, 5}), stream);
}

TEST(Embedding, RefusesTokensOutsideTheVocabularyNamingPositionAndToken) {
  std::vector<float> table(35), x(15);
  const Stream stream;
  for (const std::int32_t bad : {7, -1}) {
    const std::vector<std::int32_t> tokens = {0, 6, bad};
    const std::vector<std::string> parts = {"token " + std::to_string(bad), "position 2", "[0, 7)"};
    expect_refused([&] { embedding(tokens, view(table, {7, 5}), view(x, {3, 5}), stream); }, parts);
    expect_refused([&] { embedding_backward(tokens, view(x, {3, 5}), view(table, {7, 5}), stream); }, parts);
  }
  const std::vector<std::int32_t> tokens = {0, 1};
  expect_refused([&] { embedding(tokens, view(table, {7, 5}), view(x, {3, 5}), stream); }, {"x", "[3, 5]", "[2, 5]"});
}

}  // namespace
}  // namespace periplus::kernels
