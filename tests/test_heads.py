"""Rearranged heads are mmseg's: results, gradients, training, checkpoints, and what is left alone.

Compared with mmseg's own heads, in float64 or by what is further from float64.
"""

import copy
import io

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from pytest import mark
from torch import nn
from torch.nn import functional as F

from conftest import ADE_T, ROOT, needs, randomise
from convnext_dense import plain_operators, rearrange
from convnext_dense.evaluation.flops import Counter, count, total
from convnext_dense.heads import REARRANGED, UPerHead

WIDTHS = 24, 40, 56, 96
COMMON = dict(num_classes=5, channels=32, dropout_ratio=0.0, norm_cfg=dict(type='BN'))
ALL = dict(COMMON, in_channels=list(WIDTHS), in_index=[0, 1, 2, 3])
LAST = dict(COMMON, in_channels=WIDTHS[3], in_index=3)
CONCAT = dict(ALL, type='FCNHead', input_transform='resize_concat')
UPER = dict(ALL, type='UPerHead')
HEADS = {
    'UperNet': UPER,
    'PSPNet': dict(LAST, type='PSPHead'),
    'DeepLabV3': dict(LAST, type='ASPPHead', dilations=(1, 2, 3)),
    'DeepLabV3+': dict(
        LAST,
        type='DepthwiseSeparableASPPHead',
        dilations=(1, 2, 3),
        c1_in_channels=WIDTHS[0],
        c1_channels=12,
    ),
    'FCN': dict(CONCAT, num_convs=2),
    'FCN of HRNet': dict(CONCAT, num_convs=1, kernel_size=1, concat_input=False),
    'SegFormer': dict(ALL, type='SegformerHead'),
    'Semantic FPN': dict(ALL, type='FPNHead', feature_strides=[4, 8, 16, 32]),
    'K-Net': dict(
        type='IterativeDecodeHead',
        num_stages=1,
        kernel_generate_head=UPER,
        kernel_update_head=[
            dict(
                type='KernelUpdateHead',
                num_classes=5,
                in_channels=32,
                out_channels=32,
                feedforward_channels=32,
                num_mask_fcs=1,
                feat_transform_cfg=dict(conv_cfg=dict(type='Conv2d'), act_cfg=None),
                kernel_updator_cfg=dict(
                    type='KernelUpdator', in_channels=32, feat_channels=32, out_channels=32
                ),
            )
        ],
    ),
}
SIZES = (512, 512), (640, 640), (512, 2048), (333, 517)  # of images


@pytest.fixture(scope='module', autouse=True)
def scope():
    init_default_scope('mmseg')


def build(cfg, align_corners=False):
    """A head of mmseg with random weights and statistics, and a copy that is rearranged."""
    cfg = copy.deepcopy(cfg)
    cfg.get('kernel_generate_head', cfg)['align_corners'] = align_corners
    torch.manual_seed(0)
    head = MODELS.build(cfg)
    for parameter in head.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    for name, statistic in head.named_buffers():
        if 'running' in name:
            nn.init.uniform_(statistic, 0.5, 1.5)
    rearranged = copy.deepcopy(head)
    assert rearrange(rearranged).heads
    return head, rearranged


