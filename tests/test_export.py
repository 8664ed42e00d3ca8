"""convnext-dense export: whole segmentors as one file, its verification, and the runner without
torch."""

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import deformable_detr_head
from mmdet.models.layers.transformer import deformable_detr_layers
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import Upsample
from mmseg.models.utils import resize as mmseg_resize
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

from conftest import CAPABILITIES, ROOT, export_for_any_size, needs, randomise
from convnext_dense import ConfigError, inferencer, swap_backbone
from convnext_dense.commands.export import main
from convnext_dense.data.pictures import read
from convnext_dense.evaluation.export_census import balance, picture
from convnext_dense.evaluation.exported_file import ExportedFile
from convnext_dense.export import halving, tracing, writing
from convnext_dense.export.families import graph_of
from convnext_dense.export.quantising import quantised
from convnext_dense.export.tracing import traceable
from convnext_dense.export.verifying import EXACT, Differs, Verifier, _same_labels
from convnext_dense.export.writing import resize_rule
from convnext_dense.inference.building import build, load
from convnext_dense.runtime.model import Model, UnusableFile
from convnext_dense.runtime.resizing import resize
from convnext_dense.training.examples_hook import draw_example

onnx = pytest.importorskip('onnx', reason='needs ONNX export')
onnxruntime = pytest.importorskip('onnxruntime', reason='needs ONNX export')
pytest.importorskip('onnxscript', reason='needs ONNX export')
TINY = """
_base_ = {base!r}
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True, depths=(1, 1, 1, 1), dims=(16, 32, 48, 64), generation={generation}),
        drop_path_rate=0.0),
    decode_head=dict({head}),
    auxiliary_head=None,
    test_cfg=dict({test_cfg}))
resize = dict(type='Resize', scale=(160, 96), keep_ratio=True)
test_dataloader = dict(dataset=dict(data_root={data!r}, pipeline=[
    dict(type='LoadImageFromFile'), resize, dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')]))
"""
UPERNET = 'in_channels=[16, 32, 48, 64], channels=16'
# A window is larger than the smallest pictures.
WHOLE, SLIDING = "mode='whole'", "mode='slide', crop_size=(128, 128), stride=(85, 85)"


def make(folder, data, head=UPERNET, test_cfg=WHOLE, generation=1):
    """Config and checkpoint of a tiny segmentor with random weights, which sees several classes."""
    folder.mkdir(parents=True, exist_ok=True)
    config, checkpoint = folder / 'config.py', folder / 'model.pth'
    base = str(ROOT / 'configs/demo/upernet_convnext-atto_shapes.py')
    text = dict(base=base, data=str(data / 'ade'), head=head, test_cfg=test_cfg)
    config.write_text(TINY.format(**text, generation=generation))
    cfg = Config.fromfile(config)
    init_default_scope('mmseg')
    torch.manual_seed(1)
    model = randomise(build(cfg.model, 'cpu'))
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    return str(config), str(checkpoint)


def export(*arguments):
    main([str(argument) for argument in arguments])


def simple(kind):
    """A head of one layer."""
    return (
        f"_delete_=True, type='{kind}', in_channels=16, in_index=0, channels=16, num_classes=7, "
        "loss_decode=dict(type='CrossEntropyLoss')"
    )


class Exported:
    """A file that was written by the command, and what it is to agree with."""

    def __init__(self, folder, data, *arguments, **options):
        self.config, self.checkpoint = make(folder, data, **options)
        self.path = folder / 'out' / 'model.onnx'
        export(self.config, self.checkpoint, '-o', self.path, *arguments)
        self.model = Model(self.path)
        self.predictor = inferencer(self.config, self.checkpoint, 'cpu')

    def framework(self, image):
        """Labels (H, W) of mmseg's own inferencer: its pipeline, resizing and all."""
        result = self.predictor(np.ascontiguousarray(image[..., ::-1]), return_datasamples=True)
        return result.pred_sem_seg.data[0].numpy()

    def run(self, images, size):
        inputs = dict(image=images, size=np.array(size))
        return self.model.session.run(None, inputs)[0]


@pytest.fixture(scope='module')
def exported(scenes, tmp_path_factory):
    """UperNet on V2, fused."""
    return Exported(tmp_path_factory.mktemp('exported'), scenes, generation=2)


