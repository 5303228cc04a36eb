"""mpirun -n P mpi_rank.py: attention over the ranks of mpi4py's world, and over halves of it, is what one rank computes."""

import sys

try:
    import numpy
    from mpi4py import MPI
except ImportError as error:
    print(f"mpi_test: skipped: {error} (Debian: python3-numpy, python3-mpi4py)")
    sys.exit(0)

import periplus

random = numpy.random.default_rng(0)
q, k, v = (random.standard_normal((33, 2, 8)) for _ in range(3))
out, _ = periplus.Attention(periplus.Group.alone(), [0, 10, 33], 2, 8, dtype="f64").forward(q, k, v)
world = MPI.COMM_WORLD
for communicator in (world, world.Split(world.rank % 2, world.rank)):
    group = periplus.Group.from_mpi4py(communicator)
    assert (group.rank, group.size) == (communicator.rank, communicator.size)
    plan = periplus.Attention(group, [0, 10, 33], 2, 8, dtype="f64")
    mine, _ = plan.forward(q[plan.rows], k[plan.rows], v[plan.rows])
    assert numpy.abs(mine - out[plan.rows]).max() < 1e-13
    assert sum(communicator.allgather(len(plan.rows))) == 33
