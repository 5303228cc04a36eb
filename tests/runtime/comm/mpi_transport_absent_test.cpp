// Built together with runtime/comm/mpi_transport_absent.cpp, whatever the build's MPI option says.
#include <gtest/gtest.h>

#include "runtime/comm/mpi_transport.h"
#include "runtime/error.h"

namespace periplus::comm {
namespace {

TEST(MpiTransportAbsent, SaysHowToGetMpi) {
  EXPECT_THROW(make_mpi_communicator(0), BackendUnavailable);
  try {
    make_mpi_world();
    FAIL() << "a build without MPI made an MPI communicator";
  } catch (const BackendUnavailable& error) {
    const std::string message = error.what();
    for (const char* part : {"PERIPLUS_WITH_MPI", "libopenmpi-dev", "openmpi-bin"})
      EXPECT_NE(message.find(part), std::string::npos) << part;
  }
}

}  // namespace
}  // namespace periplus::comm
