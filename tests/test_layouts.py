"""Which tensors of each library's files are loaded, dropped and left.

Names and shapes are written out as those files have them, for every size, on the meta device.
"""

import torch
from pytest import mark

from convnext_dense import ARCHITECTURES, ConvNeXt
from convnext_dense.weights.loading import match

V1, V2 = ([name for name, row in ARCHITECTURES.items() if row.generation == g] for g in (1, 2))
OFFICIAL_V1 = ['tiny', 'small', 'base', 'large', 'xlarge']


def pair(name, *shape):
    return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def trunk(
    arch,
    stem,
    downsample,
    block,
    dwconv,
    norm,
    pwconv,
    layer_scale=None,
    grn=None,
    conv_mlp=False,
    layer_scale_dims=1,
    grn_dims=1,
):
    """Names and shapes of a backbone of one library.

    ``stem``, ``downsample`` and ``block`` are templates of names; the rest are names inside a
    block. ``conv_mlp``: the linear layers are stored as 1x1 convolutions.
    """
    depths, dims, generation, _ = ARCHITECTURES[arch]
    shapes = pair(stem[0], dims[0], 3, 4, 4) | pair(stem[1], dims[0])
    kernel = (1, 1) if conv_mlp else ()
    for i, (depth, c) in enumerate(zip(depths, dims)):
        if i:
            shapes |= pair(downsample.format(i=i, n=0, even=2 * i), dims[i - 1])
            shapes |= pair(downsample.format(i=i, n=1, even=2 * i), c, dims[i - 1], 2, 2)
        for j in range(depth):
            b = block.format(i=i, j=j, odd=2 * i + 1)
            shapes |= pair(f'{b}.{dwconv}', c, 1, 7, 7) | pair(f'{b}.{norm}', c)
            shapes |= pair(f'{b}.{pwconv[0]}', 4 * c, c, *kernel)
            shapes |= pair(f'{b}.{pwconv[1]}', c, 4 * c, *kernel)
            if generation == 1:
                shapes[f'{b}.{layer_scale}'] = (c, 1, 1)[:layer_scale_dims]
            else:
                shapes |= {f'{b}.{name}': (1, 1, 1, 4 * c)[-grn_dims:] for name in grn}
    return shapes


def official(arch, grn_dims=4):
    return trunk(
        arch,
        ('downsample_layers.0.0', 'downsample_layers.0.1'),
        'downsample_layers.{i}.{n}',
        'stages.{i}.{j}',
        'dwconv',
        'norm',
        ('pwconv1', 'pwconv2'),
        'gamma',
        ('grn.gamma', 'grn.beta'),
        grn_dims=grn_dims,
    )


def timm(arch):
    """It stores the linear layers of the smallest as 1x1 convolutions."""
    return trunk(
        arch,
        ('stem.0', 'stem.1'),
        'stages.{i}.downsample.{n}',
        'stages.{i}.blocks.{j}',
        'conv_dw',
        'norm',
        ('mlp.fc1', 'mlp.fc2'),
        'gamma',
        ('mlp.grn.weight', 'mlp.grn.bias'),
        conv_mlp=arch.removeprefix('v2_') in ('atto', 'femto', 'pico', 'nano'),
    )


def torchvision(arch):
    return trunk(
        arch,
        ('features.0.0', 'features.0.1'),
        'features.{even}.{n}',
        'features.{odd}.{j}',
        'block.0',
        'block.2',
        ('block.3', 'block.5'),
        'layer_scale',
        layer_scale_dims=3,
    )


def transformers(arch):
    return trunk(
        arch,
        ('embeddings.patch_embeddings', 'embeddings.layernorm'),
        'encoder.stages.{i}.downsampling_layer.{n}',
        'encoder.stages.{i}.layers.{j}',
        'dwconv',
        'layernorm',
        ('pwconv1', 'pwconv2'),
        'layer_scale_parameter',
        ('grn.weight', 'grn.bias'),
        grn_dims=4,
    )


def transformers_dinov3(arch):
    return trunk(
        arch,
        ('stages.0.downsample_layers.0', 'stages.0.downsample_layers.1'),
        'stages.{i}.downsample_layers.{n}',
        'stages.{i}.layers.{j}',
        'depthwise_conv',
        'layer_norm',
        ('pointwise_conv1', 'pointwise_conv2'),
        'gamma',
    )


