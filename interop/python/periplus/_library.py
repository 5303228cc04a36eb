"""The C interface (periplus_c.h) as ctypes sees it."""

import ctypes
import os
import pathlib

NAME = "libperiplus_c.so"
_ABI = 2


class InvalidArgument(ValueError):
    """The caller's mistake: a shape, a type, an option, a combination that cannot work."""


class Failure(RuntimeError):
    """Something failed while running: a rank that does not answer, memory, a device."""


class _Device(ctypes.Structure):
    _fields_ = [("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class _DType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_OPTIONS = [("options", ctypes.POINTER(ctypes.c_char_p)), ("option_count", ctypes.c_int64)]
_DOCUMENTS = [("cu_seqlens", ctypes.POINTER(ctypes.c_int64)), ("documents", ctypes.c_int64)]
_PLACE = [("dtype", _DType), ("device", _Device), ("stream", ctypes.c_void_p)]


class AttentionSpec(ctypes.Structure):
    _fields_ = [
        *_DOCUMENTS,
        *((name, ctypes.c_int32) for name in ("q_heads", "kv_heads", "head_size", "value_size")),
        *_PLACE,
        ("sink", ctypes.c_int32),
        ("lse_gradient", ctypes.c_int32),
        *_OPTIONS,
    ]


class LinearSpec(ctypes.Structure):
    _fields_ = [
        *_DOCUMENTS,
        *((name, ctypes.c_int32) for name in ("heads", "head_size", "value_size")),
        *_PLACE,
        ("decay", ctypes.c_int32),
        ("delta_rule", ctypes.c_int32),
        *_OPTIONS,
    ]


class ConvolutionSpec(ctypes.Structure):
    _fields_ = [*_DOCUMENTS, *((name, ctypes.c_int32) for name in ("channels", "width")), *_PLACE, ("layout", ctypes.c_char_p)]


SharePort = ctypes.CFUNCTYPE(ctypes.c_uint16, ctypes.c_uint16, ctypes.c_void_p)


def _find():
    """PERIPLUS_LIBRARY, or where pip or an installation has it, or in a build of the source tree around this file."""
    if os.environ.get("PERIPLUS_LIBRARY"):
        return os.environ["PERIPLUS_LIBRARY"]
    folder = pathlib.Path(__file__).resolve().parent
    root = folder.parents[2]
    for place in (folder / NAME, root / NAME, *(root / "build" / preset / "interop" / NAME for preset in ("cuda", "cpu-release"))):
        if place.exists():
            return str(place)
    raise ImportError(f"{NAME} is neither in {folder} or {root} nor in a build folder there; build it, or set PERIPLUS_LIBRARY to its path")


def _load():
    path = _find()
    library = ctypes.CDLL(path)
    if library.periplus_abi() != _ABI:
        raise ImportError(f"{path} has interface {library.periplus_abi()}, but this package needs {_ABI}; build both from one source")
    handle, out, tensor = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(Tensor)
    rows = ctypes.POINTER(ctypes.c_int64)
    signatures = {
        "periplus_error": (ctypes.c_char_p, []),
        "periplus_version": (ctypes.c_char_p, []),
        "periplus_group_threads": (ctypes.c_int, [ctypes.c_int, ctypes.c_double, out]),
        "periplus_group_mpi": (ctypes.c_int, [ctypes.c_int, ctypes.c_double, out]),
        "periplus_group_tcp": (
            ctypes.c_int,
            [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, SharePort, ctypes.c_void_p, ctypes.c_double, out],
        ),
        "periplus_group_gpu": (ctypes.c_int, [handle, ctypes.c_int, ctypes.c_double, out]),
        "periplus_group_rank": (ctypes.c_int, [handle]),
        "periplus_group_size": (ctypes.c_int, [handle]),
        "periplus_group_abort": (None, [handle, ctypes.c_char_p]),
        "periplus_group_free": (None, [handle]),
        "periplus_share_cores": (None, [ctypes.c_int]),
        "periplus_attention_make": (ctypes.c_int, [handle, ctypes.POINTER(AttentionSpec), out]),
        "periplus_attention_rows": (ctypes.c_int64, [handle, rows]),
        "periplus_attention_forward": (ctypes.c_int, [handle, *[tensor] * 6]),
        "periplus_attention_backward": (ctypes.c_int, [handle, *[tensor] * 12]),
        "periplus_attention_free": (None, [handle]),
        "periplus_linear_make": (ctypes.c_int, [handle, ctypes.POINTER(LinearSpec), out]),
        "periplus_linear_rows": (ctypes.c_int64, [handle, rows]),
        "periplus_linear_forward": (ctypes.c_int, [handle, *[tensor] * 6, out]),
        "periplus_linear_backward": (ctypes.c_int, [handle, handle, *[tensor] * 12]),
        "periplus_states_free": (None, [handle]),
        "periplus_linear_free": (None, [handle]),
        "periplus_convolution_make": (ctypes.c_int, [handle, ctypes.POINTER(ConvolutionSpec), out]),
        "periplus_convolution_rows": (ctypes.c_int64, [handle, rows]),
        "periplus_convolution_units": (ctypes.c_int64, [handle]),
        "periplus_convolution_forward": (ctypes.c_int, [handle, *[tensor] * 4]),
        "periplus_convolution_backward": (ctypes.c_int, [handle, *[tensor] * 6]),
        "periplus_convolution_free": (None, [handle]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


library = _load()


def check(status):
    """Raises what a status tells."""
    if status == 0:
        return
    message = library.periplus_error().decode()
    raise InvalidArgument(message) if status == 2 else Failure(message)


class Handle:
    """Something that the library made and frees."""

    def __init__(self, pointer, free):
        self._pointer, self._free = pointer, free

    def __del__(self):
        if getattr(self, "_pointer", None):
            self._free(self._pointer)

    @property
    def pointer(self):
        return self._pointer


def make(free, function, *arguments):
    """The handle that `function` writes through its last argument."""
    pointer = ctypes.c_void_p()
    check(function(*arguments, ctypes.byref(pointer)))
    return Handle(pointer, free)