@pytest.fixture(scope='module')
def pictures(scenes, tmp_path_factory):
    """Of several sizes; one was turned by the camera."""
    folder = tmp_path_factory.mktemp('pictures')
    sources = sorted((scenes / 'ade/images/test').glob('*'))
    sizes = dict(a=(192, 192), b=(300, 170), c=(131, 257))
    for (name, size), source in zip(sizes.items(), sources):
        Image.open(source).resize(size).save(folder / f'{name}.png')
    exif = Image.Exif()
    exif[0x112] = 6
    Image.open(sources[3]).resize((90, 150)).save(folder / 'turned.jpg', exif=exif, quality=98)
    return folder


# ---- the file ----


def test_the_file_has_the_contract_of_the_page(exported):
    session = exported.model.session
    inputs = {part.name: (part.shape, part.type) for part in session.get_inputs()}
    assert inputs == dict(image=(['N', 'H', 'W', 3], 'tensor(uint8)'), size=([2], 'tensor(int64)'))
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape) == ('labels', 'tensor(uint8)', ['N', 'h', 'w'])
    operators = onnx.load(exported.path).opset_import
    assert [(part.domain, part.version) for part in operators] == [('', 20)]
    images = np.random.default_rng(0).integers(0, 256, (3, 75, 111, 3), np.uint8)
    assert exported.run(images, (40, 333)).shape == (3, 40, 333)


def test_labels_are_those_of_mmseg_through_its_own_pipeline(exported, pictures):
    """Of pictures of sizes that were not verified."""
    seen = set()
    for path in sorted(pictures.iterdir()):
        image = read(path)[0]
        expected = exported.framework(image)
        assert (exported.model(image) == expected).mean() >= 0.9999, path
        seen |= set(np.unique(expected))
    assert len(seen) >= 3


def test_the_file_says_what_it_is(exported):
    meta = exported.model.meta
    assert meta['classes'][:2] == ['wall', 'floor'] and len(meta['palette']) == 7
    assert meta['resize'] == dict(scale=[160, 96], keep_ratio=True)
    assert meta['config'] == 'config.py' and len(meta['checkpoint']['sha256']) == 64
    assert meta['versions']['torch'] == torch.__version__.partition('+')[0]
    assert (meta['task'], meta['output'], meta['fused']) == ('segmentation', 'labels', True)
    content = exported.path.read_bytes()
    for private in (str(exported.path.parent), str(ROOT), 'site-packages'):
        assert private.encode() not in content
    assert [path.name for path in exported.path.parent.iterdir()] == ['model.onnx']


@pytest.mark.slow
def test_windows_slide_in_the_file_too(scenes, tmp_path, capsys):
    """With logits, of a model that is not fused, with the bands in the other order."""
    head = simple('FCNHead') + ', num_convs=0, concat_input=False'
    config, checkpoint = make(tmp_path, scenes, head=head, test_cfg=SLIDING)
    out = tmp_path / 'model.onnx'
    bgr = ('--cfg-options', 'model.data_preprocessor.bgr_to_rgb=False')
    export(config, checkpoint, '-o', out, '--output', 'logits', '--no-fuse', *bgr)
    printed = ' '.join(capsys.readouterr().out.split())
    assert 'any number of pictures, any height and width' in printed
    assert all(f'{place}: 100 % equal' in printed for place in ('96 x 96', '333 x 517'))
    model = Model(out)
    assert model.meta['output'] == 'logits' and not model.meta['fused']
    image = np.random.default_rng(0).integers(0, 256, (91, 70, 3), np.uint8)
    assert model(image).shape == (7, 91, 70)


FAMILIES = (
    *('pspnet_r50-d8_4xb2-40k_cityscapes-512x1024', 'fpn_r50_4xb2-80k_cityscapes-512x1024'),
    'deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024',
    'segformer_mit-b0_8xb1-160k_cityscapes-1024x1024',
    'mask2former_r50_8xb2-90k_cityscapes-512x1024',
)


def small(name, size=(160, 120)):
    """The config of a segmentor of mmseg on a shallow ConvNeXt, with pictures of a width and
    height."""
    cfg = swap_backbone(name, 'atto')
    cfg.model.backbone.arch = dict(depths=(1, 1, 1, 1), dims=(40, 80, 160, 320))
    head = cfg.model.decode_head
    if 'transformer_decoder' in head:
        head.num_queries = 20
        head.pixel_decoder.encoder.num_layers, head.transformer_decoder.num_layers = 1, 3
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=size, keep_ratio=False),
        dict(type='PackSegInputs'),
    ]
    return cfg


