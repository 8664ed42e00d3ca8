"""Features equal those of independent implementations, through files that these wrote, and back."""

import timm
import torch
import torch.nn.functional as F
import torchvision
from pytest import mark, param
from safetensors.torch import load_file, save_file
from torchvision.models.convnext import CNBlockConfig

from conftest import needs, randomise
from convnext_dense import ARCHITECTURES, ConvNeXt, load_weights
from convnext_dense.weights import convert, save

V1_SIZES = [name for name in ARCHITECTURES if not name.startswith('v2_')]
V2_SIZES = [name for name in ARCHITECTURES if name.startswith('v2_')]


def reduced(arch):
    """The architecture with its widths, and where these are large with few blocks."""
    architecture = ARCHITECTURES[arch]
    return architecture._replace(depths=(1, 1, 2, 1)) if architecture.dims[0] > 96 else architecture


def worst_difference(net, maps, image):
    """Largest difference from ``maps``, relative to the largest value of the same map."""
    with torch.no_grad():
        ours = net(image)
    assert [m.shape for m in ours] == [m.shape for m in maps]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, maps))


def assert_parity(net, features, double_bound=1e-10):
    """``features(dtype, image)`` gives the peer's four maps."""
    for dtype, bound in ((torch.float64, double_bound), (torch.float32, 1e-5)):
        image = torch.randn(2, 3, 96, 64, dtype=dtype)
        with torch.no_grad():
            assert worst_difference(net.to(dtype), features(dtype, image), image) < bound
    return net.float()


def assert_back_again(net, peer, to, path, tail=()):
    """Our weights under the peer's names, through a file, are the peer's to the bit.

    Only the peer's ``tail`` is not there.
    """
    save(convert(net.state_dict(), to), path)
    back = load_file(path) if path.suffix == '.safetensors' else torch.load(path, weights_only=True)
    expected = peer.float().state_dict()
    assert {name for name in expected if not name.startswith(tail)} == set(back)
    assert all(
        torch.equal(value, expected[name]) and value.shape == expected[name].shape
        for name, value in back.items()
    )


def mark_large(arch):
    return param(arch, marks=mark.slow) if arch in ('xxlarge', 'v2_huge') else arch


def timm_maps(peer):
    return lambda dtype, image: peer.to(dtype).forward_intermediates(
        image, indices=4, intermediates_only=True
    )


@mark.parametrize('arch', [mark_large(arch) for arch in V1_SIZES + V2_SIZES])
def test_features_equal_timm(arch, tmp_path):
    architecture = reduced(arch)
    peer = randomise(
        timm.create_model(
            f'convnext{arch}' if arch.startswith('v2') else f'convnext_{arch}',
            num_classes=10,
            depths=architecture.depths,
        )
    )
    save_file(peer.state_dict(), tmp_path / 'timm.safetensors')
    net = ConvNeXt(architecture._asdict(), out_norm=False).eval()
    report = load_weights(net, tmp_path / 'timm.safetensors')
    assert report.layout == 'timm' and set(report.loaded) == set(net.state_dict())
    assert set(report.dropped) == {
        'head.norm.weight',
        'head.norm.bias',
        'head.fc.weight',
        'head.fc.bias',
    }
    assert_parity(net, timm_maps(peer))
    assert_back_again(net, peer, 'timm', tmp_path / 'back.safetensors', tail='head.')


@mark.parametrize('arch', ['tiny', 'small', 'base', 'large'])
def test_features_equal_torchvision(arch, tmp_path):
    depths, dims = reduced(arch)[:2]
    peer = randomise(
        torchvision.models.convnext.ConvNeXt(
            [CNBlockConfig(*row) for row in zip(dims, [*dims[1:], None], depths)], num_classes=10
        )
    )
    torch.save(peer.state_dict(), tmp_path / 'torchvision.pth')
    net = ConvNeXt(dict(depths=depths, dims=dims), out_norm=False).eval()
    report = load_weights(net, tmp_path / 'torchvision.pth')
    assert report.layout == 'torchvision' and all(
        name.startswith('classifier') for name in report.dropped
    )

    def features(dtype, image):
        maps, x = [], image
        for i, layer in enumerate(peer.to(dtype).features):
            x = layer(x)
            maps += [x] if i % 2 else []
        return maps

    assert_parity(net, features)
    assert_back_again(net, peer, 'torchvision', tmp_path / 'back.pth', tail='classifier')


