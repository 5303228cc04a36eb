"""Causal attention through periplus.torch beside PyTorch's scaled_dot_product_attention, in turn in one process on one core:

    PYTHONPATH=interop/python OMP_NUM_THREADS=1 python3 examples/attention_beside_torch.py
"""

import statistics
import time

import torch

import periplus
import periplus.torch

HEADS, HEAD_SIZE, SAMPLES = 8, 128, 5


def seconds(function, q, k, v, dout):
    """Of the thread, forward and backward."""
    begin = time.thread_time()
    out = function(q, k, v)
    middle = time.thread_time()
    torch.autograd.grad(out, (q, k, v), dout)
    return middle - begin, time.thread_time() - middle


def of_torch(*tensors):
    heads_first = (tensor.transpose(0, 1).unsqueeze(0) for tensor in tensors)
    return torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True).squeeze(0).transpose(0, 1)


def main():
    torch.set_num_threads(1)
    print(f"PyTorch {torch.__version__}, {HEADS} heads of {HEAD_SIZE}; medians of {SAMPLES}, seconds of one core")
    for dtype in (torch.bfloat16, torch.float32):
        for tokens in (2048, 8192):
            q, k, v, dout = (torch.randn(tokens, HEADS, HEAD_SIZE).to(dtype) for _ in range(4))
            operands = [tensor.requires_grad_() for tensor in (q, k, v)]
            plan = periplus.Attention(periplus.Group.alone(), [0, tokens], HEADS, HEAD_SIZE, dtype=dtype)
            ours = lambda *tensors: periplus.torch.attention(plan, *tensors)
            difference = (ours(*operands).double() - of_torch(*operands).double()).abs().max().item()
            pairs = [(seconds(ours, *operands, dout), seconds(of_torch, *operands, dout)) for _ in range(SAMPLES)]
            for index, name in enumerate(("forward", "backward")):
                mine, torchs = (statistics.median(pair[side][index] for pair in pairs) for side in (0, 1))
                print(f"{str(dtype)[6:]:9} {tokens:5} tokens {name:9} {mine:.3f}, PyTorch {torchs:.3f}: {torchs / mine:.2f} times", flush=True)
            print(f"{'':9} largest difference of out {difference:.2g}")


if __name__ == "__main__":
    main()
