#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace periplus::launch {

/// The variable an option writes. Its type is the option's kind.
using Target = std::variant<bool*, int*, std::int64_t*, std::uint64_t*, double*, std::string*, std::vector<std::string>*,
                            std::vector<std::int64_t>*, std::vector<double>*>;

/// One row of a command's option table. The value of the variable when the row is added is the default.
struct Option {
  std::string key{};   ///< "table.name" in the TOML file and for --set; empty: flag only.
  std::string flag{};  ///< Without dashes; empty: key only.
  Target target{};
  std::string value{};  ///< What the help page calls the value: "N", "FILE". Not for bool.
  std::string help{};
  double least = -std::numeric_limits<double>::infinity();  ///< Numbers, and elements of lists of numbers.
  double most = std::numeric_limits<double>::infinity();
  std::vector<std::string> choices{};  ///< Text: what is accepted; empty: anything.
};

/// A value as it was written: typed by TOML, or text from the command line that takes the type of its target.
using Scalar = std::variant<bool, std::int64_t, double, std::string>;
struct Given {
  std::vector<Scalar> items;
  bool array = false;
};

/// One text, or the parts of a list (separated by commas, except for lists of text, which may hold commas).
/// Errors: InvalidArgument that starts with `where`.
Given given_from_texts(const Option& option, const std::vector<std::string>& texts, std::string_view where);

/// Writes the option's variable. Errors: InvalidArgument that starts with `where` for a wrong type, range or choice.
void assign(const Option& option, const Given& given, std::string_view where);

bool is_switch(const Option& option) noexcept;
bool is_list(const Option& option) noexcept;

/// The variable's present value as TOML.
std::string to_toml(const Target& target);

}  // namespace periplus::launch