def bound_of_transformers():
    """Versions before 4.50 or so normalise maps in float32, whatever the model's type."""
    from transformers.models.convnext.modeling_convnext import ConvNextLayerNorm

    norm, x = (
        ConvNextLayerNorm(8, data_format='channels_first').double(),
        torch.randn(1, 8, 4, 4).double(),
    )
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (8,), eps=1e-6).permute(0, 3, 1, 2)
    return 1e-10 if (norm(x) - expected).abs().max() < 1e-12 else 1e-6


@mark.parametrize(
    'arch',
    ['tiny', 'small', 'base', 'large', 'xlarge'] + [v2 for v2 in V2_SIZES if v2 != 'v2_small'],
)
def test_features_equal_transformers(arch, tmp_path):
    from transformers import ConvNextBackbone, ConvNextConfig, ConvNextV2Backbone, ConvNextV2Config

    architecture = reduced(arch)
    config, model = ((ConvNextConfig, ConvNextBackbone), (ConvNextV2Config, ConvNextV2Backbone))[
        architecture.generation - 1
    ]
    peer = randomise(
        model(
            config(
                depths=list(architecture.depths),
                hidden_sizes=list(architecture.dims),
                out_indices=[1, 2, 3, 4],
            )
        )
    )
    peer.save_pretrained(tmp_path)
    net = ConvNeXt(architecture._asdict()).eval()
    report = load_weights(net, tmp_path / 'model.safetensors')
    assert (
        report.layout == 'transformers'
        and set(report.loaded) == set(net.state_dict())
        and not report.dropped
    )
    assert_parity(
        net, lambda dtype, image: peer.to(dtype)(image).feature_maps, bound_of_transformers()
    )
    assert_back_again(net, peer, 'transformers', tmp_path / 'back.safetensors')


@mark.parametrize('generation', [1, 2])
def test_classifiers_of_transformers(generation, tmp_path):
    import transformers

    name = 'ConvNext' if generation == 1 else 'ConvNextV2'
    config = getattr(transformers, f'{name}Config')(
        depths=[1, 1, 2, 1], hidden_sizes=[16, 24, 32, 48], num_labels=5
    )
    peer = randomise(getattr(transformers, f'{name}ForImageClassification')(config))
    peer.save_pretrained(tmp_path)
    net = ConvNeXt(
        dict(depths=(1, 1, 2, 1), dims=(16, 24, 32, 48), generation=generation), out_norm=False
    ).eval()
    report = load_weights(net, tmp_path / 'model.safetensors')
    assert {name.split('.')[-2] for name in report.dropped} == {'layernorm', 'classifier'}
    assert_parity(
        net,
        lambda dtype, image: peer.to(dtype)(image, output_hidden_states=True).hidden_states[1:],
        bound_of_transformers(),
    )


@needs('DINOv3 in transformers')
@mark.parametrize('arch', ['tiny', 'small', 'base', 'large'])
def test_features_equal_dinov3(arch, tmp_path):
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    depths, dims = reduced(arch)[:2]
    peer = randomise(
        DINOv3ConvNextModel(DINOv3ConvNextConfig(depths=list(depths), hidden_sizes=list(dims)))
    )
    peer.save_pretrained(tmp_path)
    net = ConvNeXt(dict(depths=depths, dims=dims), out_norm=False).eval()
    report = load_weights(net, tmp_path / 'model.safetensors')
    assert report.layout == 'transformers, DINOv3' and set(report.dropped) == {
        'layer_norm.weight',
        'layer_norm.bias',
    }
    maps = peer(torch.zeros(1, 3, 32, 32), output_hidden_states=True).hidden_states
    assert_parity(
        net,
        lambda dtype, image: peer.to(dtype)(image, output_hidden_states=True).hidden_states[
            len(maps) - 4 :
        ],
    )


