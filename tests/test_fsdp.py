"""Two processes under FSDP: rates and weight decay are those of the model that is not wrapped."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from mmengine.model import MMFullyShardedDataParallel
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from conftest import two_processes
from convnext_dense import ConfigError, ConvNeXt
from convnext_dense.layers import Block

SHARDED = dict(
    device_id=torch.device('cpu'),
    use_orig_params=True,
    auto_wrap_policy=partial(transformer_auto_wrap_policy, transformer_layer_cls={Block}),
)


class Head(nn.Module):
    """What neither the type of a module nor an ending of a name tells: 1-D, and not called bias."""

    def __init__(self, channels):
        super().__init__()
        self.temperature = nn.Parameter(torch.empty(channels))
        self.queries = nn.Embedding(5, channels)
        self.attention = nn.MultiheadAttention(channels, 4)


class Model(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.backbone, self.head = ConvNeXt(arch), Head(32)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)  # none is 0, at which a decay would not show


def build(model):
    """Optimiser, and parameter name without what wrappers add -> learning rate and weight decay."""
    optimizer = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.5),
            constructor='convnext_dense.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(decay_rate=0.8, decay_type='layer_wise'),
        ),
    ).optimizer
    return optimizer, {
        plain(name): (group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
        for name in group['param_names']
    }


def plain(name):
    return name.replace('_fsdp_wrapped_module.', '').replace('_checkpoint_wrapped_module.', '')


def root(model):
    return FullyShardedDataParallel(model, **SHARDED)


def mmengines_root(model):
    return MMFullyShardedDataParallel(model, **SHARDED)


def children_only(model):
    model.backbone, model.head = root(model.backbone), root(model.head)
    return model


def not_sharded(model):
    return MMFullyShardedDataParallel(model, sharding_strategy='NO_SHARD', **SHARDED)


def checkpointed(model):
    model = root(model)
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=checkpoint_wrapper,
        check_fn=lambda module: isinstance(module, Block),
    )
    return model


def every_rate_and_decay():
    for arch in ('atto', 'v2_atto'):
        expected = build(Model(arch))[1]
        for wrap in (root, mmengines_root, children_only, not_sharded, checkpointed):
            case = arch, wrap.__name__
            model = wrap(Model(arch))
            optimizer, rates = build(model)
            differ = sum(rates.get(name) != expected[name] for name in expected)
            assert rates.keys() == expected.keys() and not differ, (*case, differ, len(expected))
            # The optimiser holds the shards: without a gradient its step is the decay alone.
            shards = {plain(name): shard for name, shard in model.named_parameters()}
            before = {name: shard.detach().clone() for name, shard in shards.items()}
            for shard in shards.values():
                shard.grad = torch.zeros_like(shard)
            optimizer.step()
            for name, (lr, decay) in expected.items():
                assert torch.allclose(shards[name], before[name] * (1 - lr * decay)), (*case, name)


def hidden_shapes_are_refused():
    flat = dict(SHARDED, use_orig_params=False)
    nested, child = Model('atto'), Model('atto')
    nested.backbone = FullyShardedDataParallel(nested.backbone, **flat)
    child.backbone.stages[2][4] = FullyShardedDataParallel(child.backbone.stages[2][4], **flat)
    nested = FullyShardedDataParallel(nested, device_id=torch.device('cpu'), use_orig_params=True)
    inner = root(Model('atto')).module  # has lost what its root knows
    for model in (FullyShardedDataParallel(Model('atto'), **flat), nested, child, inner):
        with pytest.raises(ConfigError, match='use_orig_params=True'):
            build(model)


def fsdp2():
    """Where torch has it."""
    fully_shard = getattr(dist.fsdp, 'fully_shard', None)
    if not fully_shard:
        return
    model = Model('v2_atto')
    expected = build(model)[1]
    mesh = dist.device_mesh.init_device_mesh('cpu', (2,))
    for module in (*(m for m in model.modules() if isinstance(m, Block)), model):
        fully_shard(module, mesh=mesh)
    assert all(hasattr(parameter, 'full_tensor') for parameter in model.parameters())
    assert build(model)[1] == expected


def work(rank):
    for check in (every_rate_and_decay, hidden_shapes_are_refused, fsdp2):
        check()


def test_groups_under_fsdp(tmp_path):
    two_processes(work, tmp_path)
