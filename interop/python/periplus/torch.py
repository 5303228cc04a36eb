"""The operations as functions that PyTorch differentiates.

    plan = periplus.Attention(periplus.Group.from_torch(), cu_seqlens, heads=32, kv_heads=8, head_size=128, dtype="bf16")
    out = periplus.torch.attention(plan, q, k, v)      # q [rows, 32, 128], this rank's rows
"""

import torch


def _dense(tensor):
    return None if tensor is None else tensor.contiguous()


def _strided(tensor):
    """Any strides but of the last dimension."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, q, k, v, sink):
        q, k, v, sink = *map(_strided, (q, k, v)), _dense(sink)
        out, lse = plan.forward(q, k, v, sink)
        ctx.plan = plan
        ctx.save_for_backward(q, k, v, sink, out, lse)
        if not plan.lse_gradient:
            ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout, dlse):
        q, k, v, sink, out, lse = ctx.saved_tensors
        gradients = ctx.plan.backward(q, k, v, out, lse, _dense(dout), sink=sink, dlse=_dense(dlse) if ctx.plan.lse_gradient else None)
        return None, *gradients, *(() if ctx.plan.sink else (None,))


def attention(plan, q, k, v, sink=None):
    """out of periplus.Attention.forward; (out, lse) if the plan has lse_gradient. The gradient of sink is this rank's part of a sum over
    ranks, as those of all weights that ranks share are."""
    out, lse = _Attention.apply(plan, q, k, v, sink)
    return (out, lse) if plan.lse_gradient else out


class _LinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, q, k, v, log_decay, beta):
        q, k, v, log_decay, beta = *map(_strided, (q, k, v)), *map(_dense, (log_decay, beta))
        out, ctx.states = plan.forward(q, k, v, log_decay, beta)
        ctx.plan = plan
        ctx.save_for_backward(q, k, v, log_decay, beta, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout):
        q, k, v, log_decay, beta, out = ctx.saved_tensors
        return None, *ctx.plan.backward(ctx.states, q, k, v, out, _dense(dout), log_decay=log_decay, beta=beta)


def linear_attention(plan, q, k, v, log_decay=None, beta=None):
    """out of periplus.LinearAttention.forward."""
    return _LinearAttention.apply(plan, q, k, v, log_decay, beta)


class _ShortConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, x, weight):
        x, weight = _dense(x), _dense(weight)
        y, halo = plan.forward(x, weight)
        ctx.plan = plan
        ctx.save_for_backward(x, weight, halo)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight, halo = ctx.saved_tensors
        return None, *ctx.plan.backward(x, weight, halo, _dense(dy))


def short_convolution(plan, x, weight, bias=None):
    """y of periplus.ShortConvolution.forward, of weight [channels, width] and bias [channels]. Their gradients are this rank's part of sums
    over ranks, as those of all weights that ranks share are."""
    return _ShortConvolution.apply(plan, x, weight if bias is None else torch.cat([weight, bias.unsqueeze(1)], 1))
