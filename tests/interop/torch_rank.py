"""A process of torch_test.py: attention over all ranks of torch.distributed, and over the last two, is what one rank computes."""

import torch
import torch.distributed as dist

import periplus

dist.init_process_group("gloo")
torch.set_num_threads(1)
torch.manual_seed(0)
q, k, v = (torch.randn(33, 2, 8, dtype=torch.float64) for _ in range(3))
out, lse = periplus.Attention(periplus.Group.alone(), [0, 10, 33], 2, 8, dtype="f64").forward(q, k, v)


def check(group):
    plan = periplus.Attention(group, [0, 10, 33], 2, 8, dtype="f64")
    mine, _ = plan.forward(*(tensor[plan.rows] for tensor in (q, k, v)))
    torch.testing.assert_close(mine, out[plan.rows], rtol=0, atol=1e-13)
    return group


keep = check(periplus.Group.from_torch())
assert (keep.rank, keep.size) == (dist.get_rank(), 3)
pair = dist.new_group([1, 2])
if dist.get_rank() > 0:
    assert check(periplus.Group.from_torch(pair)).size == 2
dist.barrier()
print("equal")
