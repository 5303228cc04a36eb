"""A model of transformers trained on one long packed row, which ranks share:

    PYTHONPATH=interop/python torchrun --nproc-per-node 2 examples/train_transformers.py [llama | qwen3_next | bamba]

The numbers of one rank and of any number of ranks are the same up to rounding. Needs PyTorch and transformers 4.53 or newer; for
qwen3_next and bamba, whose first layers are linear (gated delta networks and Mamba-2), 5.16 or newer.
"""

import sys

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

import periplus
import periplus.transformers

STEPS, CU_SEQLENS = 20, [0, 300, 311, 1000]
OF_ALL = dict(vocab_size=64, hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=2)
MODELS = {
    "llama": dict(num_hidden_layers=2),
    "qwen3_next": dict(num_hidden_layers=4, head_dim=32, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=32,
                       linear_value_head_dim=32, mlp_only_layers=[0, 1, 2, 3]),
    "bamba": dict(num_hidden_layers=3, attn_layer_indices=[2], mamba_n_heads=8, mamba_d_head=32, mamba_d_state=32),
}


def main(name="llama"):
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the same weights and text on all ranks
    context = periplus.transformers.Context(periplus.Group.from_torch(), strategy="ring", layout="zigzag")
    config = AutoConfig.for_model(name, **OF_ALL, **MODELS[name])
    model = context.spread(AutoModelForCausalLM.from_config(config, attn_implementation=context.name))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = torch.randint(0, 8, (CU_SEQLENS[-1],)).cumsum(0) % 64  # each token says something about the next
    for step in range(STEPS):
        loss = model(**context.shard(tokens, CU_SEQLENS)).loss  # this rank's part of the mean over all labels
        loss.backward()
        for weight in model.parameters():
            dist.all_reduce(weight.grad)
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        dist.all_reduce(total)
        if dist.get_rank() == 0 and step % 5 == 4:
            print(f"step {step + 1}: loss {total:.5f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
