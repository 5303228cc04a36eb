#pragma once

#include <exception>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "interop/c/periplus_c.h"
#include "launch/options.h"
#include "parallel/layout.h"
#include "runtime/comm/communicator.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

struct periplus_group {
  periplus::comm::Communicator communicator;
};

/// What the C functions share.
namespace periplus::interop {

/// Keeps the message for periplus_error() and returns the status. Call it in a handler.
int fail(const std::exception& error) noexcept;

/// Errors: InvalidArgument if one is NULL.
void require_given(std::initializer_list<const void*> pointers);

/// Runs `body` if none of the pointers that it needs is NULL; nothing escapes into C.
template <class Body>
int guarded(std::initializer_list<const void*> needed, const Body& body) noexcept {
  try {
    require_given(needed);
    body();
    return PERIPLUS_OK;
  } catch (const std::exception& error) {
    return fail(error);
  }
}

/// Errors of these four: InvalidArgument that names the tensor or the field.
DType dtype_of(periplus_dtype dtype, const std::string& name);
Device device_of(periplus_device device, const std::string& name);
/// A tensor that is NULL is an empty view.
TensorView view_of(const periplus_tensor* tensor, const std::string& name, Device device);
/// The same as [rows, heads, width]: [rows, heads] gets a last dimension of 1, and [heads] is one row of such.
TensorView heads_view_of(const periplus_tensor* tensor, const std::string& name, Device device);

/// The caller's stream, which the caller keeps alive. On the host none.
Stream stream_of(Device device, void* stream);

/// Flags after each other, as a command line has them; what asks for something else than a value (--help, --config) is refused.
void parse(launch::OptionTable& table, const char** options, std::int64_t count);

/// Borders of documents. Errors: InvalidArgument for a missing pointer.
std::vector<std::int64_t> documents_of(const int64_t* cu_seqlens, std::int64_t documents);

std::int64_t write_rows(const SequenceLayout& layout, int rank, int64_t* rows);

}  // namespace periplus::interop