def mmpretrain(arch, conv_mlp=False):
    return trunk(
        arch,
        ('downsample_layers.0.0', 'downsample_layers.0.1'),
        'downsample_layers.{i}.{n}',
        'stages.{i}.{j}',
        'depthwise_conv',
        'norm',
        ('pointwise_conv1', 'pointwise_conv2'),
        'gamma',
        ('grn.gamma', 'grn.beta'),
        conv_mlp=conv_mlp,
    )


def sparse(arch):
    """MinkowskiEngine's modules, as main_pretrain.py of V2 writes them while it runs."""
    shapes = {}
    for name, shape in official(arch, grn_dims=2).items():
        owner, _, leaf = name.rpartition('.')
        if owner.startswith('downsample_layers.0'):
            pass
        elif owner.endswith(('.norm', '.0')):
            owner += '.ln'
        elif owner.endswith(('pwconv1', 'pwconv2')):
            owner += '.linear'
        elif leaf == 'weight':
            leaf, k = 'kernel', shape[2] ** 2
            shape = (k, shape[0]) if owner.endswith('dwconv') else (k, shape[1], shape[0])
        elif leaf == 'bias':
            shape = (1, *shape)
        shapes[f'{owner}.{leaf}'] = shape
    return shapes


def prefixed(prefix, shapes):
    return {prefix + name: shape for name, shape in shapes.items()}


def width(arch, stage=3):
    return ARCHITECTURES[arch].dims[stage]


def norms(arch, template='norm{i}', offset=0):
    shapes = {}
    for i in range(4):
        shapes |= pair(template.format(i=i + offset), width(arch, i))
    return shapes


def classifier(arch, norm, head, classes=1000):
    return pair(norm, width(arch)) | pair(head, classes, width(arch))


def conv(name, *shape):
    return {f'{name}.conv.weight': shape, f'{name}.conv.bias': shape[:1]}


def conv_bn(name, *shape):
    c = shape[:1]
    return {
        f'{name}.conv.weight': shape,
        f'{name}.bn.weight': c,
        f'{name}.bn.bias': c,
        f'{name}.bn.running_mean': c,
        f'{name}.bn.running_var': c,
        f'{name}.bn.num_batches_tracked': (),
    }


def detector(arch, cascade):
    shapes = pair('rpn_head.rpn_conv', 256, 256, 3, 3) | pair('rpn_head.rpn_cls', 3, 256, 1, 1)
    shapes |= pair('rpn_head.rpn_reg', 12, 256, 1, 1)
    for i in range(4):
        shapes |= conv(f'neck.lateral_convs.{i}', 256, width(arch, i), 1, 1) | conv(
            f'neck.fpn_convs.{i}', 256, 256, 3, 3
        )
    for stage in ('.0', '.1', '.2') if cascade else ('',):
        box, mask = f'roi_head.bbox_head{stage}', f'roi_head.mask_head{stage}'
        for i in range(4):
            shapes |= conv(f'{mask}.convs.{i}', 256, 256, 3, 3)
            shapes |= conv_bn(f'{box}.shared_convs.{i}', 256, 256, 3, 3) if cascade else {}
        shapes |= pair(f'{mask}.upsample', 256, 256, 2, 2) | pair(
            f'{mask}.conv_logits', 80, 256, 1, 1
        )
        shapes |= (
            pair(f'{box}.shared_fcs.0', 1024, 256 * 49)
            | pair(f'{box}.fc_cls', 81, 1024)
            | pair(f'{box}.fc_reg', 320, 1024)
        )
        shapes |= {} if cascade else pair(f'{box}.shared_fcs.1', 1024, 1024)
    return shapes


def segmentor(arch):
    shapes = pair('decode_head.conv_seg', 150, 512, 1, 1) | pair(
        'auxiliary_head.conv_seg', 150, 256, 1, 1
    )
    shapes |= conv_bn('auxiliary_head.convs.0', 256, width(arch, 2), 3, 3)
    for i in range(4):
        shapes |= conv_bn(f'decode_head.psp_modules.{i}.1', 512, width(arch), 1, 1)
    for i in range(3):
        shapes |= conv_bn(f'decode_head.lateral_convs.{i}', 512, width(arch, i), 1, 1)
        shapes |= conv_bn(f'decode_head.fpn_convs.{i}', 512, 512, 3, 3)
    shapes |= conv_bn('decode_head.bottleneck', 512, width(arch) + 2048, 3, 3)
    return shapes | conv_bn('decode_head.fpn_bottleneck', 512, 2048, 3, 3)


