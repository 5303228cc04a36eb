"""Linear attention and the delta rule over the ranks of a group."""

from ._library import Handle, InvalidArgument, LinearSpec, check, library, make
from ._plan import current_stream, fill_spec, rows_of
from ._tensors import accumulator, empty, pointers, set_device, set_type, type_name

import ctypes

_DECAYS = {"none": 0, "scalar": 1, "diagonal": 2}


class LinearAttention:
    """Linear attention of one packed sequence over the ranks of a group, or the (gated) delta rule: planned once, run as often as wanted.

    Collective, rows and documents: as Attention. States end with their document.

    decay        "none", "scalar" (log_decay [rows, heads]) or "diagonal" ([rows, heads, head_size]); natural logarithms, at most 0
    delta_rule   beta [rows, heads] is given
    options      flags of `periplus apply linear_attention` or `delta_rule`: strategy="lasp2", layout="zigzag", scale=1,
                 bidirectional=True, normalise=True, ...

    log_decay, beta and their gradients are f32, or f64 for f64.
    """

    def __init__(self, group, cu_seqlens, heads, head_size, *, value_size=None, dtype="f32", device="cpu", stream=None, decay="none",
                 delta_rule=False, **options):
        if decay not in _DECAYS:
            raise InvalidArgument(f"decay {decay!r} is none of {', '.join(_DECAYS)}")
        self.group, self.dtype, self.decay, self.delta_rule = group, type_name(dtype), decay, bool(delta_rule)
        self.heads, self.head_size, self.value_size = heads, head_size, value_size or head_size
        spec = LinearSpec(heads=heads, head_size=head_size, value_size=self.value_size, decay=_DECAYS[decay], delta_rule=self.delta_rule)
        set_type(spec.dtype, self.dtype)
        set_device(spec.device, device)
        fill_spec(spec, cu_seqlens, current_stream(device, stream), options)
        self._handle = make(library.periplus_linear_free, library.periplus_linear_make, group.pointer, spec)
        self.rows = rows_of(self._handle.pointer, library.periplus_linear_rows)

    def forward(self, q, k, v, log_decay=None, beta=None):
        """(out [rows, heads, value_size], states) of q, k [rows, heads, head_size] and v [rows, heads, value_size], which may be strided
        before their last dimension, also by 0, as where all heads have the same keys; the states are for backward."""
        out = empty(q, (len(self.rows), self.heads, self.value_size), self.dtype)
        pointer = ctypes.c_void_p()
        arguments = pointers(q=q, k=k, v=v, log_decay=log_decay, beta=beta, out=out)
        check(library.periplus_linear_forward(self._handle.pointer, *arguments, ctypes.byref(pointer)))
        return out, Handle(pointer, library.periplus_states_free)

    def backward(self, states, q, k, v, out, dout, *, log_decay=None, beta=None):
        """(dq, dk, dv, dlog_decay, dbeta), None where there is no such input."""
        like = {"q": q, "k": k, "v": v}
        dq, dk, dv = (empty(q, array.shape, self.dtype) for array in like.values())
        dlog_decay, dbeta = (None if array is None else empty(q, array.shape, accumulator(self.dtype)) for array in (log_decay, beta))
        arguments = pointers(**like, log_decay=log_decay, beta=beta, out=out, dout=dout, dq=dq, dk=dk, dv=dv, dlog_decay=dlog_decay,
                             dbeta=dbeta)
        check(library.periplus_linear_backward(self._handle.pointer, states.pointer, *arguments))
        return dq, dk, dv, dlog_decay, dbeta
