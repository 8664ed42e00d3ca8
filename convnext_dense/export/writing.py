"""A trained model -> a verified file, as dynamic as holds."""

import ast
import contextlib
import copy
import importlib.util
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, init_default_scope
from torch import nn

from ..data.pictures import read
from ..errors import ConfigError, DataError
from ..folding import fuse
from ..inference.building import build, load
from ..inference.prediction import classes_of
from ..printing import quiet
from ..runtime.model import FORMAT, KEY, UNSIGNED, signed
from ..runtime.predictions import IMAGES
from ..runtime.resizing import target_size
from ..training.work_dir import put_in_place, remove, unfinished
from ..weights import PRESETS, downloading, presets
from .common import Graph
from .engines import ENGINES, NAMES
from .families import graph_of
from .halving import halved
from .quantising import quantised
from .tracing import traceable
from .verifying import EXACT, ODD, ROUNDED, Differs, Row, Tolerance, Verifier, first_line

OPSET = 20
PICTURES = 4  # that are compared at each size
CALIBRATION = 24  # pictures at most, on which the range of values is measured for int8
SCOPES = 'pkg.torch.onnx.name_scopes'  # the exporter's key of the modules that an operator is in
NEEDED = 'onnx', 'onnxscript', 'onnxruntime'
STEPS = {  # of a pipeline, that leave the pixels as they are
    'LoadImageFromFile',
    'LoadAnnotations',
    'LoadPanopticAnnotations',
    'IgnoreLabels',
    'PackDetInputs',
    'PackSegInputs',
}
# Of steps, what the runner does; with another value the pixels are others.
READ = dict(interpolation='bilinear', backend='cv2', color_type='color')
PACKAGES = (
    *('torch', 'onnx', 'onnxscript', 'onnxruntime', 'onedl-mmengine', 'mmengine', 'onedl-mmcv'),
    *('mmcv', 'onedl-mmdetection', 'mmdet', 'onedl-mmsegmentation', 'mmsegmentation'),
)
LARGEST = 2**31 - 1  # bytes of a file in protobuf's format


class Attempt(NamedTuple):
    says: str
    dimensions: tuple[str | None, ...]  # names of those of the image (N, H, W, 3) that are free
    # A size that no stride divides is traced: ISANet pads such maps, and takes a branch for it.
    is_odd: bool = False


MANY = 'any number of pictures, any height and width', ('N', 'H', 'W')
SINGLE = 'a picture at a time, any height and width', (None, 'H', 'W')
ATTEMPTS = (
    Attempt(*MANY),
    Attempt(*MANY, is_odd=True),
    Attempt(*SINGLE),
    Attempt(*SINGLE, is_odd=True),
    Attempt('a picture at a time, of {} x {}', (None, None, None)),
)


class Exported(NamedTuple):
    """What was written."""

    says: str  # which sizes it takes
    rows: list[Row]  # how it was verified
    notes: list[str]  # what was given up, and what else is to be known


