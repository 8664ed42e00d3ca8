"""The backbone and its options; test_parity.py compares it with other implementations."""

import numpy as np
import torch
from pytest import mark, raises

from conftest import randomise
from convnext_dense import ARCHITECTURES, ConfigError, ConvNeXt
from convnext_dense.architectures import parameter_shapes

# recipes' "dense" column: trunk and norm0-3
DENSE_PARAMETERS = dict(
    atto=3_375_080,
    femto=4_833_456,
    pico=8_533_568,
    nano=14_953_680,
    tiny=27_821_472,
    small=49_456_032,
    base=87_568_256,
    large=196_233_024,
    xlarge=348_151_552,
    xxlarge=843_403_392,
    v2_atto=3_387_960,
    v2_femto=4_848_912,
    v2_pico=8_554_176,
    v2_nano=14_983_920,
    v2_tiny=27_867_840,
    v2_small=49_550_784,
    v2_base=87_694_592,
    v2_large=196_422_528,
    v2_huge=657_477_568,
)


def test_parameter_counts():
    with torch.device('meta'):
        counts = {
            arch: sum(p.numel() for p in ConvNeXt(arch).parameters()) for arch in ARCHITECTURES
        }
    assert counts == DENSE_PARAMETERS


@mark.parametrize('arch', ARCHITECTURES)
def test_shapes_follow_from_the_architecture(arch):
    with torch.device('meta'):
        shapes = {
            name: tuple(value.shape)
            for name, value in ConvNeXt(arch, in_channels=5).state_dict().items()
        }
    assert parameter_shapes(ARCHITECTURES[arch], 5) == shapes


def test_every_norm_has_the_eps_of_its_architecture():
    with torch.device('meta'):
        for arch, expected in (('xxlarge', 1e-5), ('xlarge', 1e-6), ('v2_huge', 1e-6)):
            norms = [m for m in ConvNeXt(arch).modules() if isinstance(m, torch.nn.LayerNorm)]
            assert {norm.eps for norm in norms} == {expected}


def test_arch_as_dict_builds_the_same_network():
    named, spelled = ConvNeXt('atto'), ConvNeXt(dict(depths=[2, 2, 6, 2], dims=[40, 80, 160, 320]))
    spelled.load_state_dict(named.state_dict())
    image = torch.randn(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(named.eval()(image), spelled.eval()(image)))


@mark.parametrize(
    'out_indices, kept',
    [
        ((0, 1, 2, 3), (0, 1, 2, 3)),
        ([3, 1], (1, 3)),
        ((-1,), (3,)),
        ((1,), (1,)),
        ((-2, 0), (0, 2)),
    ],
)
def test_maps_leave_shallow_to_deep_and_every_parameter_gets_a_gradient(out_indices, kept):
    net = ConvNeXt('atto', out_indices=out_indices, drop_path_rate=0.1)
    maps = net(torch.randn(1, 3, 70, 100))
    assert (
        net.out_channels
        == tuple((40, 80, 160, 320)[i] for i in kept)
        == tuple(m.shape[1] for m in maps)
    )
    assert net.out_strides == tuple((4, 8, 16, 32)[i] for i in kept)
    assert [tuple(m.shape[2:]) for m in maps] == [
        ((17, 25), (8, 12), (4, 6), (2, 3))[i] for i in kept
    ]
    sum(m.square().sum() for m in maps).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert {n.split('.')[0] for n, _ in net.named_parameters() if n.startswith('norm')} == {
        f'norm{i}' for i in kept
    }


@mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_maps_are_contiguous_for_mmcv(memory_format):
    net = ConvNeXt('atto', out_norm=False).to(memory_format=memory_format)
    maps = net(torch.randn(2, 3, 64, 64).to(memory_format=memory_format))
    assert all(m.is_contiguous() for m in maps)


def test_without_output_norm_the_maps_are_the_stages_own():
    with_norm = randomise(ConvNeXt('atto'))
    without = ConvNeXt('atto', out_norm=False).eval()
    without.load_state_dict(
        {n: v for n, v in with_norm.state_dict().items() if not n.startswith('norm')}
    )
    image = torch.randn(1, 3, 64, 64)
    for i, (normed, plain) in enumerate(zip(with_norm(image), without(image))):
        assert torch.allclose(normed, getattr(with_norm, f'norm{i}')(plain), atol=1e-5)


@mark.parametrize(
    'frozen, prefixes',
    [
        (-1, ()),
        (0, ('downsample_layers.0',)),
        (1, ('downsample_layers.0', 'stages.0')),
        (2, ('downsample_layers.0', 'stages.0', 'downsample_layers.1', 'stages.1')),
        (4, ('downsample_layers', 'stages')),
    ],
)
def test_frozen_stages(frozen, prefixes):
    net = ConvNeXt('atto', frozen_stages=frozen, drop_path_rate=0.5).train()
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad != name.startswith(prefixes), name
    # Drop path is on, but not in the frozen prefix, whose maps are the same every time.
    image = torch.randn(4, 3, 64, 64)
    first, second = net(image), net(image)
    for i in range(max(frozen, 0)):
        assert torch.equal(first[i], second[i])
    sum(m.square().sum() for m in first).backward()
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())


