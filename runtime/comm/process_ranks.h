#pragma once

#include <exception>
#include <functional>
#include <string>

#include "runtime/comm/communicator.h"
#include "runtime/comm/tcp_transport.h"
#include "runtime/comm/transport.h"

namespace periplus::comm {

/// Runs `body` on the rank that this process is: of the job that mpirun, or srun with a process manager, started; one rank if nothing did.
/// MPI is initialised before, unless the program has done that, and finalised if it was initialised here, so a program that calls this more
/// than once has its own MPI_Init_thread. Ends with a barrier.
/// If `body` throws on any rank, the whole job ends and this call does not return: one line on stderr tells rank and message, and the exit
/// code is that of exit_code_of. Without that, other ranks would wait for the one that failed.
/// Errors: BackendUnavailable without MPI in the build or if MPI offers no threads.
void run_mpi_rank(const std::function<void(const Communicator&)>& body, const TransportOptions& options = {});

/// The same without MPI, for processes of any launcher that meet at group.host and group.port.
void run_tcp_rank(const TcpGroup& group, const std::function<void(const Communicator&)>& body, const TransportOptions& options = {});

inline constexpr int kBadInputCode = 2, kFailureCode = 3;
/// kBadInputCode for InvalidArgument, kFailureCode for everything else.
int exit_code_of(const std::exception& error);
/// What to tell a person: the standard library's exceptions say little, and what a message quotes of a file must not control the terminal.
std::string message_of(const std::exception& error);
/// Every rank of a job usually fails alike: rank 0 gets two seconds to say it and end the job, by which this process ends too. A rank that
/// is still alive after that has a problem of its own.
void let_rank_zero_speak(int rank, const Communicator& ranks = {});

}  // namespace periplus::comm
