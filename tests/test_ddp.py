"""DDP in two processes with find_unused_parameters=False: all gradients arrive.

For every choice of maps, frozen stages and checkpointing.
"""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from conftest import two_processes
from convnext_dense import ConvNeXt

MAPS = [maps for count in (1, 2, 3, 4) for maps in itertools.combinations(range(4), count)]
CASES = list(itertools.product(MAPS, range(-1, 5), ('none', 'mlp', 'block'), (1, 2)))


def work(rank):
    for out_indices, frozen_stages, checkpointing, generation in CASES:
        torch.manual_seed(0)
        net = ConvNeXt(
            dict(depths=(1, 1, 2, 1), dims=(4, 8, 8, 8), generation=generation),
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            checkpointing=checkpointing,
            drop_path_rate=0.2,
        )
        ddp = DistributedDataParallel(Model(net), find_unused_parameters=False)
        for step in range(
            2
        ):  # the second forward is where DDP complains of parameters left out of the first
            torch.manual_seed(10 * step + rank)
            sum(m.square().mean() for m in ddp(torch.randn(2, 3, 32, 32))).backward()
        case = out_indices, frozen_stages, checkpointing, generation
        trained = [p for p in ddp.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in trained), case
        mine = torch.cat([p.grad.flatten() for p in trained])
        other = mine.clone()
        dist.broadcast(other, 0)
        assert torch.equal(mine, other), case  # both processes have the mean of their gradients


class Model(nn.Module):
    """A backbone and a head of one layer: DDP refuses a model with nothing to train."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Conv2d(backbone.out_channels[-1], 2, 1)

    def forward(self, x):
        *maps, last = self.backbone(x)
        return [*maps, self.head(last)]


@pytest.mark.slow
def test_every_combination_under_ddp(tmp_path):
    assert len(CASES) == 15 * 6 * 3 * 2
    two_processes(work, tmp_path)