def seeded(cfg):
    """The model of a config with random weights, under which several classes are seen."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = randomise(build(cfg.model, 'cpu'))
    balance(model, picture(0))
    return model


@pytest.mark.slow
@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_is_exported_for_any_number_and_size(name, scenes, tmp_path):
    cfg = small(name)
    done = export_for_any_size(
        cfg, seeded(cfg), scenes / 'ade/images/test', tmp_path / 'model.onnx'
    )
    trials = [(row.size, row.batch) for row in done.rows if row.engine == 'onnxruntime']
    sizes = (120, 160), (333, 517), (120, 90), (96, 64)
    assert trials == [(size, 1) for size in sizes] + [(sizes[0], 4)]
    assert len(done.rows) == len(trials) * (1 + CAPABILITIES['OpenVINO'])
    assert all(row.classes >= 3 for row in done.rows)


# ---- the runner ----


def run_alone(folder, *arguments):
    """The runner from a copy of its folder, where what it does not need cannot be imported."""
    runtime = folder / 'runtime'
    if not runtime.exists():
        ignored = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / 'convnext_dense/runtime', runtime, ignore=ignored)
    absent = (
        *('torch', 'mmengine', 'mmcv', 'mmseg', 'mmdet', 'cv2', 'onnx', 'pycocotools', 'rich'),
        *('matplotlib', 'convnext_dense'),
    )
    code = (
        f'import runpy, sys; sys.modules.update(dict.fromkeys({absent}))\n'
        "runpy.run_module('runtime', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, '-c', code, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_folder_alone_does_what_predict_does(exported, pictures, tmp_path, exits):
    predicted, out = tmp_path / 'predicted', tmp_path / 'out'
    exits('predict', exported.config, exported.checkpoint, pictures, '--out', predicted)
    done = run_alone(tmp_path, exported.path, pictures, '--out', out)
    assert done.returncode == 0, done.stderr
    assert '4 done, 0 skipped' in done.stdout
    names = sorted(str(path.relative_to(predicted)) for path in predicted.rglob('*.png'))
    assert len(names) == 8
    assert sorted(str(path.relative_to(out)) for path in out.rglob('*.png')) == names
    for name in names:
        expected, picture = (np.asarray(Image.open(folder / name)) for folder in (predicted, out))
        assert picture.shape == expected.shape and (picture == expected).mean() > 0.999, name


def test_the_runner_may_write_beside_the_pictures(exported, pictures, tmp_path):
    """What it wrote before is not predicted for."""
    photos = tmp_path / 'photos'
    photos.mkdir()
    shutil.copy(pictures / 'a.png', photos)
    for _ in range(2):
        done = run_alone(tmp_path, exported.path, photos, '--out', photos)
        assert done.returncode == 0 and done.stdout.startswith('1 done, 0 skipped')
    assert (photos / 'overlays/a.png').exists() and (photos / 'labels/a.png').exists()


def test_importing_the_runner_needs_no_torch():
    code = 'import sys; sys.modules["torch"] = None; import convnext_dense.runtime.model'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_a_damaged_or_foreign_file_gives_a_line(exported, pictures, tmp_path):
    whole = exported.path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    node = onnx.helper.make_node('Identity', ['x'], ['y'])
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [1]) for name in 'xy')
    graph = onnx.helper.make_graph([node], 'g', [x], [y])
    opset = onnx.helper.make_opsetid('', 20)
    foreign = onnx.helper.make_model(graph, ir_version=10, opset_imports=[opset])
    files = dict(
        cut=(whole[:middle], 'damaged'),
        its_text=(whole.replace(b'"format": ', b'"format", '), 'of itself cannot be read'),
        its_key=(whole.replace(b'"digest": ', b'"dagest": '), 'of itself cannot be read'),
        flipped=(flipped, 'is damaged, or was changed after it was exported'),
        empty=(b'', 'damaged'),
        text=(b'no model', 'no model in ONNX'),
        foreign=(foreign.SerializeToString(), 'not of convnext-dense export'),
    )
    for name, (content, expected) in files.items():
        path = tmp_path / f'{name}.onnx'
        path.write_bytes(content)
        with pytest.raises(UnusableFile, match=expected) as error:
            Model(path)
        assert '\n' not in str(error.value), name
    done = run_alone(tmp_path, tmp_path / 'absent.onnx', pictures)
    assert done.returncode == 1
    assert (
        done.stderr.strip() == f'{tmp_path}/absent.onnx cannot be read: No such file or directory'
    )


# ---- the graph, in torch ----

BINARY = simple('FCNHead').replace('num_classes=7', 'num_classes=2, out_channels=1, threshold=0.4')
BINARY = BINARY.replace("type='CrossEntropyLoss'", "type='CrossEntropyLoss', use_sigmoid=True")
VARIANTS = dict(
    padding={'model.data_preprocessor.test_cfg.size_divisor': 32},
    padded_to_a_size={'model.data_preprocessor.test_cfg.size': (128, 160)},
    corners={'model.decode_head.align_corners': True},
    windows={
        'model.test_cfg.mode': 'slide',
        'model.test_cfg.crop_size': (64, 200),
        'model.test_cfg.stride': (50, 90),
    },
    grey_levels={'model.data_preprocessor.mean': None, 'model.data_preprocessor.std': None},
    a_channel={},
)


@pytest.mark.parametrize('name', VARIANTS)
def test_the_graph_predicts_what_mmseg_does(name, scenes, tmp_path, pictures):
    """Two pictures at once, at a size that no stride divides, and an output of another size."""
    config, checkpoint = make(tmp_path, scenes, head=BINARY if name == 'a_channel' else UPERNET)
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(VARIANTS[name])
    model = build(cfg.model, 'cpu')
    load(model, checkpoint)
    graph = graph_of(model, 'labels').eval()
    images = [read(pictures / f'{key}.png')[0] for key in 'ab']
    samples = Verifier(model, graph, images).expected((90, 131))
    expected = [sample.pred_sem_seg.data[0].numpy() for sample in samples]
    batch = torch.from_numpy(np.stack([resize(image, 90, 131) for image in images]))
    with torch.no_grad():
        labels = graph(batch, torch.tensor(expected[0].shape)).numpy()
    assert len(np.unique(expected)) >= 2
    for found, reference in zip(labels, expected):
        assert (found == reference).mean() > 0.9999


# ---- OpenVINO ----


@needs('OpenVINO')
def test_openvino_runs_the_file_too(scenes, tmp_path, capsys):
    config, checkpoint = make(tmp_path, scenes)
    export(config, checkpoint, '-o', tmp_path / 'model.onnx')
    printed = ' '.join(capsys.readouterr().out.split())
    for place in ('96 x 96', '333 x 517', '72 x 72', '96 x 64', '96 x 96, 4 at once'):
        for engine in ('onnxruntime', 'OpenVINO'):
            assert f'{place}: 100 % equal in {engine}' in printed
    assert 'not usable' not in printed


@needs('OpenVINO')
def test_what_openvino_cannot_run_is_a_note(exported, scenes, tmp_path):
    """A file that is cut, and one of other weights. onnxruntime decides whether it is written."""
    cut = tmp_path / 'cut.onnx'
    cut.write_bytes(exported.path.read_bytes()[:1000])
    paths = sorted((scenes / 'ade/images/test').glob('*'))
    other = randomise(build(Config.fromfile(exported.config).model, 'cpu'))
    verifier = Verifier(other, graph_of(other, 'labels'), [read(path)[0] for path in paths])
    for path, says in ((cut, 'OpenVINO cannot read the file'), (exported.path, 'it is wrong at')):
        verify = partial(verifier.verify, path, [(96, 96)], True)
        rows, (note,) = writing._elsewhere(verify, EXACT)
        assert not rows and note.startswith('OpenVINO: not usable: ') and says in note


# ---- 16 and 8 bits ----


def types_of(path):
    """Operator of a file -> whether what it gives is in fp16."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    half = onnx.TensorProto.FLOAT16
    return {node.name: types.get(node.output[0]) == half for node in graph.node if node.name}


