"""Groups of ranks."""

import ctypes
import threading

from ._library import Handle, SharePort, check, library, make

DEADLINE_SECONDS = 120.0


class Group:
    """Ranks 0 .. size - 1 that work on the same sequences; this process, or this thread, is `rank`.

    `deadline_seconds` is the longest wait for other ranks before a call fails with a sentence that says for whom.
    """

    def __init__(self, handle):
        self._handle = handle

    @property
    def rank(self):
        return library.periplus_group_rank(self._handle.pointer)

    @property
    def size(self):
        return library.periplus_group_size(self._handle.pointer)

    @property
    def pointer(self):
        return self._handle.pointer

    def abort(self, reason):
        """Lets the ranks that wait for this one fail with `reason`, where the transport can tell them."""
        library.periplus_group_abort(self.pointer, str(reason).encode())

    def on_gpu(self, device, deadline_seconds=DEADLINE_SECONDS):
        """The same ranks with a GPU each, joined by NCCL. Collective."""
        return Group(make(library.periplus_group_free, library.periplus_group_gpu, self.pointer, device, deadline_seconds))

    @classmethod
    def alone(cls):
        """One rank."""
        return cls.threads(1)[0]

    @classmethod
    def threads(cls, ranks, deadline_seconds=DEADLINE_SECONDS):
        """A group for each of the threads of this process that play ranks; see run_threads."""
        pointers = (ctypes.c_void_p * ranks)()
        check(library.periplus_group_threads(ranks, deadline_seconds, pointers))
        return [cls(Handle(ctypes.c_void_p(pointer), library.periplus_group_free)) for pointer in pointers]

    @classmethod
    def from_mpi4py(cls, communicator, deadline_seconds=DEADLINE_SECONDS):
        """The ranks of a communicator of mpi4py, by MPI. Collective."""
        return cls(make(library.periplus_group_free, library.periplus_group_mpi, communicator.py2f(), deadline_seconds))

    @classmethod
    def from_torch(cls, process_group=None, deadline_seconds=DEADLINE_SECONDS):
        """The ranks of a process group of torch.distributed (None: all), by TCP, which is how tensors on the host travel; `on_gpu` has
        NCCL for those on GPUs. Collective."""
        import torch.distributed as dist

        rank, size = dist.get_rank(process_group), dist.get_world_size(process_group)
        first = dist.get_global_rank(process_group, 0) if process_group is not None else 0

        def from_first(value):
            box = [value]
            dist.broadcast_object_list(box, src=first, group=process_group)
            return box[0]

        host = from_first(_own_address() if rank == 0 else None)
        failure = []

        def share(own, _):
            try:
                return from_first(own)
            except Exception as error:  # must not cross C; raised below
                failure.append(error)
                return 0

        arguments = rank, size, host.encode(), SharePort(share), None, deadline_seconds
        try:
            return cls(make(library.periplus_group_free, library.periplus_group_tcp, *arguments))
        except Exception as error:
            raise error from (failure[0] if failure else None)


def _own_address():
    """How other ranks reach this host: the address from which it reaches the meeting point of torch.distributed."""
    import os
    import socket

    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    try:
        place = socket.getaddrinfo(master, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(place[0], socket.SOCK_DGRAM) as probe:
            probe.connect(place[4])  # sends nothing
            return probe.getsockname()[0]
    except OSError:
        return master


def run_threads(ranks, body, deadline_seconds=DEADLINE_SECONDS):
    """Calls body(group) on `ranks` threads that share the cores, and returns what each returned. If ranks raise, the others stop waiting,
    and what was raised first is raised again. Ranks that share a GPU need a stream each (`with torch.cuda.stream(torch.cuda.Stream())`)."""
    groups = Group.threads(ranks, deadline_seconds)
    results, errors = [None] * ranks, []

    def run(group):
        library.periplus_share_cores(ranks)
        try:
            results[group.rank] = body(group)
        except BaseException as error:
            errors.append(error)
            group.abort(f"rank {group.rank}: {error}")

    threads = [threading.Thread(target=run, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
