"""The backbone against independent implementations, and its options."""
import timm
import torch
import torch.nn.functional as F
from pytest import mark, raises

from convnext_dense import ARCHITECTURES, ConfigError, ConvNeXt

# recipes' "dense" column: trunk and norm0-3
DENSE_PARAMETERS = dict(atto=3_375_080, femto=4_833_456, pico=8_533_568, nano=14_953_680, tiny=27_821_472,
                        small=49_456_032, base=87_568_256, large=196_233_024, xlarge=348_151_552)


def randomise(net):
    """Every parameter at random: with layer scale at 1e-6 the blocks would add nothing and any bug would pass."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith('gamma') or (parameter.dim() == 1 and name.endswith('weight')):
                parameter.uniform_(.5, 1.5)
            elif name.endswith('bias'):
                parameter.normal_(0, .1)
            else:
                parameter.normal_(0, parameter[0].numel()**-.5)
    return net.eval()


def to_timm(state):
    """Our names -> those of timm's classifier trunk."""
    renames = (('downsample_layers.0', 'stem'), ('.dwconv', '.conv_dw'), ('.pwconv', '.mlp.fc'))
    renamed = {}
    for name, value in state.items():
        if name.startswith('norm'):
            continue
        for ours, theirs in renames:
            name = name.replace(ours, theirs)
        if name.startswith('downsample_layers'):
            _, stage, rest = name.split('.', 2)
            name = f'stages.{stage}.downsample.{rest}'
        elif name.startswith('stages'):
            _, stage, rest = name.split('.', 2)
            name = f'stages.{stage}.blocks.{rest}'
        renamed[name] = value
    return renamed


def difference_from_timm(net, dtype, change=lambda net: None, **timm_kwargs):
    """Largest difference of any stage's map, relative to the largest value of that map."""
    net = randomise(net).to(dtype)
    peer = timm.create_model('convnext_tiny', num_classes=0, **timm_kwargs).to(dtype).eval()
    missing, unexpected = peer.load_state_dict(to_timm(net.state_dict()), strict=False)
    assert not unexpected and all(name.startswith('head') for name in missing)
    change(net)
    image = torch.randn(2, 3, 96, 64, dtype=dtype)
    with torch.no_grad():
        ours = net(image)
        theirs = peer.forward_intermediates(image, indices=4, intermediates_only=True)
    worst = 0
    for i, (our_map, their_map) in enumerate(zip(ours, theirs)):
        norm = getattr(net, f'norm{i}')
        expected = F.layer_norm(their_map.permute(0, 2, 3, 1), norm.weight.shape, norm.weight, norm.bias,
                                1e-6).permute(0, 3, 1, 2)
        assert our_map.shape == expected.shape
        worst = max(worst, ((our_map - expected).abs().max() / expected.abs().max()).item())
    return worst


def test_stage_features_equal_timm():
    assert difference_from_timm(ConvNeXt('tiny'), torch.float32) < 1e-5
    assert difference_from_timm(ConvNeXt('tiny'), torch.float64) < 1e-10


def leave_out_block(net):
    net.stages[2][4] = torch.nn.Identity()


def leave_out_gelu(net):
    block = net.stages[1][1]
    block.mlp = lambda x: block.gamma * block.pwconv2(block.pwconv1(block.norm(x)))


@mark.parametrize('change', [leave_out_block, leave_out_gelu])
def test_parity_notices_what_is_left_out(change):
    assert difference_from_timm(ConvNeXt('tiny'), torch.float64, change) > 1e-3


@mark.parametrize('output_stride', [8, 16])
def test_dilated_features_equal_timm(output_stride):
    net = ConvNeXt('tiny', output_stride=output_stride)
    assert net.out_strides == tuple(min(s, output_stride) for s in (4, 8, 16, 32))
    assert difference_from_timm(net, torch.float64, output_stride=output_stride) < 1e-10


def test_parameter_counts():
    with torch.device('meta'):
        counts = {arch: sum(p.numel() for p in ConvNeXt(arch).parameters()) for arch in ARCHITECTURES}
    assert counts == DENSE_PARAMETERS


def test_arch_as_dict_builds_the_same_network():
    named, spelled = ConvNeXt('atto'), ConvNeXt(dict(depths=[2, 2, 6, 2], dims=[40, 80, 160, 320]))
    spelled.load_state_dict(named.state_dict())
    image = torch.randn(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(named.eval()(image), spelled.eval()(image)))


@mark.parametrize('out_indices, kept', [((0, 1, 2, 3), (0, 1, 2, 3)), ([3, 1], (1, 3)), ((-1,), (3,)), ((1,), (1,)),
                                        ((-2, 0), (0, 2))])
