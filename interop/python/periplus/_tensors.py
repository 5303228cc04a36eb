"""Tensors of PyTorch and arrays of NumPy, as the C interface takes them: by address, never copied."""

import ctypes

from ._library import InvalidArgument, Tensor

# name: DLPack's type code and bits
_TYPES = {"f64": (2, 64), "f32": (2, 32), "f16": (2, 16), "bf16": (4, 16)}
_NAMES = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "double": "f64", "float": "f32", "half": "f16"}
_TORCH_NAMES = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_HOST, _CUDA = 1, 2


def type_name(dtype):
    """f64, f32, bf16 or f16 of what NumPy, PyTorch or a person calls it."""
    name = str(getattr(dtype, "name", dtype)).split(".")[-1]
    name = _NAMES.get(name, name)
    if name not in _TYPES:
        raise InvalidArgument(f"dtype {dtype} is not supported; use f64, f32, bf16 or f16")
    return name


def accumulator(name):
    """The type of lse, sinks, decays and their gradients."""
    return "f64" if name == "f64" else "f32"


def set_type(place, name):
    place.code, place.bits, place.lanes = *_TYPES[name], 1


def set_device(place, device):
    """cpu, cuda (PyTorch's current one), cuda:1, or PyTorch's device."""
    kind, _, index = str(device).partition(":")
    if kind == "cuda" and not index:
        import torch

        index = str(torch.cuda.current_device())
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise InvalidArgument(f"device {device} is not supported; use cpu, cuda or cuda:N")
    place.device_type, place.device_id = (_HOST, 0) if kind == "cpu" else (_CUDA, int(index or 0))


def is_torch(array):
    return type(array).__module__.partition(".")[0] == "torch" or hasattr(array, "data_ptr")


def describe(name, array):
    """A Tensor to be passed to one call, or None. The array must live until the call returns; on a GPU until its stream has passed."""
    if array is None:
        return None
    if is_torch(array):
        address, strides, device = array.data_ptr(), array.stride(), array.device
    elif hasattr(array, "__array_interface__"):
        address, device, size = array.__array_interface__["data"][0], "cpu", array.itemsize
        if any(stride % size for stride in array.strides):
            raise InvalidArgument(f"{name}: its elements are not at multiples of their size; make a copy")
        if not array.dtype.isnative:
            raise InvalidArgument(f"{name}: its bytes are in the other order; make a copy")
        strides = [stride // size for stride in array.strides]
    else:
        raise InvalidArgument(f"{name} is a {type(array).__name__}; give a tensor of PyTorch or an array of NumPy")
    dims = len(array.shape)
    tensor = Tensor(data=address, ndim=dims, shape=(ctypes.c_int64 * dims)(*array.shape), strides=(ctypes.c_int64 * dims)(*strides))
    set_type(tensor.dtype, type_name(array.dtype))
    set_device(tensor.device, device)
    return tensor


def pointers(**arrays):
    """Descriptions in the order given, as arguments of one call."""
    described = [describe(name, array) for name, array in arrays.items()]
    return [None if tensor is None else ctypes.pointer(tensor) for tensor in described]


def empty(like, shape, name):
    """Uninitialised, of the same library and on the same device as `like`."""
    if is_torch(like):
        import torch

        return torch.empty(tuple(shape), dtype=getattr(torch, _TORCH_NAMES[name]), device=like.device)
    import numpy

    return numpy.empty(tuple(shape), dtype=_TORCH_NAMES[name])
