#pragma once
// What kernels share that work row by row: fixed-chunk parallel loops and instruction-set selection.

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu_level.h"
#include "runtime/device.h"

namespace periplus::kernels {

/// Calls body(begin, end, chunk) for consecutive chunks of `chunk_rows` rows. The chunks depend on `rows` alone, so whatever
/// is reduced per chunk and then in chunk order does not depend on the number of threads.
template <class Body>
void for_row_chunks(std::int64_t rows, std::int64_t chunk_rows, std::int64_t elements_per_row, StreamView stream, const Body& body) {
  constexpr double kFlopPerElement = 80;  // a second thread pays from about 50,000 elements on
  const std::int64_t chunks = (rows + chunk_rows - 1) / chunk_rows;
  const int team = cpu::team_size(chunks, kFlopPerElement * static_cast<double>(rows * elements_per_row));
  cpu::for_each_item_on(team, chunks, stream, [&](std::int64_t chunk, int, const cpu::Progress&) {
    body(chunk * chunk_rows, std::min(rows, (chunk + 1) * chunk_rows), chunk);
  });
}

template <class Body>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]] void run_avx512(const Body& body) {
  body();
}
template <class Body>
[[gnu::target("avx2,fma")]] void run_avx2(const Body& body) {
  body();
}
/// Runs `body` compiled for the instruction set in use. It and all it calls must be always_inline, or they stay baseline
/// code. Not target_clones: its load-time resolvers run before a sanitizer is ready.
template <class Body>
void with_best_instructions(const Body& body) {
  switch (cpu_level()) {
    case CpuLevel::amx:
    case CpuLevel::avx512_bf16:
    case CpuLevel::avx512:
      return run_avx512(body);
    case CpuLevel::avx2:
      return run_avx2(body);
    case CpuLevel::scalar:
    case CpuLevel::emulated_amx:
      return body();
  }
}

}  // namespace periplus::kernels