def test_maps_leave_shallow_to_deep_and_every_parameter_gets_a_gradient(out_indices, kept):
    net = ConvNeXt('atto', out_indices=out_indices, drop_path_rate=.1)
    maps = net(torch.randn(1, 3, 70, 100))
    assert net.out_channels == tuple((40, 80, 160, 320)[i] for i in kept) == tuple(m.shape[1] for m in maps)
    assert net.out_strides == tuple((4, 8, 16, 32)[i] for i in kept)
    assert [tuple(m.shape[2:]) for m in maps] == [((17, 25), (8, 12), (4, 6), (2, 3))[i] for i in kept]
    sum(m.square().sum() for m in maps).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert {n.split('.')[0] for n, _ in net.named_parameters() if n.startswith('norm')} == {f'norm{i}' for i in kept}


@mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_maps_are_contiguous_for_mmcv(memory_format):
    net = ConvNeXt('atto', out_norm=False).to(memory_format=memory_format)
    maps = net(torch.randn(2, 3, 64, 64).to(memory_format=memory_format))
    assert all(m.is_contiguous() for m in maps)


def test_without_output_norm_the_maps_are_the_stages_own():
    with_norm = randomise(ConvNeXt('atto'))
    without = ConvNeXt('atto', out_norm=False).eval()
    without.load_state_dict({n: v for n, v in with_norm.state_dict().items() if not n.startswith('norm')})
    image = torch.randn(1, 3, 64, 64)
    for i, (normed, plain) in enumerate(zip(with_norm(image), without(image))):
        assert torch.allclose(normed, getattr(with_norm, f'norm{i}')(plain), atol=1e-5)


@mark.parametrize('frozen, prefixes', [(-1, ()), (0, ('downsample_layers.0',)),
                                       (1, ('downsample_layers.0', 'stages.0')),
                                       (2, ('downsample_layers.0', 'stages.0', 'downsample_layers.1', 'stages.1')),
                                       (4, ('downsample_layers', 'stages'))])
def test_frozen_stages(frozen, prefixes):
    net = ConvNeXt('atto', frozen_stages=frozen, drop_path_rate=.5).train()
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad != name.startswith(prefixes), name
    # the frozen prefix is deterministic in training, so its own maps repeat although drop path is on
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


@mark.parametrize('checkpointing', ['mlp', 'block'])
def test_recomputing_changes_no_gradient(checkpointing):
    plain = randomise(ConvNeXt('atto', drop_path_rate=.3)).train()
    lean = ConvNeXt('atto', drop_path_rate=.3, checkpointing=checkpointing).train()
    lean.load_state_dict(plain.state_dict())
    image, kept = torch.randn(2, 3, 64, 64), []
    for net in (plain, lean):
        torch.manual_seed(1)
        size = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: size.append(t.numel()) or t, lambda t: t):
            loss = sum(m.square().mean() for m in net(image))
        loss.backward()
        kept.append(sum(size))
    for (name, a), b in zip(plain.named_parameters(), lean.parameters()):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6), name
    assert kept[1] < .7 * kept[0]  # less is kept, or it would not be worth its time


def test_drop_path_follows_the_line_and_keeps_the_mean():
    rates = [block.drop_path_rate for stage in ConvNeXt('tiny', drop_path_rate=.4).stages for block in stage]
    assert torch.allclose(torch.tensor(rates), torch.arange(18) * .4 / 17)
    partial = [block.drop_path_rate for stage in ConvNeXt('tiny', drop_path_rate=.4, out_indices=(1,)).stages
               for block in stage]
    assert partial == rates[:6]

    from convnext_dense.layers import drop_path
    dropped = drop_path(torch.ones(4000, 2, 3, 3), .25)
    assert set(dropped.unique().tolist()) == {0., torch.tensor(1 / .75).item()}
    assert all(len(sample.unique()) == 1 for sample in dropped[:50])  # whole samples
    assert abs(dropped.mean().item() - 1) < .05


@mark.parametrize('kwargs, message', [
    (dict(arch='huge'), 'unknown arch'), (dict(arch=dict(depths=[1, 1], dims=[8, 8])), 'four'),
    (dict(arch=dict(depth=3)), 'depths and dims'), (dict(out_indices=(0, 4)), 'stages 0'), (dict(out_indices=3), 'tuple or list'),
    (dict(arch=dict(depths=3, dims=8)), 'four'),
    (dict(out_indices=()), 'stages 0'), (dict(out_indices=(3, -1)), 'twice'), (dict(drop_path_rate=1.), 'drop_path'),
    (dict(frozen_stages=5), 'frozen_stages'), (dict(output_stride=4), 'output_stride'),
    (dict(checkpointing='all'), 'checkpointing'),
])
def test_wrong_arguments_are_refused(kwargs, message):
    with raises(ConfigError, match=message):
        ConvNeXt(**{'arch': 'atto', **kwargs})


@mark.parametrize('shape', [(1, 1, 64, 64), (3, 64, 64), (1, 3, 64, 31), (1, 64, 64, 3)])
def test_wrong_images_are_refused(shape):
    with raises(ConfigError, match='expected images'):
        ConvNeXt('atto')(torch.randn(shape))


def test_other_image_channels():
    assert ConvNeXt('atto', in_channels=4)(torch.randn(1, 4, 32, 32))[-1].shape == (1, 320, 1, 1)
