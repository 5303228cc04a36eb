#pragma once

#include <string>

namespace periplus {

/// Names this machine to people; containers have names of their own.
std::string host_name();
/// Equal for two processes only if they run on one machine, in containers or not.
std::string host_id();

}  // namespace periplus
