"""The functions that linear layers of transformers' models call for what passes between tokens, on sequences that are spread over ranks.

transformers (5.16 and newer) has them under the same names in the file of every such model, with the batch first; `context` is a
periplus.transformers.Context. Sequences are packed: a batch of 1.
"""

import torch
from torch.nn import functional

from ._library import InvalidArgument
from .convolution import ShortConvolution
from .linear import LinearAttention
from .torch import linear_attention, short_convolution


def _wide(tensor):
    """The type in which decays and norms are computed."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _for_all_heads(tensor, heads):
    """[rows, groups, size] -> [rows, heads, size]; without a copy if there is one group."""
    return tensor.expand(-1, heads, -1) if tensor.shape[1] == 1 else tensor.repeat_interleave(heads // tensor.shape[1], 1)


def _normalised(tensor):
    """Of length 1 per head; stored as it came, as in the kernels of flash-linear-attention."""
    wide = tensor.to(_wide(tensor))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(tensor.dtype)


def _convolve(context, hidden_states, weight, bias=None, activation=None, **more):
    """[1, channels, rows]: of gated delta networks, Kimi's and Mamba-2."""
    context.check(hidden_states.shape[0], hidden_states.shape[2], more)
    if activation not in ("silu", "swish"):
        raise InvalidArgument(f"a convolution followed by {activation} is not supported; only silu is")
    dtype = torch.float32 if weight.dtype == torch.float16 else weight.dtype
    plan = context.plan(ShortConvolution, channels=weight.shape[0], width=weight.shape[1], dtype=dtype, device=weight.device)
    y = short_convolution(plan, hidden_states.squeeze(0).T.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    return y.T.unsqueeze(0).to(hidden_states.dtype)


def _delta_rule(context, query, key, value, g, beta, use_qk_l2norm_in_kernel=False, **more):
    """query, key [1, rows, groups, size], value [1, rows, heads, size], g [1, rows, heads] or, per channel, [1, rows, heads, size]."""
    context.check(*value.shape[:2], more)
    q, k, v, heads = query.squeeze(0), key.squeeze(0), value.squeeze(0), value.shape[2]
    if use_qk_l2norm_in_kernel:
        q, k = _normalised(q), _normalised(k)
    plan = context.plan(LinearAttention, heads=heads, head_size=q.shape[2], value_size=v.shape[2], dtype=v.dtype, device=v.device,
                        decay="scalar" if g.dim() == 3 else "diagonal", delta_rule=True)
    wide = _wide(v)
    out = linear_attention(plan, _for_all_heads(q, heads), _for_all_heads(k, heads), v, g.squeeze(0).to(wide), beta.squeeze(0).to(wide))
    return out.unsqueeze(0), None  # no state to go on from


def _state_space(context, hidden_states, dt, A, B, C, chunk_size, D=None, dt_bias=None, dt_softplus=False, dt_limit=(0.0, float("inf")),
                 **more):
    """Mamba-2: hidden_states [1, rows, heads, size], dt [1, rows, heads], A and D [heads], B and C [1, rows, groups, states]. Group by
    group: all heads of one read its B and C where they lie, which repeated for each head would be by far the largest tensors of a layer."""
    context.check(*hidden_states.shape[:2], more)
    x, wide = hidden_states.squeeze(0), _wide(hidden_states)
    heads = x.shape[1] // B.shape[2]  # of a group
    step = dt.squeeze(0).to(wide)
    if dt_bias is not None:
        step = step + dt_bias.to(wide)
    if dt_softplus:
        step = functional.softplus(step)
    step = step.clamp(*dt_limit)
    plan = context.plan(LinearAttention, heads=heads, head_size=B.shape[3], value_size=x.shape[2], dtype=x.dtype, device=x.device,
                        decay="scalar", scale=1)
    values, decays = (x.to(wide) * step.unsqueeze(2)).to(x.dtype), A.to(wide) * step
    of_groups = zip(C.squeeze(0).split(1, 1), B.squeeze(0).split(1, 1), values.split(heads, 1), decays.split(heads, 1))
    outs = [linear_attention(plan, _for_all_heads(q, heads), _for_all_heads(k, heads), v, decay) for q, k, v, decay in of_groups]
    out = torch.cat(outs, 1).to(wide)
    if D is not None:
        out = out + D.to(wide).unsqueeze(1) * x.to(wide)
    return out.unsqueeze(0)


def _nothing(*_, **__):
    """No kernel for a whole layer: it then calls the others."""


RECURRENCES = {
    "torch_chunk_gated_delta_rule": _delta_rule,  # Gated DeltaNet: Qwen3-Next, Qwen3.5, OLMo hybrid
    "chunk_kimi_delta_attention": _delta_rule,  # Kimi Linear
    "mamba2_chunk_scan": _state_space,  # Mamba-2, Bamba, Falcon-H1, Granite 4, Nemotron-H, Zamba2
}
FUNCTIONS = {**RECURRENCES, "causal_conv1d_fn": _convolve, "mamba2_split_conv1d_scan_combined": _nothing}