def test_fp16_is_in_the_layers_and_not_in_grns_statistic(exported, scenes, tmp_path, capsys):
    path = tmp_path / 'model.onnx'
    export(exported.config, exported.checkpoint, '-o', path, '--precision', 'fp16')
    printed = capsys.readouterr().out
    scores = re.findall(r'(framework|file): mIoU (\S+),', printed)
    assert abs(float(scores[0][1]) - float(scores[1][1])) < 1
    assert 'operators in fp16; left in fp32 by their values: 0' in printed
    types = types_of(path)
    for layer in ('stages.1.0.pwconv1/MatMul', 'stages.1.0.norm/', 'fpn_bottleneck.conv/Conv'):
        assert all(is_half for name, is_half in types.items() if layer in name), layer
    assert not any(is_half for name, is_half in types.items() if '.grn/' in name)
    assert not any(is_half for name, is_half in types.items() if name.startswith('ArgMax'))
    assert path.stat().st_size < 0.6 * exported.path.stat().st_size


def test_values_that_do_not_fit_fp16_stay_in_fp32(scenes, tmp_path, capsys, monkeypatch):
    """And where they are rounded all the same, the simulation says that the file is wrong."""
    config, checkpoint = make(tmp_path, scenes)
    content = torch.load(checkpoint)
    large = 'backbone.stages.1.0.dwconv'
    for name in ('weight', 'bias'):  # the LayerNorm behind it takes that back
        content['state_dict'][f'{large}.{name}'] *= 1e5
    torch.save(content, checkpoint)
    arguments = config, checkpoint, '-o', tmp_path / 'model.onnx', '--static', 96, 96
    export(*arguments, '--precision', 'fp16')
    printed = capsys.readouterr().out
    assert f'{large}/Conv' in printed and 'stays in fp32' in printed
    (tmp_path / 'model.onnx').unlink()
    monkeypatch.setattr(halving, 'LARGEST', float('inf'))
    with pytest.raises(SystemExit, match='in fp16 it is wrong at 96 x 96.*in fp32 it is right'):
        export(*arguments, '--precision', 'fp16')
    assert not (tmp_path / 'model.onnx').exists()


