#pragma once

#include <string>
#include <string_view>

namespace periplus::launch {

/// Both are asked before work starts. Errors: InvalidArgument that names the flag, without its dashes in `flag`, and the path.
/// The path must be a regular file, or a link to one.
void check_input_file(std::string_view flag, const std::string& path);
/// The folder must be there, and the path itself may be a file that is replaced, but no folder, device or pipe.
void check_output_file(std::string_view flag, const std::string& path);

}  // namespace periplus::launch
