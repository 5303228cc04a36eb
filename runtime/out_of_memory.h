#pragma once

namespace periplus {

/// What to say for std::bad_alloc, which says nothing.
inline constexpr const char* kOutOfMemory =
    "memory: the system has no more; use more ranks, fewer tokens or a smaller model, or raise the limit (ulimit -v, a container's)";

}  // namespace periplus
