#include "launch/option_values.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <type_traits>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "launch/suggest.h"
#include "runtime/error.h"

namespace periplus::launch {
namespace {

template <class T>
struct ElementOf {
  using Type = T;
  static constexpr bool kList = false;
};
template <class T>
struct ElementOf<std::vector<T>> {
  using Type = T;
  static constexpr bool kList = true;
};

template <class T>
constexpr std::string_view kind_name() {
  if constexpr (std::is_same_v<T, bool>) return "true or false";
  if constexpr (std::is_integral_v<T>) return "a whole number";
  if constexpr (std::is_floating_point_v<T>) return "a number";
  return "text";
}

std::string to_text(const Scalar& scalar) {
  return std::visit([](const auto& value) { return fmt::format("{}", value); }, scalar);
}

template <class T>
[[noreturn]] void throw_wrong_type(const Scalar& scalar, std::string_view where) {
  throw InvalidArgument(fmt::format("{}: '{}' is not {}", where, to_text(scalar), kind_name<T>()));
}

template <class Number>
bool parse_number(std::string_view text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && end == text.data() + text.size();
}

template <class T>
Scalar scalar_from_text(const std::string& text, std::string_view where) {
  if constexpr (std::is_same_v<T, bool>) {
    if (text == "true") return true;
    if (text == "false") return false;
  } else if constexpr (std::is_integral_v<T>) {
    std::int64_t number = 0;
    if (parse_number(text, number)) return number;
  } else if constexpr (std::is_floating_point_v<T>) {
    double number = 0;
    if (parse_number(text, number)) return number;
  } else {
    return text;
  }
  throw_wrong_type<T>(text, where);
}

void check_range(const Option& option, double number, std::string_view shown, std::string_view where) {
  if (number >= option.least && number <= option.most) return;
  std::string accepted = "it must be a finite number";
  if (std::isfinite(option.least) && std::isfinite(option.most)) {
    accepted = fmt::format("it must lie between {} and {}", option.least, option.most);
  } else if (std::isfinite(option.least)) {
    accepted = fmt::format("it must be at least {}", option.least);
  } else if (std::isfinite(option.most)) {
    accepted = fmt::format("it must be at most {}", option.most);
  }
  throw InvalidArgument(fmt::format("{}: {} is out of range; {}", where, shown, accepted));
}

template <class T>
T convert_number(const Option& option, const Scalar& scalar, std::string_view where) {
  const auto* integer = std::get_if<std::int64_t>(&scalar);
  const auto* real = std::get_if<double>(&scalar);
  if (integer == nullptr && (real == nullptr || std::is_integral_v<T>)) throw_wrong_type<T>(scalar, where);
  const double number = integer != nullptr ? static_cast<double>(*integer) : *real;
  if (!std::isfinite(number)) throw InvalidArgument(fmt::format("{}: {} is out of range; it must be a finite number", where, number));
  check_range(option, number, to_text(scalar), where);
  if constexpr (std::is_integral_v<T>) {
    if (!std::in_range<T>(*integer)) {
      throw InvalidArgument(fmt::format("{}: {} is out of range; it must lie between {} and {}", where, *integer,
                                        std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
    }
    return static_cast<T>(*integer);
  } else {
    return number;
  }
}

template <class T>
T convert(const Option& option, const Scalar& scalar, std::string_view where) {
  if constexpr (std::is_same_v<T, bool> || std::is_same_v<T, std::string>) {
    const T* value = std::get_if<T>(&scalar);
    if (value == nullptr) throw_wrong_type<T>(scalar, where);
    if constexpr (std::is_same_v<T, std::string>) {
      const bool accepted = option.choices.empty() || std::ranges::find(option.choices, *value) != option.choices.end();
      if (!accepted) {
        throw InvalidArgument(fmt::format("{}: '{}' is not one of {}{}", where, *value, fmt::join(option.choices, ", "),
                                          did_you_mean(*value, option.choices)));
      }
    }
    return *value;
  } else {
    return convert_number<T>(option, scalar, where);
  }
}

std::vector<std::string> split_at_commas(const std::string& text) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  for (std::size_t comma = text.find(','); comma != std::string::npos; comma = text.find(',', begin)) {
    parts.push_back(text.substr(begin, comma - begin));
    begin = comma + 1;
  }
  parts.push_back(text.substr(begin));
  return parts;
}

std::string quoted(std::string_view text) {
  std::string result = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      result += fmt::format("\\{}", c);
    } else if (byte < 0x20 || byte == 0x7f) {
      result += fmt::format("\\u{:04x}", byte);
    } else {
      result += c;
    }
  }
  return result + '"';
}

template <class T>
std::string scalar_to_toml(const T& value) {
  if constexpr (std::is_same_v<T, std::string>) return quoted(value);
  if constexpr (std::is_floating_point_v<T>) {
    const std::string text = fmt::format("{}", value);
    return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
  }
  if constexpr (!std::is_same_v<T, std::string> && !std::is_floating_point_v<T>) return fmt::format("{}", value);
}

}  // namespace

Given given_from_texts(const Option& option, const std::vector<std::string>& texts, std::string_view where) {
  return std::visit(
      [&]<class T>(T*) {
        using Element = typename ElementOf<T>::Type;
        Given given;
        given.array = ElementOf<T>::kList;
        for (const std::string& text : texts) {
          const bool split = given.array && !std::is_same_v<Element, std::string>;
          for (const std::string& part : split ? split_at_commas(text) : std::vector<std::string>{text}) {
            given.items.push_back(scalar_from_text<Element>(part, where));
          }
        }
        return given;
      },
      option.target);
}

void assign(const Option& option, const Given& given, std::string_view where) {
  std::visit(
      [&]<class T>(T* variable) {
        if constexpr (ElementOf<T>::kList) {
          T values;
          for (const Scalar& item : given.items) values.push_back(convert<typename ElementOf<T>::Type>(option, item, where));
          *variable = std::move(values);
        } else {
          if (given.array) throw InvalidArgument(fmt::format("{}: a list is not {}", where, kind_name<T>()));
          *variable = convert<T>(option, given.items.at(0), where);
        }
      },
      option.target);
}

bool is_switch(const Option& option) noexcept { return std::holds_alternative<bool*>(option.target); }

bool is_list(const Option& option) noexcept {
  return std::visit([]<class T>(T*) { return ElementOf<T>::kList; }, option.target);
}

std::string to_toml(const Target& target) {
  return std::visit(
      []<class T>(const T* variable) {
        if constexpr (ElementOf<T>::kList) {
          std::vector<std::string> items;
          for (const auto& item : *variable) items.push_back(scalar_to_toml(item));
          return fmt::format("[{}]", fmt::join(items, ", "));
        } else {
          return scalar_to_toml(*variable);
        }
      },
      target);
}

}  // namespace periplus::launch
