"""Short causal convolutions over the ranks of a group."""

from ._library import ConvolutionSpec, check, library, make
from ._plan import current_stream, fill_documents, rows_of
from ._tensors import accumulator, empty, pointers, set_device, set_type, type_name


class ShortConvolution:
    """A causal convolution per channel and SiLU, as layers of linear attention have them before their heads: of one packed sequence over the
    ranks of a group, which exchange the width - 1 tokens before each of their runs.

    Collective, rows and documents: as Attention. No token reads those of another document.

    width     tokens that one result depends on, its own included
    layout    as of the attention or linear attention beside it
    dtype     f64, f32 or bf16, of everything but the gradient of weights, which is f32 (f64 for f64)
    """

    def __init__(self, group, cu_seqlens, channels, width=4, *, layout="zigzag", dtype="f32", device="cpu", stream=None):
        self.group, self.dtype, self.channels, self.width = group, type_name(dtype), channels, width
        spec = ConvolutionSpec(channels=channels, width=width, layout=layout.encode())
        set_type(spec.dtype, self.dtype)
        set_device(spec.device, device)
        fill_documents(spec, cu_seqlens, current_stream(device, stream))
        self._handle = make(library.periplus_convolution_free, library.periplus_convolution_make, group.pointer, spec)
        self.rows = rows_of(self._handle.pointer, library.periplus_convolution_rows)
        self._units = library.periplus_convolution_units(self._handle.pointer)

    def forward(self, x, weight):
        """(y, halo) of x [rows, channels] and weight [channels, width] or, with a bias as last column, [channels, width + 1]:
        y[n, c] = silu(bias[c] + the sum over w of weight[c, w] x[n - (width - 1) + w, c]). The halo is for backward."""
        y = empty(x, (len(self.rows), self.channels), self.dtype)
        halo = empty(x, (self._units, self.width - 1, self.channels), self.dtype)
        check(library.periplus_convolution_forward(self._handle.pointer, *pointers(x=x, weight=weight, halo=halo, y=y)))
        return y, halo

    def backward(self, x, weight, halo, dy):
        """(dx, dweight); dweight is this rank's part of a sum over ranks."""
        dx, dweight = empty(x, x.shape, self.dtype), empty(x, weight.shape, accumulator(self.dtype))
        arguments = pointers(x=x, weight=weight, halo=halo, dy=dy, dx=dx, dweight=dweight)
        check(library.periplus_convolution_backward(self._handle.pointer, *arguments))
        return dx, dweight
