"""Periplus: attention on sequences that are too long for one device, over ranks.

Group says who works together: run_threads in one process, Group.from_mpi4py under mpirun, Group.from_torch under torchrun. Attention,
LinearAttention and ShortConvolution are planned once for a packed sequence and run forward and backward on tensors of PyTorch or NumPy;
periplus.torch has them as functions that PyTorch differentiates, periplus.transformers as the layers of models of transformers.
"""

from ._library import Failure, InvalidArgument, library
from .attention import Attention
from .convolution import ShortConvolution
from .groups import Group, run_threads
from .linear import LinearAttention

__version__ = library.periplus_version().decode()
__all__ = ["Attention", "Failure", "Group", "InvalidArgument", "LinearAttention", "ShortConvolution", "run_threads"]
