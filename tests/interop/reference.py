"""Attention of a packed sequence in NumPy and f64, the plain way."""

import numpy


def visible(cu_seqlens, causal=True, window=None):
    """[tokens, tokens]: which query sees which key. window: of earlier keys, or (earlier, later)."""
    tokens = cu_seqlens[-1]
    document = numpy.searchsorted(cu_seqlens, numpy.arange(tokens), side="right")
    distance = numpy.arange(tokens)[:, None] - numpy.arange(tokens)[None, :]
    seen = document[:, None] == document[None, :]
    if causal:
        seen &= distance >= 0
    if window is not None:
        left, right = window if isinstance(window, tuple) else (window, 0)
        seen &= (distance <= left) & (distance >= -right)
    return seen


def attention(q, k, v, dout, seen, scale, sink=None):
    """out, lse, dq, dk, dv and, with sink [heads], dsink."""
    group = q.shape[1] // k.shape[1]
    keys, values = numpy.repeat(k, group, 1), numpy.repeat(v, group, 1)
    scores = numpy.where(seen, scale * numpy.einsum("qhd,khd->hqk", q, keys), -numpy.inf)
    extra = numpy.full((q.shape[1], 1), -numpy.inf) if sink is None else sink[:, None]
    top = numpy.maximum(scores.max(2), extra)
    lse = top + numpy.log(numpy.exp(scores - top[:, :, None]).sum(2) + numpy.exp(extra - top))
    weights = numpy.exp(scores - lse[:, :, None])
    out = numpy.einsum("hqk,khe->qhe", weights, values)
    delta = numpy.einsum("qhe,qhe->hq", dout, out)
    dscores = weights * (numpy.einsum("qhe,khe->hqk", dout, values) - delta[:, :, None])
    dq = scale * numpy.einsum("hqk,khd->qhd", dscores, keys)
    dkeys, dvalues = scale * numpy.einsum("hqk,qhd->khd", dscores, q), numpy.einsum("hqk,qhe->khe", weights, dout)
    fold = lambda gradient: gradient.reshape(gradient.shape[0], -1, group, gradient.shape[2]).sum(2)
    results = [out, lse.T, dq, fold(dkeys), fold(dvalues)]
    if sink is not None:
        results.append(-(numpy.exp(extra - lse) * delta).sum(1))
    return results


def short_convolution(x, weight, cu_seqlens, width):
    """silu(convolution + bias), token by token; weight has the bias as last column or not."""
    sums = numpy.zeros(x.shape) + (weight[:, width] if weight.shape[1] > width else 0)
    for first, last in zip(cu_seqlens[:-1], cu_seqlens[1:]):
        for token in range(first, last):
            for ago in range(min(width, token - first + 1)):
                sums[token] += weight[:, width - 1 - ago] * x[token - ago]
    return sums / (1 + numpy.exp(-sums))


def linear_attention(q, k, v, cu_seqlens, scale, log_decay=None, beta=None):
    """out, token by token: the state decays, beta removes what it holds of the key, the new value goes in, the query reads."""
    out = numpy.zeros(v.shape)
    for first, last in zip(cu_seqlens[:-1], cu_seqlens[1:]):
        state = numpy.zeros((q.shape[1], q.shape[2], v.shape[2]))
        for t in range(first, last):
            if log_decay is not None:
                decay = numpy.exp(log_decay[t])
                state = state * (decay[:, None, None] if decay.ndim == 1 else decay[:, :, None])
            value = v[t]
            if beta is not None:
                value = beta[t][:, None] * (value - numpy.einsum("hd,hde->he", k[t], state))
            state = state + numpy.einsum("hd,he->hde", k[t], value)
            out[t] = scale * numpy.einsum("hd,hde->he", q[t], state)
    return out