def test_official_files_are_what_timm_reads_too(tmp_path):
    """timm has a reader of its own for the official layout: the two readers must agree."""
    from timm.models.convnext import checkpoint_filter_fn

    for generation, name in ((1, 'convnext_atto'), (2, 'convnextv2_atto')):
        source = randomise(ConvNeXt('atto' if generation == 1 else 'v2_atto', out_norm=False))
        official = {
            key: value.reshape(1, 1, 1, -1) if '.grn.' in key else value
            for key, value in source.state_dict().items()
        }
        torch.save(dict(model=official), tmp_path / f'{generation}.pth')
        peer = timm.create_model(name, num_classes=0).eval()
        result = peer.load_state_dict(checkpoint_filter_fn(official, peer), strict=False)
        assert not result.unexpected_keys and all(
            key.startswith('head.norm') for key in result.missing_keys
        )
        net = ConvNeXt('atto' if generation == 1 else 'v2_atto', out_norm=False).eval()
        load_weights(net, tmp_path / f'{generation}.pth')
        assert_parity(net, timm_maps(peer))


def test_clip_trunk_of_open_clip(tmp_path):
    peer = randomise(timm.create_model('convnext_atto', num_classes=0))
    state = {f'visual.trunk.{name}': value for name, value in peer.state_dict().items()}
    state |= {
        'logit_scale': torch.ones(()),
        'transformer.resblocks.0.ln_1.weight': torch.ones(4),
        'visual.head.proj.weight': torch.ones(2, 2),
    }
    save_file(state, tmp_path / 'open_clip.safetensors')
    net = ConvNeXt('atto', out_norm=False).eval()
    report = load_weights(net, tmp_path / 'open_clip.safetensors')
    assert set(report.dropped.values()) == {"classifier's final norm", 'outside of visual.trunk'}
    assert_parity(net, timm_maps(peer))


def test_output_norms_are_layer_norms_of_timms_maps():
    """timm has none: the paper's are put on its maps from outside."""
    net = randomise(ConvNeXt('v2_atto'))
    peer = timm.create_model('convnextv2_atto', num_classes=0).eval()
    peer.load_state_dict(convert(net.state_dict(), 'timm').tensors, strict=False)
    image = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        maps = timm_maps(peer)(torch.float32, image)
        norms = [net.norm0, net.norm1, net.norm2, net.norm3]
        expected = [
            F.layer_norm(m.permute(0, 2, 3, 1), n.weight.shape, n.weight, n.bias, 1e-6).permute(
                0, 3, 1, 2
            )
            for m, n in zip(maps, norms)
        ]
    assert worst_difference(net, expected, image) < 1e-5


@mark.parametrize('output_stride', [8, 16])
@mark.parametrize('arch', ['convnext_tiny', 'convnextv2_tiny'])
def test_dilated_features_equal_timm(arch, output_stride):
    peer = randomise(timm.create_model(arch, num_classes=0, output_stride=output_stride)).double()
    net = (
        ConvNeXt(
            arch.removeprefix('convnext').lstrip('_'), output_stride=output_stride, out_norm=False
        )
        .double()
        .eval()
    )
    load_weights(net, peer.state_dict())
    assert net.out_strides == tuple(min(s, output_stride) for s in (4, 8, 16, 32))
    image = torch.randn(2, 3, 96, 64).double()
    with torch.no_grad():
        assert worst_difference(net, timm_maps(peer)(torch.float64, image), image) < 1e-10


def leave_out_block(net):
    net.stages[2][4] = torch.nn.Identity()


def leave_out_gelu(net):
    net.stages[1][1].act = torch.nn.Identity()


def leave_out_grn(net):
    net.stages[2][3].grn = torch.nn.Identity()


@mark.parametrize(
    'arch, change',
    [
        ('tiny', leave_out_block),
        ('tiny', leave_out_gelu),
        ('v2_tiny', leave_out_block),
        ('v2_tiny', leave_out_gelu),
        ('v2_tiny', leave_out_grn),
    ],
)
def test_parity_notices_what_is_left_out(arch, change):
    peer = randomise(
        timm.create_model(
            f'convnext{arch}' if arch.startswith('v2') else f'convnext_{arch}', num_classes=0
        )
    )
    net = ConvNeXt(arch, out_norm=False).eval()
    load_weights(net, peer.state_dict())
    image = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        maps = timm_maps(peer)(torch.float32, image)
        assert worst_difference(net, maps, image) < 1e-5
        change(net)
        assert worst_difference(net, maps, image) > 1e-3