def test_int8_is_in_the_blocks_alone_and_its_difference_is_said(exported, tmp_path, capsys):
    path = tmp_path / 'model.onnx'
    export(exported.config, exported.checkpoint, '-o', path, '--precision', 'int8')
    printed = capsys.readouterr().out
    scores = re.findall(r'(framework|file): mIoU (\S+),', printed)
    assert [name for name, _ in scores] == ['framework', 'file']
    assert abs(float(scores[0][1]) - float(scores[1][1])) < 3
    assert Model(path).meta['precision'] == 'int8'
    graph = onnx.load(path).graph
    quantised = [node.input[0] for node in graph.node if node.op_type == 'QuantizeLinear']
    in_8_bits = [part.name for part in graph.initializer if part.data_type == onnx.TensorProto.INT8]
    assert len(quantised) >= 8 and len([n for n in in_8_bits if 'zero_point' not in n]) == 8
    assert path.stat().st_size < exported.path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]


def test_int8_needs_a_convnext(scenes, tmp_path):
    path = tmp_path / 'model.onnx'
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], 'empty', [], [])), path)
    with pytest.raises(ConfigError, match='no block of ConvNeXt'):
        quantised(path, [])


def test_coordinates_stay_in_fp32():
    """A graph of additions, whose first names are as a detector with queries has them."""
    coordinates = 'bbox_head/Add_0', 'decoder/Add_1', 'decoder.layers.0.cross_attn/Add_2'
    layers = 'bbox_head.reg/Add_3', 'decoder.layers.0.ffn/Add_4', 'backbone.stages.0/Add_5'
    names = coordinates + layers
    nodes = [
        onnx.helper.make_node('Add', [f'x{i}', f'x{i}'], [f'x{i + 1}'], name=name)
        for i, name in enumerate(names)
    ]
    ends = [onnx.helper.make_tensor_value_info(f'x{i}', 1, [2]) for i in (0, len(names))]
    graph = onnx.helper.make_graph(nodes, 'g', ends[:1], ends[1:])
    graph.value_info.extend(
        onnx.helper.make_tensor_value_info(f'x{i}', 1, [2]) for i in range(1, len(names))
    )
    assert halving._chosen(graph) == set(layers)


# ---- what is not exported ----


@MODELS.register_module()
class HalvingHead(BaseDecodeHead):
    """Makes a number of a size, in code of its own, as no cure can know."""

    def forward(self, inputs):
        x = self._transform_inputs(inputs)
        half = F.interpolate(x, [int(side * 0.5) for side in x.shape[2:]], mode='bilinear')
        return self.cls_seg(x + F.interpolate(half, x.shape[2:], mode='bilinear'))


@MODELS.register_module()
class RandomHead(BaseDecodeHead):
    """Predicts otherwise each time."""

    def forward(self, inputs):
        x = self._transform_inputs(inputs)
        return self.cls_seg(x + 0.1 * torch.randn_like(x))


@MODELS.register_module()
class OtherwiseTracedHead(BaseDecodeHead):
    """Leaves something out where it is traced, as some libraries do."""

    def forward(self, inputs):
        x = self._transform_inputs(inputs)
        return self.cls_seg(x if torch.compiler.is_exporting() else x.flip(1))


@MODELS.register_module()
class OtherSegmentor(EncoderDecoder):
    """Predicts in a way of its own."""

    def postprocess_result(self, seg_logits, data_samples=None):
        return super().postprocess_result(-seg_logits, data_samples)