def maps(size, widths=WIDTHS, images=2, dtype=torch.float64):
    """Of strides 4 to 32, rounded up as backbones do."""
    sides = [[-(-side // stride) for side in size] for stride in (4, 8, 16, 32)]
    return [torch.randn(images, width, *s, dtype=dtype) for width, s in zip(widths, sides)]


def logits_of(head, inputs):
    logits = head(inputs)
    return logits[-1] if isinstance(logits, list) else logits  # K-Net's has those of all stages


def step(head, inputs):
    """Logits, and the gradients of all parameters and inputs for a fixed gradient of logits."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    logits = logits_of(head, inputs)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    leaves = [*head.parameters(), *inputs]
    grads = torch.autograd.grad(logits, leaves, direction.to(logits), allow_unused=True)
    return logits.detach(), [g for g in grads if g is not None]


def error(value, expected):
    return ((value.double() - expected).norm() / expected.norm()).item()


def macs(head, inputs):
    with torch.no_grad(), Counter() as counter:
        head(inputs)
    return counter.macs()


@mark.parametrize('training', [False, True], ids=['eval', 'train'])
@mark.parametrize('align_corners', [False, True], ids=['', 'align_corners'])
@mark.parametrize('name', HEADS)
def test_equal_to_mmseg_in_float64(name, align_corners, training):
    # K-Net thresholds its masks, where rounding may decide: in training it did, in one run of many.
    training = training and name != 'K-Net'
    head, rearranged = (h.double().train(training) for h in build(HEADS[name], align_corners))
    inputs = maps((101, 165))
    assert macs(rearranged.eval(), inputs) < macs(head.eval(), inputs)
    statistics = copy.deepcopy(head.state_dict())
    for h in (head, rearranged):
        h.load_state_dict(statistics)
        h.train(training)
    (expected, grads), (logits, others) = step(head, inputs), step(rearranged, inputs)
    assert error(logits, expected) < 1e-10
    largest = max(g.norm() for g in grads)
    assert len(grads) == len(others)
    assert all((a - b).norm() < 1e-10 * largest for a, b in zip(grads, others))
    for a, b in zip(head.buffers(), rearranged.buffers()):
        assert torch.allclose(a, b, rtol=1e-10)
    with torch.no_grad():  # another way through the code: in place
        assert error(logits_of(rearranged, inputs), logits_of(head, inputs)) < 1e-10


@mark.parametrize('size', SIZES, ids=str)
def test_upernet_equals_mmseg_at_sizes_of_images(size):
    head, rearranged = (h.double().eval() for h in build(dict(UPER, channels=8)))
    inputs = maps(size, images=1)
    with torch.no_grad():
        assert error(rearranged(inputs), head(inputs)) < 1e-10


@mark.parametrize('size', [(128, 128), (101, 165)], ids=str)
def test_single_precision_is_as_near_to_float64_as_mmseg(size):
    widths = 96, 128, 160, 192
    head, rearranged = build(dict(UPER, in_channels=list(widths), channels=128))
    inputs = maps(size, widths, dtype=torch.float32)
    exact, exact_grads = step(copy.deepcopy(head).double(), [x.double() for x in inputs])

    def flat(grads):
        return torch.cat([g.double().flatten() for g in grads])

    results = []
    for h in (head, rearranged):
        logits, grads = step(h, inputs)
        results.append((error(logits, exact), error(flat(grads), flat(exact_grads)), flat(grads)))
    (logits_error, error_of_grads, grads), (other_logits, other_grads_error, others) = results
    assert other_logits < 2 * logits_error and other_grads_error < 2 * error_of_grads
    assert error(others, grads) < 1e-4


def test_twenty_steps_of_training_are_mmsegs():
    batches = [maps((96, 128)) for _ in range(2)]
    labels = torch.randint(0, 5, (2, 24, 32))
    losses, weights = [], []
    for head in build(UPER):
        head.double().train()
        optimizer = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9)
        losses.append([])
        for i in range(20):
            loss = F.cross_entropy(head(batches[i % 2]), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
        weights.append(torch.cat([p.detach().flatten() for p in head.parameters()]))
    assert losses[0][-1] < losses[0][0]  # it learns
    assert losses[1] == pytest.approx(losses[0], rel=1e-8)
    assert error(weights[1], weights[0]) < 1e-8


def test_training_keeps_less_for_the_backward_pass():
    sizes = []
    for head in build(dict(UPER, channels=64)):
        kept, own = {}, {parameter.data_ptr() for parameter in head.parameters()}

        def pack(tensor, kept=kept):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = head.train()(maps((512, 512), dtype=torch.float32))
        sizes.append(sum(size for place, size in kept.items() if place not in own))
        del logits
    assert sizes[1] < 0.8 * sizes[0]


def losses_of(head, logits, labels):
    """Losses by name, the gradient of their sum and the bytes that are kept for it."""
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    logits = logits.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = head.loss_by_feat(logits, samples)
    (grad,) = torch.autograd.grad(head_loss(losses), logits)
    return {name: value.item() for name, value in losses.items()}, grad, sum(kept.values())


def head_loss(losses):
    return sum(value for name, value in losses.items() if name.startswith('loss'))


PLAIN_LOSS = dict(type='CrossEntropyLoss', loss_weight=0.4)
LOSSES = {
    'cross entropy': PLAIN_LOSS,
    'two': [PLAIN_LOSS, dict(PLAIN_LOSS, loss_name='loss_again')],
    'of the labels that count': dict(PLAIN_LOSS, avg_non_ignore=True),
    'weights of classes': dict(PLAIN_LOSS, class_weight=[0.1, 0.2, 0.3, 0.4, 0.5]),
    'sigmoid': dict(PLAIN_LOSS, use_sigmoid=True),
    'another kind': [PLAIN_LOSS, dict(type='DiceLoss')],
}


@mark.parametrize('name', LOSSES)
def test_losses_are_mmsegs_in_less_memory(name):
    head, rearranged = build(dict(LAST, type='FCNHead', loss_decode=LOSSES[name]))
    logits = torch.randn(3, 5, 9, 13, dtype=torch.float64)
    labels = torch.randint(0, 5, (3, 64, 96))
    labels[:, 5:20], labels[1, :, 40:] = 255, 255  # images differ in how many labels count
    if name == 'weights of classes':  # mmseg 1.2 looks up the weight of label 255
        labels %= 5
    results = [losses_of(h.double(), logits, labels) for h in (head, rearranged)]
    (expected, grad, size), (losses, other, less) = results
    assert losses == pytest.approx(expected, rel=1e-6) and set(losses) == set(expected)
    values = [{k: v for k, v in part.items() if k != 'acc_seg'} for part in (losses, expected)]
    # mmseg adds 1e-7 to the number of labels that it divides by.
    assert values[0] == pytest.approx(values[1], rel=1e-10)
    assert error(other, grad) < 1e-10
    assert less < 0.5 * size if name in ('cross entropy', 'two') else less == size


def test_the_accuracy_of_labels_that_are_all_ignored_is_mmsegs():
    logits, labels = torch.randn(2, 5, 4, 4), torch.full((2, 16, 16), 255)
    results = [losses_of(h, logits, labels)[0] for h in build(dict(LAST, type='FCNHead'))]
    assert results[0] == pytest.approx(results[1])


def test_a_checkpoint_of_mmsegs_head_gives_the_same_label_map():
    cfg = Config.fromfile(ROOT / ADE_T).model
    cfg.backbone.update(arch='atto', init_cfg=None)
    cfg.decode_head.update(in_channels=[40, 80, 160, 320], channels=32)
    cfg.auxiliary_head.update(in_channels=160, channels=16)
    cfg.test_cfg = dict(mode='whole')
    assert cfg.decode_head.type == 'convnext_dense.UPerHead'
    ours = MODELS.build(cfg)
    cfg.decode_head.type = 'UPerHead'
    theirs = MODELS.build(cfg)
    randomise(theirs)
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    ours.load_state_dict(torch.load(file, weights_only=True))
    assert type(ours.decode_head) is UPerHead
    image, labels = torch.randn(1, 3, 101, 165), []
    sample = SegDataSample(metainfo=dict(img_shape=(101, 165), ori_shape=(101, 165)))
    for model in (theirs, ours):
        with torch.no_grad():
            (result,) = model.eval().predict(image, [sample.clone()])
        labels.append(result.pred_sem_seg.data)
    assert torch.equal(*labels) and len(labels[0].unique()) > 5


# ---- precisions, compilers and exporters ----


def test_autocast_is_as_exact_as_mmsegs():
    head, rearranged = build(UPER)
    inputs = maps((101, 165), dtype=torch.float32)
    exact, exact_grads = step(copy.deepcopy(head).double(), [x.double() for x in inputs])
    errors = []
    for h in (head, rearranged):
        with torch.autocast('cpu', torch.bfloat16):
            logits, grads = step(h, inputs)
        assert logits.dtype == torch.bfloat16
        errors.append([error(logits, exact), *(error(g, e) for g, e in zip(grads, exact_grads))])
    assert errors[1][0] < 2 * errors[0][0]
    assert sum(errors[1]) < 2 * sum(errors[0])


def test_bfloat16():
    head, rearranged = build(UPER)
    inputs = maps((101, 165), dtype=torch.float32)
    with torch.no_grad():
        expected = head.double().eval()([x.double() for x in inputs])
        results = [h.bfloat16().eval()([x.bfloat16() for x in inputs]) for h in (head, rearranged)]
    assert error(results[1], expected) < 2 * error(results[0], expected) < 0.1


def test_compiles_as_one_graph():
    assert_compiles('UperNet', [(96, 96)], dynamic=False)


@mark.slow
def test_compiles_with_dynamic_sizes():
    assert_compiles('PSPNet', [(96, 96), (101, 165)], dynamic=True)


def assert_compiles(name, sizes, dynamic):
    _, head = build(HEADS[name])
    torch.compiler.reset()
    compiled = torch.compile(head.eval(), fullgraph=True, dynamic=dynamic, backend='aot_eager')
    for size in sizes:
        inputs = maps(size, dtype=torch.float32)
        with torch.no_grad():
            assert error(compiled(inputs), head(inputs).double()) < 1e-5


def test_training_compiles_as_one_graph():
    _, head = build(HEADS['PSPNet'])
    torch.compiler.reset()
    compiled = torch.compile(head.train(), fullgraph=True, backend='aot_eager')
    inputs = maps((96, 96), dtype=torch.float32)
    (logits, grads), (others, other_grads) = step(head, inputs), step(compiled, inputs)
    assert error(others, logits.double()) < 1e-5
    assert all(error(a, b.double()) < 1e-3 for a, b in zip(grads, other_grads))


class WithMaps(nn.Module):
    """Makes maps of an image for a head, as a backbone does."""

    def __init__(self, head):
        super().__init__()
        self.head = head
        convolutions = [nn.Conv2d(3, w, s, stride=s) for w, s in zip(WIDTHS, (4, 8, 16, 32))]
        self.convolutions = nn.ModuleList(convolutions)

    def forward(self, image):
        return self.head([conv(image) for conv in self.convolutions])


@needs('export with dynamic sizes')
@mark.parametrize('name', ['UperNet', 'SegFormer'])
def test_exported_head_runs_at_other_sizes(name):
    model = WithMaps(build(HEADS[name])[1]).eval()
    sides = torch.export.Dim('rows', min=2, max=32), torch.export.Dim('columns', min=2, max=32)
    dynamic = {2: 32 * sides[0], 3: 32 * sides[1]}
    program = torch.export.export(model, (torch.randn(1, 3, 128, 160),), dynamic_shapes=(dynamic,))
    for size in ((160, 224), (256, 128)):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            assert error(program.module()(image), model(image).double()) < 1e-5


def test_traced_head_runs_at_other_sizes():
    """As torch's older ONNX exporter traces it."""
    head = build(HEADS['FCN'])[1].eval()
    traced = torch.jit.trace(head, (maps((96, 96), dtype=torch.float32),))
    inputs = maps((128, 160), dtype=torch.float32)
    with torch.no_grad():
        assert error(traced(inputs), head(inputs).double()) < 1e-5


@mark.slow
@needs('ONNX export')
def test_onnx_head_runs_at_other_sizes(tmp_path):
    import onnxruntime

    # UPerHead's pooling would be exported for this size alone, mmseg's as well.
    model = WithMaps(build(HEADS['SegFormer'])[1]).eval()
    sides = torch.export.Dim('rows', min=2, max=32), torch.export.Dim('columns', min=2, max=32)
    torch.onnx.export(
        model,
        (torch.randn(1, 3, 128, 160),),
        tmp_path / 'head.onnx',
        dynamo=True,
        verbose=False,
        dynamic_shapes=({2: 32 * sides[0], 3: 32 * sides[1]},),
    )
    session = onnxruntime.InferenceSession(tmp_path / 'head.onnx')
    image = torch.randn(1, 3, 160, 224)
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        assert error(torch.from_numpy(logits), model(image).double()) < 1e-4


# ---- rearrange ----


def test_rearrange_changes_classes_alone():
    head, rearranged = build(UPER)
    optimizer = torch.optim.SGD(rearranged.parameters(), lr=1)
    assert list(head.state_dict()) == list(rearranged.state_dict())
    assert rearrange(rearranged).heads == ['']  # again
    assert {id(p) for p in rearranged.parameters()} == {
        id(p) for p in optimizer.param_groups[0]['params']
    }
    file = io.BytesIO()
    torch.save(rearranged, file)
    file.seek(0)
    again, inputs = torch.load(file, weights_only=False), maps((64, 64), dtype=torch.float32)
    assert type(again) is UPerHead
    assert torch.equal(again.eval()(inputs), rearranged.eval()(inputs))


class Derived(next(kind for kind in REARRANGED if kind.__name__ == 'UPerHead')):
    """A class that rearrange does not know."""


def test_what_is_altered_is_left_alone_and_named():
    head, _ = build(UPER)
    inputs = maps((64, 64), dtype=torch.float32)
    expected, seen = head.eval()(inputs), []

    derived = copy.deepcopy(head)
    derived.__class__ = Derived
    hooked = copy.deepcopy(head)
    hooked.register_forward_hook(lambda *_: None)
    inner = copy.deepcopy(head)  # parts of it may still be rearranged
    inner.fpn_bottleneck.conv.register_forward_hook(lambda *_: seen.append('conv'))
    inner.psp_modules.register_forward_hook(lambda *_: seen.append('pyramid'))
    strided = copy.deepcopy(head)
    strided.fpn_bottleneck.conv.padding = strided.bottleneck.conv.padding = (2, 2)
    model = nn.ModuleDict(
        dict(derived=derived, hooked=hooked, inner=inner, strided=strided, plain=nn.Identity())
    )
    report = rearrange(model)
    assert report.heads == ['inner']
    assert report.left_alone == {
        'derived': "is a Derived, not mmseg's UPerHead",
        'hooked': 'has hooks, is compiled or has another forward',
        'inner.fpn_bottleneck': 'has hooks, is compiled or has another forward: conv',
        'strided.bottleneck': 'has padding=(2, 2)',
        'strided.fpn_bottleneck': 'has padding=(2, 2)',
    }
    assert 'left alone: derived is a Derived' in str(report)
    for name in ('derived', 'hooked', 'inner'):
        assert error(model[name](inputs), expected.double()) < 1e-5
    assert seen == ['pyramid', 'conv']


def test_hooks_that_come_later_are_called():
    _, head = build(UPER)
    inputs, seen = maps((64, 64), dtype=torch.float32), []
    before = head.eval()(inputs)
    head.fpn_bottleneck.register_forward_hook(lambda *_: seen.append('hook'))
    assert error(head(inputs), before.double()) < 1e-5 and seen == ['hook']


def test_plain_operators_compute_as_mmseg_does():
    head, rearranged = build(UPER)
    inputs = maps((64, 64), dtype=torch.float32)
    with plain_operators():
        assert torch.equal(rearranged.eval()(inputs), head.eval()(inputs))


@mark.parametrize('ratio', [0.5, 0.9, 1])
def test_maps_that_are_not_enlarged_are_left_alone(ratio):
    """The first map gives the size: a later one may be larger, or as large."""
    head, rearranged = build(CONCAT)
    sides = 20, round(20 / ratio), 20, 20
    inputs = [torch.randn(1, w, s, s) for w, s in zip(WIDTHS, sides)]
    assert torch.equal(rearranged.eval()(inputs), head.eval()(inputs))


def test_flops_of_upernet():
    cfg = Config.fromfile(ROOT / ADE_T)
    published, rearranged = (
        total(count(cfg, (512, 512), is_rearranged).values()) for is_rearranged in (False, True)
    )
    assert published.parameters == rearranged.parameters
    assert round(published.macs / 1e9) == 235 and 130 < rearranged.macs / 1e9 < 135


@mark.parametrize('size', SIZES)
def test_linear_head_is_one_convolution_over_all_maps(size):
    """Batch norms of its own for each map, with their running statistics."""
    cfg = dict(ALL, type='convnext_dense.LinearHead', dropout_ratio=0.1)
    del cfg['channels']
    head = randomise(MODELS.build(cfg)).double()
    inputs = maps(size)
    head.train()(inputs)  # so that the statistics differ from 0 and 1
    head.eval()
    normalised = [norm(x) for norm, x in zip(head.norms, inputs)]
    resized = [F.interpolate(x, inputs[0].shape[2:], mode='bilinear') for x in normalised]
    expected = head.conv_seg(torch.cat(resized, 1))
    assert torch.allclose(head(inputs), expected, rtol=0, atol=1e-10)
    assert expected.std() > 0.1
