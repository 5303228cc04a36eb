"""Softmax attention over the ranks of a group."""

from ._library import AttentionSpec, check, library, make
from ._plan import current_stream, fill_spec, rows_of
from ._tensors import accumulator, empty, pointers, set_device, set_type, type_name


class Attention:
    """Softmax attention of one packed sequence over the ranks of a group: planned once, run as often as wanted.

    Collective: all ranks make the same and call the same methods in the same order. Each has the rows `rows` of the sequence, in that
    order. `cu_seqlens` are the borders of its documents, from 0 to all tokens; no length has to divide by anything.

    causal, window, sink_tokens   what a token sees (False for its whole document; window=64, or (left, right) without causal)
    strategy, layout              how the work is spread: "ring", "ulysses", "usp", ...; "zigzag", "contiguous", ...; "auto" with
                                  machine=, a name or file as `periplus calibrate` writes it
    more options                  flags of `periplus apply attention`, with _ for -: scale=0.1, softcap=50, pieces=2, ...
    sink                          a logit per head takes part in every softmax and is given to forward and backward
    lse_gradient                  the loss also depends on lse
    device, stream                where tensors are: "cpu", "cuda:0"; a cudaStream_t, by default what is PyTorch's current stream now

    Tensors are PyTorch's or NumPy's, of `dtype` f64, f32, bf16 or f16; those of lse and sink are f32, or f64 for f64.
    Errors: InvalidArgument (a ValueError) for what cannot be planned; Failure (a RuntimeError) for a rank that does not answer.
    """

    def __init__(self, group, cu_seqlens, heads, head_size, *, kv_heads=None, value_size=None, dtype="f32", device="cpu", stream=None,
                 causal=True, sink=False, lse_gradient=False, **options):
        self.group, self.dtype = group, type_name(dtype)
        self.heads, self.kv_heads = heads, kv_heads or heads
        self.head_size, self.value_size = head_size, value_size or head_size
        self.sink, self.lse_gradient = bool(sink), bool(lse_gradient)
        spec = AttentionSpec(q_heads=self.heads, kv_heads=self.kv_heads, head_size=self.head_size, value_size=self.value_size,
                             sink=self.sink, lse_gradient=self.lse_gradient)
        set_type(spec.dtype, self.dtype)
        set_device(spec.device, device)
        fill_spec(spec, cu_seqlens, current_stream(device, stream), options if causal else {"full": True, **options})
        self._handle = make(library.periplus_attention_free, library.periplus_attention_make, group.pointer, spec)
        self.rows = rows_of(self._handle.pointer, library.periplus_attention_rows)

    def forward(self, q, k, v, sink=None):
        """(out [rows, heads, value_size], lse [rows, heads]) of q [rows, heads, head_size], k and v [rows, kv_heads, ...] and, with sink,
        sink [heads]. lse is the natural logarithm of the softmax's denominator."""
        out = empty(q, (len(self.rows), self.heads, self.value_size), self.dtype)
        lse = empty(q, (len(self.rows), self.heads), accumulator(self.dtype))
        check(library.periplus_attention_forward(self._handle.pointer, *pointers(q=q, k=k, v=v, sink=sink, out=out, lse=lse)))
        return out, lse

    def backward(self, q, k, v, out, lse, dout, *, sink=None, dlse=None):
        """(dq, dk, dv) of what forward was given and returned and the loss's gradient of out; with sink also dsink, this rank's part of a
        sum over ranks."""
        dq = empty(q, (len(self.rows), self.heads, self.head_size), self.dtype)
        dk = empty(q, (len(self.rows), self.kv_heads, self.head_size), self.dtype)
        dv = empty(q, (len(self.rows), self.kv_heads, self.value_size), self.dtype)
        dsink = empty(q, (self.heads,), accumulator(self.dtype)) if self.sink else None
        arguments = pointers(q=q, k=k, v=v, sink=sink, out=out, lse=lse, dout=dout, dlse=dlse, dq=dq, dk=dk, dv=dv, dsink=dsink)
        check(library.periplus_attention_backward(self._handle.pointer, *arguments))
        return (dq, dk, dv, dsink) if self.sink else (dq, dk, dv)