# file -> (sizes, its names and shapes, layout that the report names, does it bring norm0-3)
FILES = {
    'official V1 classifier': (
        OFFICIAL_V1,
        lambda a: official(a) | classifier(a, 'norm', 'head'),
        'official',
        False,
    ),
    'official V1 classifier, 22k': (
        OFFICIAL_V1,
        lambda a: official(a) | classifier(a, 'norm', 'head', 21841),
        'official',
        False,
    ),
    'official V2 classifier': (
        V2,
        lambda a: official(a) | classifier(a, 'norm', 'head'),
        'official',
        False,
    ),
    'FCMAE dense': (V2, lambda a: official(a, grn_dims=2), 'official', False),
    'FCMAE sparse': (
        V2,
        lambda a: (
            prefixed('encoder.', sparse(a))
            | pair('proj', 512, width(a), 1, 1)
            | pair('pred', 3072, 512, 1, 1)
            | {'mask_token': (1, 512, 1, 1)}
            | pair('decoder.0.dwconv', 512, 1, 7, 7)
            | {'decoder.0.grn.gamma': (1, 1, 1, 2048)}
        ),
        'official, sparse (FCMAE)',
        False,
    ),
    'official Mask R-CNN': (
        V1,
        lambda a: prefixed('backbone.', official(a) | norms(a)) | detector(a, False),
        'official',
        True,
    ),
    'official Cascade': (
        V1,
        lambda a: prefixed('backbone.', official(a) | norms(a)) | detector(a, True),
        'official',
        True,
    ),
    'official UperNet': (
        V1,
        lambda a: prefixed('backbone.', official(a) | norms(a)) | segmentor(a),
        'official',
        True,
    ),
    'detector of ours, V2': (
        V2,
        lambda a: prefixed('backbone.', official(a, 1) | norms(a)) | detector(a, False),
        'official',
        True,
    ),
    'DINOv3 original': (
        ['tiny', 'small', 'base', 'large'],
        lambda a: official(a) | pair('norm', width(a)) | pair('norms.3', width(a)),
        'official',
        False,
    ),
    'EUPE original': (
        ['tiny', 'small', 'base'],
        lambda a: (
            official(a)
            | pair('norm', width(a))
            | pair('norms.3', width(a))
            | pair('projectors.a.0', 8, width(a))
        ),
        'official',
        False,
    ),
    'timm classifier': (
        V1 + V2,
        lambda a: timm(a) | classifier(a, 'head.norm', 'head.fc'),
        'timm',
        False,
    ),
    'timm, norm before the pool': (
        ['tiny'],
        lambda a: timm(a) | pair('norm_pre', width(a)) | pair('head.fc', 10, width(a)),
        'timm',
        False,
    ),
    'timm, MLP head': (
        ['large'],
        lambda a: (
            timm(a)
            | pair('head.norm', width(a))
            | pair('head.pre_logits.fc', 8, width(a))
            | pair('head.fc', 9, 8)
        ),
        'timm',
        False,
    ),
    'timm DINOv3': (
        ['tiny', 'small', 'base', 'large'],
        lambda a: timm(a) | pair('head.norm', width(a)),
        'timm',
        False,
    ),
    'timm features_only': (
        V1 + V2,
        lambda a: {
            k.replace('stem.', 'stem_', 1).replace('stages.', 'stages_', 1): v
            for k, v in timm(a).items()
        },
        'timm, features_only',
        False,
    ),
    'CLIP of open_clip': (
        ['base', 'large', 'xxlarge'],
        lambda a: (
            prefixed('visual.trunk.', timm(a) | pair('head.norm', width(a)))
            | {
                'logit_scale': (),
                'visual.head.proj.weight': (640, width(a)),
                'transformer.resblocks.0.attn.in_proj_weight': (12, 4),
            }
        ),
        'timm',
        False,
    ),
    'torchvision': (
        ['tiny', 'small', 'base', 'large'],
        lambda a: torchvision(a) | classifier(a, 'classifier.0', 'classifier.2'),
        'torchvision',
        False,
    ),
    'transformers classifier': (
        OFFICIAL_V1 + V2,
        lambda a: (
            prefixed('convnext.', transformers(a) | pair('layernorm', width(a)))
            | pair('classifier', 1000, width(a))
        ),
        'transformers',
        False,
    ),
    'transformers backbone': (
        OFFICIAL_V1 + V2,
        lambda a: transformers(a) | norms(a, 'hidden_states_norms.stage{i}', 1),
        'transformers',
        True,
    ),
    'transformers backbone with the stem': (
        ['tiny'],
        lambda a: (
            transformers(a)
            | norms(a, 'hidden_states_norms.stage{i}', 1)
            | pair('hidden_states_norms.stem', 96)
        ),
        'transformers',
        True,
    ),
    'transformers UperNet': (
        ['tiny'],
        lambda a: (
            prefixed('backbone.', transformers(a) | norms(a, 'hidden_states_norms.stage{i}', 1))
            | pair('decode_head.classifier', 150, 512, 1, 1)
        ),
        'transformers',
        True,
    ),
    'transformers DINOv3': (
        ['tiny', 'small', 'base', 'large'],
        lambda a: transformers_dinov3(a) | pair('layer_norm', width(a)),
        'transformers, DINOv3',
        False,
    ),
    'mmpretrain classifier': (
        V1 + V2,
        lambda a: (
            prefixed('backbone.', mmpretrain(a) | pair('norm3', width(a)))
            | pair('head.fc', 1000, width(a))
        ),
        'mmpretrain',
        False,
    ),
    'mmpretrain, 1x1 convolutions': (
        V1 + V2,
        lambda a: (
            prefixed('backbone.', mmpretrain(a, True) | pair('norm3', width(a)))
            | pair('head.fc', 1000, width(a))
        ),
        'mmpretrain',
        False,
    ),
    'mmdet with mmpretrain': (
        V1 + V2,
        lambda a: prefixed('backbone.', mmpretrain(a) | norms(a)) | detector(a, True),
        'mmpretrain',
        True,
    ),
    'mmseg with mmpretrain': (
        V1 + V2,
        lambda a: prefixed('backbone.', mmpretrain(a) | norms(a)) | segmentor(a),
        'mmpretrain',
        True,
    ),
}
OUTPUT_NORMS = {f'norm{i}.{leaf}' for i in range(4) for leaf in ('weight', 'bias')}
# beginnings that only names of the trunk have
TRUNK = ('stages', 'stem', 'features', 'downsample', 'embeddings')