def refused(config, checkpoint, out, *arguments):
    with pytest.raises(SystemExit) as stopped:
        export(config, checkpoint, '-o', out, *arguments)
    assert not out.exists() and not list(out.parent.glob('*unfinished*'))
    return stopped.value.code


def test_a_trap_without_a_cure_is_given_up_to_one_size(scenes, tmp_path, capsys):
    """Exported without a word, and wrong at other sizes: the verification is what notices."""
    config, checkpoint = make(tmp_path, scenes, head=simple('HalvingHead'))
    out = tmp_path / 'model.onnx'
    export(config, checkpoint, '-o', out)
    printed = ' '.join(capsys.readouterr().out.split())
    for says in ('any number of pictures, any height', 'a picture at a time, any height'):
        for place in ('', ', traced at 333 x 517'):
            assert f'not for {says} and width{place}: it is wrong at 96 x 96' in printed
    assert 'a picture at a time, of 96 x 96' in printed
    model = Model(out)
    assert model.session.get_inputs()[0].shape == [1, 96, 96, 3]
    assert model.meta['resize'] == dict(scale=[96, 96], keep_ratio=False)
    assert model(np.zeros((50, 200, 3), np.uint8)).shape == (50, 200)


def test_a_file_that_differs_is_not_written(scenes, tmp_path):
    config, checkpoint = make(tmp_path, scenes, head=simple('OtherwiseTracedHead'))
    message = refused(config, checkpoint, tmp_path / 'model.onnx', '--static', 64, 64)
    assert 'none predicts what the framework does' in message
    assert 'it is wrong at 64 x 64' in message


def test_a_model_that_does_not_repeat_itself_is_refused(scenes, tmp_path):
    config, checkpoint = make(tmp_path, scenes, head=simple('RandomHead'))
    message = refused(config, checkpoint, tmp_path / 'model.onnx')
    assert 'RandomHead cannot be exported: it does not predict the same twice' in message


def test_sizes_are_larger_where_the_framework_needs_it(scenes, tmp_path, pictures):
    """LRASPP's window of 49 x 49 is 196 x 196 pixels here."""
    kinds = 'in_channels=(16, 16, 16), in_index=(0, 0, 0), branch_channels=(8, 8), channels=8'
    head = simple('LRASPPHead').replace('in_channels=16, in_index=0, channels=16', kinds)
    config, _ = make(tmp_path, scenes, head=head + ", input_transform='multiple_select'")
    model = randomise(build(Config.fromfile(config).model, 'cpu'))
    images = [read(pictures / f'{key}.png')[0] for key in 'ab']
    verifier = Verifier(model, graph_of(model, 'labels'), images)
    assert verifier.possible((333, 517)) == (333, 517)
    assert verifier.possible((96, 128)) == (387, 515)
    assert verifier.possible((195, 200)) == (224, 224)  # multiples of 32
    with pytest.raises(Differs, match='the framework itself does not predict at 20 x 30'):
        verifier.possible((20, 30))


def test_pictures_that_prove_nothing_are_refused(scenes, tmp_path):
    config, checkpoint = make(tmp_path, scenes)
    tensors = torch.load(checkpoint)['state_dict']
    tensors['decode_head.conv_seg.bias'][3] = 1000
    torch.save(dict(state_dict=tensors), checkpoint)
    message = refused(config, checkpoint, tmp_path / 'model.onnx')
    assert 'the model sees a single class in 4 pictures' in message and '--images' in message


def test_a_model_that_predicts_in_its_own_way_is_refused_by_name(scenes, tmp_path):
    config, checkpoint = make(tmp_path, scenes)
    Path(config).write_text(
        Path(config).read_text().replace('model = dict(', "model = dict(type='OtherSegmentor',")
    )
    message = refused(config, checkpoint, tmp_path / 'model.onnx')
    assert 'OtherSegmentor cannot be exported' in message
    assert 'OtherSegmentor.postprocess_result' in message


def test_what_is_missing_is_said(scenes, tmp_path):
    config, checkpoint = make(tmp_path, scenes)
    out = tmp_path / 'model.onnx'
    (tmp_path / 'empty').mkdir()
    assert 'no pictures' in refused(config, checkpoint, out, '--images', tmp_path / 'empty')
    absent = refused(config, checkpoint, out, '--data-root', tmp_path / 'empty')
    assert 'test split' in absent and '--images FOLDER' in absent
    (tmp_path / 'empty' / 'broken.png').touch()
    broken = refused(config, checkpoint, out, '--images', tmp_path / 'empty' / 'broken.png')
    assert 'broken.png: the file is empty' in broken