def test_nothing_of_the_frozen_prefix_is_kept_for_backward():
    kept = []
    net = ConvNeXt('atto', frozen_stages=4, out_norm=False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        maps = net(torch.randn(1, 3, 64, 64, requires_grad=True))
    assert not kept and not any(m.requires_grad for m in maps)


def loss_and_saved_numel(net, image):
    """A loss of all maps, and how many values backward keeps besides the parameters."""
    numel, weights = [], {parameter.data_ptr() for parameter in net.parameters()}

    def keep(tensor):
        numel.append(tensor.numel() * (tensor.data_ptr() not in weights))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = sum(fmap.square().mean() for fmap in net(image))
    return loss, sum(numel)


@mark.parametrize('checkpointing', ['mlp', 'block'])
@mark.parametrize('arch', ['atto', 'v2_atto'])
def test_recomputing_changes_no_gradient(arch, checkpointing):
    plain = randomise(ConvNeXt(arch, drop_path_rate=0.3)).train()
    lean = ConvNeXt(arch, drop_path_rate=0.3, checkpointing=checkpointing).train()
    lean.load_state_dict(plain.state_dict())
    image, kept = torch.randn(2, 3, 64, 64), []
    for net in (plain, lean):
        torch.manual_seed(1)
        loss, numel = loss_and_saved_numel(net, image)
        loss.backward()
        kept.append(numel)
    for (name, a), b in zip(plain.named_parameters(), lean.parameters()):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6), name
    assert kept[1] < 0.7 * kept[0]  # less is kept, or it would not be worth its time


def test_drop_path_follows_the_line_and_keeps_the_mean():
    rates = [
        block.drop_path_rate
        for stage in ConvNeXt('tiny', drop_path_rate=0.4).stages
        for block in stage
    ]
    assert torch.allclose(torch.tensor(rates), torch.arange(18) * 0.4 / 17)
    partial = [
        block.drop_path_rate
        for stage in ConvNeXt('tiny', drop_path_rate=0.4, out_indices=(1,)).stages
        for block in stage
    ]
    assert partial == rates[:6]

    from convnext_dense.layers import drop_path

    dropped = drop_path(torch.ones(4000, 2, 3, 3), 0.25)
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert all(len(sample.unique()) == 1 for sample in dropped[:50])  # whole samples
    assert abs(dropped.mean().item() - 1) < 0.05


@mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='huge'), 'unknown arch'),
        (dict(arch=dict(depths=[1, 1], dims=[8, 8])), 'four'),
        (dict(arch=dict(depth=3)), 'depths and dims'),
        (dict(arch='xxxl'), 'unknown arch'),
        (dict(out_indices=(0, 4)), 'stages 0'),
        (dict(out_indices=3), 'tuple or list'),
        (dict(arch=dict(depths=3, dims=8)), 'four'),
        (dict(out_indices=()), 'stages 0'),
        (dict(out_indices=(3, -1)), 'twice'),
        (dict(drop_path_rate=1.0), 'drop_path'),
        (dict(frozen_stages=5), 'frozen_stages'),
        (dict(output_stride=4), 'output_stride'),
        (dict(checkpointing='all'), 'checkpointing'),
        (dict(arch='v2_atto', layer_scale_init_value=1e-6), 'no layer scale'),
        (dict(arch=dict(depths=[1] * 4, dims=[8] * 4, generation=3)), 'generation'),
        (dict(out_indices=3), 'got 3$'),
        (dict(layer_scale_init_value=0.0), 'V2'),
        (dict(depths=(3, 3, 9, 3)), r'depths: here it is arch=dict\(depths'),
        (dict(dims=(96, 192, 384, 768)), r'dims: here it is arch=dict\(depths'),
        (dict(with_cp=True), "with_cp: here it is checkpointing='mlp' or 'block'"),
        (
            dict(gap_before_final_norm=False),
            'gap_before_final_norm: here it is nothing: leave it out',
        ),
        (dict(out_index=3), 'out_index: expected one of arch, in_channels, .*init_cfg'),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with raises(ConfigError, match=message):
        ConvNeXt(**{'arch': 'atto', **kwargs})


@mark.parametrize('shape', [(1, 1, 64, 64), (3, 64, 64), (1, 3, 64, 31), (1, 64, 64, 3)])
def test_wrong_images_are_refused(shape):
    with raises(ConfigError, match='expected images'):
        ConvNeXt('atto')(torch.randn(shape))


@mark.parametrize(
    'image', [np.zeros((64, 64, 3), np.uint8), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)]
)
def test_images_that_are_no_floating_point_tensors_are_refused(image):
    with raises(ConfigError, match=r'torch.from_numpy\(image\)'):
        ConvNeXt('atto')(image)


def test_other_image_channels():
    assert ConvNeXt('atto', in_channels=4)(torch.randn(1, 4, 32, 32))[-1].shape == (1, 320, 1, 1)