@mark.parametrize('file', FILES)
def test_loaded_dropped_and_left(file):
    """Every tensor of the network is loaded, but for output norms that a file does not have; every
    other tensor of the file is dropped, none of the trunk among them."""
    sizes, shapes_of, layout, has_norms = FILES[file]
    left = set() if has_norms else OUTPUT_NORMS
    for arch in sizes:
        with torch.device('meta'):
            net = ConvNeXt(arch)
            tensors = {name: torch.empty(shape) for name, shape in shapes_of(arch).items()}
        values, report = match(net, tensors)
        expected = net.state_dict()
        assert report.layout == layout
        assert set(report.loaded) == set(values) == set(expected) - left
        assert all(values[name].shape == expected[name].shape for name in values)
        assert set(report.left_as_initialised) == left
        assert len(report.loaded) + len(report.dropped) == len(tensors)
        assert set(report.dropped) <= set(tensors)
        dropped = {name.removeprefix('backbone.') for name in report.dropped}
        assert not any(name.startswith(TRUNK) for name in dropped), report.dropped


def test_sparse_kernels_are_turned_the_right_way():
    """Position k of a sparse kernel runs down the columns.

    It is position (y, x) of the dense kernel (out, in, side, side) with k = y + x * side.
    """
    shapes = official(arch := 'v2_atto', grn_dims=2)
    dense = {name: torch.randn(shape) for name, shape in shapes.items()}
    state = {}
    for name, shape in sparse(arch).items():
        ours = name.replace('.ln.', '.').replace('.linear.', '.').replace('kernel', 'weight')
        value = dense[ours]
        if name.endswith('kernel'):
            flat = torch.empty(shape)
            for y in range(value.shape[2]):
                for x in range(value.shape[3]):
                    tap = value[:, :, y, x]
                    flat[y + x * value.shape[2]] = tap[:, 0] if 'dwconv' in name else tap.T
            value = flat
        state[f'encoder.{name}'] = value.reshape(shape)
    values, _ = match(ConvNeXt(arch, out_norm=False), state)
    for name, value in values.items():
        assert torch.equal(value, dense[name].reshape(value.shape)), name