def export(
    cfg: Config,
    checkpoint: str,
    path: Path,
    images: Path | None = None,
    output: str = 'labels',
    static: tuple[int, int] | None = None,
    is_fused: bool = True,
    precision: str = 'fp32',
    say: Callable[[str], None] = print,
) -> Exported:
    """Write the model of a config with its trained weights to ``path``, in ONNX.

    Inputs of the graph: ``image`` (N, H, W, 3) uint8, RGB, resized already; of a segmentor and of
    Mask2Former ``size`` (2,) int64, height and width of what it gives. Outputs: of a segmentor
    ``labels`` (N, h, w), or ``logits`` (N, C, h, w); of a detector ``boxes`` (N, M, 4) in pixels of
    the image, ``scores`` (N, M), -1 where there is nothing, ``labels`` (N, M), and ``masks``
    (N, M, S, S) in the boxes; of Mask2Former boxes, and masks (N, M, h, w), of that size.

    Args:
        checkpoint: path or URL.
        images: a picture or a folder of pictures to verify with; default: the test split.
        output: of a segmentor, ``'labels'`` or ``'logits'``.
        static: height and width of the only size that the file takes.
        is_fused: export what ``fuse`` makes of the model.
        precision: ``'fp32'``; ``'fp16'``: of the network's layers; ``'int8'``: of the linear layers
            of ConvNeXt's blocks.
        say: is called with lines about what is being done.

    Raises:
        ConfigError: something is missing here; the model predicts in a way that is not known; the
            pictures prove nothing; or no file predicts what the framework does.
        WeightsError: the checkpoint cannot be read, or is not of this model.
    """
    _check_environment()
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    with quiet():
        model = revert_sync_batchnorm(build(cfg.model, 'cpu'))
    meta = classes_of(cfg, load(model, checkpoint))
    traced, notes = _fused(model) if is_fused else (copy.deepcopy(model), [])
    graph = graph_of(traced, output).eval()
    pictures = _pictures(cfg, images)
    if len(pictures) == 1:  # so that more are run at once
        pictures.append(pictures[0][:, ::-1].copy())
    rule = resize_rule(cfg)
    height, width, _ = pictures[0].shape
    size = height, width = static or target_size(height, width, rule or {})
    tall = max(96, max(size) // 2)
    sizes = [size, ODD, (max(64, 3 * width // 4), max(64, 3 * height // 4)), (tall, tall * 2 // 3)]
    verifier = Verifier(model, graph, pictures)
    meta |= dict(
        format=FORMAT,
        task='detection' if graph.outputs[0] == 'boxes' else 'segmentation',
        output=graph.outputs[0],
        thresholds=graph.thresholds,
        resize=rule,
        config=Path(cfg.filename or 'config').name,
        checkpoint=dict(name=checkpoint.rpartition('/')[2], sha256=_digest(checkpoint)),
        licence=_licence(cfg),
        fused=is_fused and not notes,
        precision=precision,
        versions=_versions(),
        digest=UNSIGNED.decode(),
    )
    if rule is None:
        notes.append(
            'its pipeline resizes in a way that is not written into the file: resize the pictures '
            'yourself'
        )
    try:  # before minutes are spent on tracing
        verifier.refuse_chance(size)
    except Differs as error:
        raise ConfigError(f'no file was written: {error}') from error
    reasons = []
    attempts = ATTEMPTS[-1:] if static else ATTEMPTS
    if not static:
        try:
            wanted, sizes = sizes, [verifier.possible(each) for each in sizes]
            for (h, w), other in zip(wanted, sizes):
                if other != (h, w):
                    say(f'the framework does not predict at {h} x {w}: compared at {other} instead')
        except Differs as error:
            attempts = ATTEMPTS[-1:]
            reasons.append(f'not for any height and width: {error}')
            say(reasons[-1])
    try:
        for attempt in attempts:
            says = attempt.says.format(*size)
            traced_size = sizes[1] if attempt.is_odd else size
            say(f'tracing for {says} ...')
            is_static = attempt is ATTEMPTS[-1]
            if is_static and rule is not None:
                meta['resize'] = dict(scale=size[::-1], keep_ratio=False)
            try:
                # a copy: some models keep what they computed, here tensors of the tracer
                proto = _converted(copy.deepcopy(graph), traced_size, attempt.dimensions)
                _write(proto, meta, unfinished(path))
                say('comparing with the framework ...')
                kept = sizes[:1] if is_static else sizes
                verify = partial(
                    verifier.verify, unfinished(path), kept, bool(attempt.dimensions[0])
                )
                rows = verify()
            except Differs as error:
                place = f', traced at {traced_size[0]} x {traced_size[1]}' * attempt.is_odd
                reasons.append(f'not for {says}{place}: {error}')
                say(reasons[-1])
                continue
            if precision != 'fp32':
                say('measuring ranges of values ...')
                seen = _pictures(cfg, images, CALIBRATION)
                inputs = [verifier.inputs([picture], size) for picture in seen]
                try:
                    rows = _rounded(unfinished(path), precision, inputs, meta, say, verify)
                except Differs as error:
                    raise ConfigError(
                        f'no file was written, since in {precision} {error}; in fp32 it is right'
                    ) from error
            more, said = _elsewhere(verify, EXACT if precision == 'fp32' else ROUNDED)
            if is_static and (rule or {}).get('keep_ratio'):
                said.append(f'pictures of other shapes are squeezed into {size[0]} x {size[1]}')
            put_in_place(path)
            return Exported(says, rows + more, notes + reasons + said)
    finally:
        remove(unfinished(path))
    raise ConfigError(
        'no file was written, since none predicts what the framework does:\n' + '\n'.join(reasons)
    )


def _rounded(
    path: Path, precision: str, inputs: Sequence[dict], meta: dict, say: Callable, verify: Callable
) -> list[Row]:
    """Replace a file in fp32 by one in another precision, and verify that."""
    if precision == 'int8':
        _write(quantised(path, inputs), meta, path)
        return verify(ROUNDED)
    half = halved(path, inputs)
    for line in half.report():
        say(f'  {line}')
    _write(half.simulation, meta, path)
    rows = verify(ROUNDED)
    _write(half.file, meta, path)
    verify(ROUNDED)  # it runs; onnxruntime's CPU operators compute it in fp32
    return rows


def _elsewhere(verify: Callable, tolerance: Tolerance) -> tuple[list[Row], list[str]]:
    """Rows of the other engines that are installed, and notes of those that the file is not for."""
    rows, notes = [], []
    for engine in ENGINES[1:]:
        if importlib.util.find_spec(engine):
            try:
                rows += verify(tolerance, engine)
            except Differs as error:
                notes.append(f'{NAMES[engine]}: not usable: {error}')
    return rows, notes


def _check_environment():
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'export needs {", ".join(missing)}: pip install {" ".join(missing)}')
    if not hasattr(getattr(getattr(torch, 'export', None), 'Dim', None), 'DYNAMIC'):
        raise ConfigError(f'export needs torch 2.6 or later, here is {torch.__version__}')


def _fused(model) -> tuple[nn.Module, list[str]]:
    try:
        return fuse(model), []
    except ConfigError as error:
        return copy.deepcopy(model), [f'not fused: {error}']


# ---- the graph ----


def _converted(graph: Graph, size: tuple[int, int], dimensions: Sequence[str | None]) -> Any:
    """The graph as a protocol buffer of ONNX.

    Raises:
        Differs: torch cannot follow it.
    """
    if dimensions[1]:
        size = max(size[0], graph.least[0]), max(size[1], graph.least[1])
    # two pictures: a dimension of 1 is taken for a constant
    image = torch.zeros(2 if dimensions[0] else 1, *size, 3, dtype=torch.uint8)
    arguments, shapes = [image], [_free(dimensions)]
    if 'size' in graph.inputs:
        arguments.append(torch.tensor(size))
        shapes.append(None)
    try:
        with torch.no_grad(), traceable(), _silence():
            program = torch.export.export(
                graph, tuple(arguments), dynamic_shapes=tuple(shapes), strict=False
            )
        with torch.no_grad(), _silence():
            converted = torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=graph.inputs,
                output_names=graph.outputs,
                custom_translation_table=graph.operators(),
            )
    except Exception as error:  # of torch's tracer and of whatever it meets in the model
        raise Differs(first_line(error)) from error
    assert converted is not None
    proto = converted.model_proto
    _tidy(proto, dimensions)
    return proto


def _free(dimensions):
    free = torch.export.Dim.DYNAMIC
    return {i: free for i, name in enumerate(dimensions) if name}


def _tidy(proto, dimensions) -> None:
    """Names for the dimensions; without the lines of code that each operator comes from."""
    main = proto.graph
    names = {}  # the exporter's -> ours
    for dimension, name in zip(main.input[0].type.tensor_type.shape.dim, dimensions):
        if name and dimension.dim_param:
            names[dimension.dim_param] = name
    if names:
        symbol = re.compile('|'.join(rf'\b{re.escape(name)}\b' for name in names))
        for value in [*main.input, *main.output]:
            for dimension in value.type.tensor_type.shape.dim:
                if dimension.dim_param:
                    dimension.dim_param = symbol.sub(
                        lambda match: names[match[0]], dimension.dim_param
                    )
    if len(main.input) > 1:  # the size of labels or masks is their own
        for dimension, name in zip(main.output[-1].type.tensor_type.shape.dim[-2:], 'hw'):
            dimension.dim_param = name
    del main.value_info[:]  # shapes between operators; onnxruntime infers them
    for i, node in enumerate(main.node):
        layer = _layer_of(node)
        node.name = f'{layer}/{node.op_type}_{i}' if layer else f'{node.op_type}_{i}'
    for part in [*main.node, *main.input, *main.output, *main.initializer]:
        part.ClearField('doc_string')
        part.ClearField('metadata_props')


def _layer_of(node) -> str | None:
    """Name in the model of the innermost module that an operator is in."""
    scopes = {part.key: part.value for part in node.metadata_props}.get(SCOPES, '[]')
    names = [name for name in ast.literal_eval(scopes) if name.startswith('model.')]
    return names[-1].removeprefix('model.') if names else None


def _write(proto, meta: dict, path: Path) -> None:
    """With what the file says of itself, and the digest of its bytes."""
    del proto.metadata_props[:]
    proto.metadata_props.add(key=KEY, value=json.dumps(meta))
    if proto.ByteSize() > LARGEST:
        raise ConfigError('the model is larger than 2 GB, which one file in ONNX cannot hold')
    content = proto.SerializeToString()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.replace(UNSIGNED, signed(content)))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the exporter's remarks on operators."""
    names = 'torch.onnx', 'torch.export', 'onnxscript', 'onnx_ir'
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


# ---- what it is verified with, and what it says of itself ----


def _pictures(cfg: Config, images: Path | None, count: int = PICTURES) -> list[np.ndarray]:
    """Real pictures, spread over a folder or the test split."""
    paths = _in_folder(images) if images else _test_split(cfg, count)
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    pictures = []
    for path in dict.fromkeys(chosen):
        try:
            pictures.append(read(Path(path))[0])
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises of broken files
            raise DataError(f'{path}: {error}') from error
    return pictures


def _in_folder(folder: Path) -> list[Path]:
    paths = [folder] if folder.is_file() else sorted(folder.rglob('*'))
    paths = [path for path in paths if path.suffix.lower() in IMAGES]
    if not paths:
        raise ConfigError(f'--images {folder}: no pictures; expected {", ".join(IMAGES)}')
    return paths


def _test_split(cfg: Config, count: int) -> list[str]:
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    try:
        if not dataset:
            raise ConfigError('the config has none')
        with quiet():
            built = DATASETS.build(dataset)
        if not len(built):
            raise ConfigError('it is empty')
        return [built.get_data_info(i * len(built) // count)['img_path'] for i in range(count)]
    except Exception as error:  # of any dataset
        raise ConfigError(
            'a file is verified on real pictures, and those of the test split cannot be had '
            f'({first_line(error)}): name a folder of pictures with --images FOLDER, or the '
            "data's with --data-root FOLDER"
        ) from error


def resize_rule(cfg: Config) -> dict | None:
    """The resizing of the config's test pipeline, as ``runtime.resizing.target_size`` takes it;
    None where the pipeline changes the pictures in another way."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    rule: dict = {}
    steps = dataset.get('pipeline')
    for step in steps or ():
        kind = getattr(step['type'], '__name__', step['type']).rpartition('.')[2]
        if any(step.get(key, value) != value for key, value in READ.items()):
            return None
        if kind == 'Resize' and not rule:
            key = 'scale' if step.get('scale') else 'scale_factor'
            value = step[key]
            value = [value] * 2 if isinstance(value, (int, float)) else list(value)
            rule = {key: value, 'keep_ratio': bool(step.get('keep_ratio'))}
        elif kind not in STEPS:
            return None
    return rule if steps else None


def _digest(checkpoint: str) -> str:
    is_url = checkpoint.startswith(('http://', 'https://'))
    return downloading.sha256_of(downloading.fetch(checkpoint) if is_url else Path(checkpoint))


def _licence(cfg: Config) -> str | None:
    """Of the weights that the training began with, where the config names a preset of them."""
    init = (cfg.model.get('backbone') or {}).get('init_cfg') or {}
    parts = init if isinstance(init, (list, tuple)) else [init]
    name = next(filter(None, (presets.find(part.get('checkpoint')) for part in parts)), None)
    return f'{PRESETS[name].licence} (backbone from {name})' if name else None


def _versions() -> dict[str, str]:
    package = sys.modules[__name__.partition('.')[0]]
    found = dict(convnext_dense=str(getattr(package, '__version__', '')))
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