def test_windows_of_large_pictures_are_refused(scenes, tmp_path):
    config, checkpoint = make(tmp_path, scenes, test_cfg=SLIDING.replace('slide', 'strips'))
    message = refused(config, checkpoint, tmp_path / 'model.onnx')
    assert "EncoderDecoder cannot be exported with test_cfg.mode='strips'" in message


def test_a_file_of_an_unknown_pipeline_is_not_resized_for(scenes, tmp_path, capsys):
    """A static file neither; and it is verified with a picture and its mirror image."""
    config, checkpoint = make(tmp_path, scenes)
    text = Path(config).read_text()
    Path(config).write_text(
        text.replace('resize, dict', "resize, dict(type='Pad', size_divisor=32), dict")
    )
    out, photo = tmp_path / 'model.onnx', sorted((scenes / 'ade/images/test').glob('*'))[0]
    export(config, checkpoint, '-o', out, '--static', 64, 96, '--images', photo)
    printed = ' '.join(capsys.readouterr().out.split())
    assert 'resize the pictures yourself' in printed and '64 x 96: 100 % equal' in printed
    model = Model(out)
    assert model.meta['resize'] is None
    with pytest.raises(UnusableFile, match='does not say how images are resized'):
        model(np.zeros((64, 96, 3), np.uint8))
    file = ExportedFile(str(out), 'onnxruntime')
    data = SegDataSample(metainfo=dict(ori_shape=(9, 9)))
    images = [torch.zeros(3, height, 96, dtype=torch.uint8) for height in (64, 65)]
    (seen,) = file.test_step(dict(inputs=images[:1], data_samples=[data]))
    assert seen.pred_sem_seg.shape == (9, 9)
    with pytest.raises(ConfigError, match=r'pictures of \(64, 96\) \(height, width\), and the'):
        file.test_step(dict(inputs=images[1:], data_samples=[data]))


@pytest.mark.parametrize('output', ['labels', 'logits'])
def test_a_single_channel_is_compared(output, scenes, tmp_path, pictures):
    config, checkpoint = make(tmp_path, scenes, head=BINARY)
    model = build(Config.fromfile(config).model, 'cpu')
    load(model, checkpoint)
    graph = graph_of(model, output).eval()
    images, size = [read(pictures / f'{key}.png')[0] for key in 'ab'], (90, 131)
    verifier = Verifier(model, graph, images)
    verifier.refuse_chance(size)
    inputs = {k: torch.from_numpy(x) for k, x in verifier.inputs(images, size).items()}
    with torch.no_grad():
        outputs = [(image,) for image in graph(**inputs).numpy()]
    compare = _same_labels if output == 'labels' else verifier.same_logits
    compared, equal, note, _ = compare(verifier.expected(size), outputs, EXACT)
    assert equal == compared > 0 and note.startswith('2 classes')


def test_a_single_channel_is_drawn_while_it_trains(scenes, tmp_path):
    config, checkpoint = make(tmp_path, scenes, head=BINARY)
    photo = sorted((scenes / 'ade/images/test').glob('*'))[0]
    (sample,) = [inferencer(config, checkpoint, 'cpu')(str(photo), return_datasamples=True)]
    sample.set_metainfo(dict(img_path=str(photo)))
    assert sample.pred_sem_seg.data.is_floating_point()
    colours = dict(classes=('a', 'b'), palette=[(255, 0, 0), (0, 255, 0)])
    shown, present = draw_example(SimpleNamespace(dataset_meta=colours), sample)
    assert shown.shape[:2] == sample.ori_shape and present and present <= {0, 1}


@pytest.mark.parametrize(
    'step, pixels',
    [
        (dict(type='Resize', scale=(8, 8), backend='pillow'), 'others'),
        (dict(type='LoadImageFromFile', color_type='grayscale'), 'others'),
        (dict(type='LoadImageFromFile', to_float32=True, backend_args=None), 'the same'),
    ],
    ids=str,
)
def test_options_of_steps_that_change_pixels_have_no_rule(step, pixels):
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=[step]))))
    assert (resize_rule(cfg) is None) == (pixels == 'others')


