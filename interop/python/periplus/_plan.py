"""What operations share: how they are told what to do, and the rows of their rank."""

import ctypes


def flags(options):
    """{"window": (64, 0), "full": True} -> ["--window", "64,0", "--full"]"""
    words = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is not False and value is not None:
            text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            words += [flag, text]
    return words


def fill_documents(spec, cu_seqlens, stream):
    borders = [int(border) for border in cu_seqlens]
    spec.cu_seqlens, spec.documents = (ctypes.c_int64 * len(borders))(*borders), len(borders) - 1
    spec.stream = stream


def fill_spec(spec, cu_seqlens, stream, options):
    """Documents, stream and flags of an AttentionSpec or LinearSpec."""
    fill_documents(spec, cu_seqlens, stream)
    words = [word.encode() for word in flags(options)]
    spec.options, spec.option_count = (ctypes.c_char_p * len(words))(*words), len(words)


def current_stream(device, stream):
    """The caller's stream as an address; by default PyTorch's current one on a GPU."""
    if stream is not None or not str(device).startswith("cuda"):
        return stream
    import torch

    return torch.cuda.current_stream(torch.device(device)).cuda_stream


def rows_of(pointer, function):
    rows = (ctypes.c_int64 * function(pointer, None))()
    function(pointer, rows)
    return list(rows)
