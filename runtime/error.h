#pragma once

#include <stdexcept>
#include <string>

namespace periplus {

/// Base of every exception this library throws. A message says who, what, the values, and what to do:
/// `sequence_layout: document 3 has length -1; lengths must be >= 0`.
/// The library throws; `launch` and ranks that are processes (comm/process_ranks.h) end with exit code 2 for bad input, else 3.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The caller's mistake: a shape, dtype, option, file or combination that cannot work.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

/// This build or this machine lacks something; the message names the CMake option or package.
class BackendUnavailable : public Error {
 public:
  using Error::Error;
};

/// Communication failed or did not finish before its deadline; the message names operation, plan step, peer and bytes.
class CommError : public Error {
 public:
  using Error::Error;
};

/// The operating system or a device refused: file I/O, memory, a vendor call.
class DeviceError : public Error {
 public:
  using Error::Error;
};

/// Our bug: an invariant of the library does not hold.
class InternalError : public Error {
 public:
  using Error::Error;
};

}  // namespace periplus