@pytest.mark.parametrize('steps', [[], ['Pad'], ['Resize', 'Resize'], ['RandomFlip']], ids=str)
def test_pipelines_that_are_not_known_have_no_rule(steps):
    def rule(*steps):
        pipeline = [dict(type=step, scale=(8, 8)) for step in steps]
        return resize_rule(Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline)))))

    assert rule(*steps) is None
    assert rule('LoadImageFromFile', 'PackSegInputs') == {}
    assert rule('LoadImageFromFile', 'mmseg.Resize') == dict(scale=[8, 8], keep_ratio=False)


# ---- what torch's exporter turns into numbers ----


class Traps(nn.Module):
    """Each trap as the frameworks have it: (N, 3, H, W) -> a tensor for each."""

    def __init__(self, *names):
        super().__init__()
        self.names = names
        self.up, self.pool = Upsample(scale_factor=1.5, mode='bilinear'), nn.AdaptiveAvgPool2d(3)

    def forward(self, x):
        return tuple(getattr(self, f'_{name}')(x) for name in self.names)

    def _adaptive_avg_pool2d(self, x):
        return self.pool(x)

    def _adaptive_max_pool2d(self, x):  # to the size of another map, as Libra R-CNN
        return F.adaptive_max_pool2d(x, (x.shape[2] // 2, x.shape[3] // 3))

    def _int(self, x):
        size = x.shape[2] + 3, x.shape[3] + 5
        return self.up(x) + mmseg_resize(x, size, None, 'bilinear', True).mean((2, 3), True)

    def _linspace(self, x):
        height, width = x.shape[2:]
        return torch.linspace(0.5, height - 0.5, height)[:, None] * torch.linspace(-1, 1, width)

    def _new_tensor(self, x):
        return x / x.new_tensor(x.shape[2:]).sum() + x.new_tensor([[x.shape[3]]])

    def _as_tensor(self, x):
        return x * torch.as_tensor(x.shape[3])

    def _inverse_sigmoid(self, x):
        x = x.sigmoid()
        return deformable_detr_head.inverse_sigmoid(x) + deformable_detr_layers.inverse_sigmoid(x)

    def __shape_as_tensor(self, x):
        return torch._shape_as_tensor(x)[2:].float()


setattr(Traps, '__shape_as_tensor', Traps._Traps__shape_as_tensor)
NAMES = (  # those of the cures
    *('adaptive_avg_pool2d', 'int', 'linspace', 'new_tensor', 'as_tensor', '_shape_as_tensor'),
    *('inverse_sigmoid', 'adaptive_max_pool2d'),
)


def run_elsewhere(names, path):
    """Exported at 40 x 48, run at 333 x 517: largest differences from torch."""
    free = torch.export.Dim.DYNAMIC
    net, x = Traps(*names), torch.rand(2, 3, 40, 48)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: free, 2: free, 3: free},))
    torch.onnx.export(program, (), path, dynamo=True, verbose=False, input_names=['x'])
    elsewhere = torch.rand(3, 3, 333, 517)
    outputs = onnxruntime.InferenceSession(path).run(None, dict(x=elsewhere.numpy()))
    expected = net(elsewhere)
    assert [a.shape for a in outputs] == [tuple(b.shape) for b in expected]
    return [
        (torch.from_numpy(a) - b).abs().max() / b.abs().max() for a, b in zip(outputs, expected)
    ]


def test_sizes_stay_symbols_in_the_file(tmp_path):
    with traceable():
        differences = run_elsewhere(NAMES, tmp_path / 'traps.onnx')
    assert max(differences) < 1e-4


@pytest.mark.parametrize('name', NAMES)
def test_without_its_cure_each_trap_is_wrong(name, tmp_path, monkeypatch):
    cures = tracing._replacements
    monkeypatch.setattr(
        tracing, '_replacements', lambda: [cure for cure in cures() if cure[1] != name]
    )
    with pytest.raises(Exception), traceable():  # noqa: B017 of torch, onnxruntime or the shapes
        assert max(run_elsewhere([name], tmp_path / 'trap.onnx')) < 1e-4


def test_the_cures_are_those_functions_and_leave_nothing_behind():
    wrappers = sys.modules['mmseg.models.utils.wrappers']
    watched = (torch, torch.Tensor, F, wrappers, deformable_detr_head, deformable_detr_layers)
    x = torch.rand(2, 3, 37, 53)
    expected = Traps(*NAMES)(x)  # modules keep of which lines they have warned
    before = [dict(vars(owner)) for owner in watched]
    with pytest.raises(ZeroDivisionError), traceable():
        outputs = Traps(*NAMES)(x)
        1 / 0  # noqa: B018
    assert [dict(vars(owner)) for owner in watched] == before
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(outputs, expected))
