"""The census of exports: of each family of mmdet and mmseg a model on ConvNeXt-atto.

Weights are random and pictures are generated, so that nothing is downloaded: what is compared is
the file with the framework, not with the truth. Each family has a process of its own.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import init_default_scope
from PIL import Image
from torch import nn

from ..errors import ConfigError
from ..export.writing import export
from ..inference.building import build
from ..printing import markdown_table
from ..swap import plan
from ..swap.config_files import read_config
from .census import code_digest, configs_of_libraries, fit_to_machine, make_bert, versions
from .peers import randomise
from .processes import Process, ask_each

LIMIT = 900  # seconds for a family
# Longest and shortest side of the pictures, in pixels; the second for models that are read at none
# but large ones.
SCALES = (320, 256), (1280, 1024)
PICTURES = 2
DETECTIONS, CLASSES = 100, 3  # at least, for a proof
PROPOSALS = 200  # of two-stage detectors, which cost most
SEEN = 8  # classes of a segmentor that can win; of 150 none would have its share of the labels
# Random weights of Mask2Former are multiplied by these, or all queries see the same.
OF_QUERIES = {'query_': 16, 'out_proj': 0.3, 'ffn.layers.1': 0.3}
SPREAD = 3  # of logits among queries
STEP = 0.1  # of the weights by which DINO moves boxes, or each layer multiplies rounding errors
SCORE = 0.01  # threshold: random weights give each of 80 classes 1 / 81
NOT_READ = 'commands', 'demo', 'doctor', 'training'  # of this package
STATES = dict(
    equal='equal',
    unproven='unproven',
    refused='refused',
    failed='failed',
    cannot='its backbone cannot be exchanged',
)
# Parts of messages: a model was refused; a model was traced, but in vain.
REFUSALS = 'cannot be exported', 'which is not known', 'known is', 'a way of its own'
TRACED = 'none predicts what the framework does'


@dataclass
class Row:
    """What came of a family."""

    family: str  # LIBRARY/FAMILY
    config: str
    state: str  # a key of STATES
    says: str  # which sizes the file takes; or why there is none
    seen: str = ''  # what was compared


def export_census(only: str, folder: Path) -> list[Row]:
    """A row for each family; those of an earlier run of the same code are kept in ``folder``.

    Args:
        only: part of a config's path.
    """
    families: dict[str, list[str]] = {}
    places: dict[str, Path] = {}
    for config in configs_of_libraries(only):
        families.setdefault(config.family, []).append(str(config.path))
        places[config.family] = config.folder
    code = code_digest(*NOT_READ)[:12]
    with tempfile.TemporaryDirectory() as bert:
        make_bert(bert)
        starts = {
            folder / f'{family.replace("/", "-")}-{code}.json': partial(
                Process, Trial, family, configs, places[family], bert
            )
            for family, configs in families.items()
        }
        answers = ask_each('row', starts, LIMIT)
    return [
        Row(family, Path(configs[0]).name, 'failed', str(answer)[:300])
        if isinstance(answer, RuntimeError)
        else Row(**answer)
        for (family, configs), answer in zip(families.items(), answers)
    ]


class Trial:
    """The first config of a family that can be traced, in a process of its own.

    Args:
        folder: that paths in the configs are relative to, as that of a distilled model's teacher.
        bert: folder of the BERT that takes the place of the published one.
    """

    def __init__(self, family: str, configs: Sequence[str], folder: Path, bert: str):
        self.family, self.configs, self.bert = family, configs, bert
        os.chdir(folder)
        torch.set_num_threads(1)

    def row(self) -> Row:
        rows = []
        for config in self.configs:
            try:
                cfg = read_config(Path(config))
                cfg.model = fit_to_machine(cfg.get('model'), self.bert)
                cfg = plan(cfg, 'atto').cfg
            except Exception as error:  # of any config
                state = 'cannot' if isinstance(error, ConfigError) else 'failed'
                rows.append(Row(self.family, Path(config).name, state, in_a_line(error)))
                continue
            for scale in SCALES:
                result = self._exported(cfg, scale)
                if result[0] != 'failed' or TRACED in result[1]:
                    break
            rows.append(Row(self.family, Path(config).name, *result))
            if rows[-1].state in ('equal', 'unproven') or TRACED in rows[-1].says:
                return rows[-1]
        order = 'refused', 'failed', 'cannot'
        return min(rows, key=lambda row: order.index(row.state))

    def _exported(self, cfg, scale) -> tuple[str, str, str]:
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        kind = 'Seg' if 'decode_head' in cfg.model else 'Det'
        pipeline = [
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=scale, keep_ratio=True),
            dict(type=f'Pack{kind}Inputs'),
        ]
        cfg.setdefault('test_dataloader', dict(dataset=dict()))
        cfg.test_dataloader.dataset.pipeline = pipeline
        test_cfg = cfg.model.get('test_cfg') or {}
        for part in (test_cfg, test_cfg.get('rcnn') or {}):
            if 'score_thr' in part:
                part['score_thr'] = min(part['score_thr'], SCORE)
        if test_cfg.get('rpn'):
            test_cfg['rpn'].update(nms_pre=PROPOSALS, max_per_img=PROPOSALS)
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / 'pictures').mkdir()
            for i in range(PICTURES):
                picture(i, scale).save(folder / f'pictures/{i}.png')
            try:
                model: Any = randomise(build(cfg.model, 'cpu'))
                if kind == 'Seg':
                    balance(model, picture(0, scale))
                for name, parameter in model.named_parameters():
                    if 'reg_branches' in name and parameter.dim() > 1:
                        parameter.data *= STEP
                torch.save(dict(state_dict=model.state_dict()), folder / 'model.pth')
                done = export(
                    cfg,
                    str(folder / 'model.pth'),
                    folder / 'model.onnx',
                    folder / 'pictures',
                    say=lambda line: None,
                )
            except Exception as error:  # of any model
                text = in_a_line(error)
                state = 'refused' if any(part in text for part in REFUSALS) else 'failed'
                state = 'unproven' if 'That proves nothing' in text else state
                return state, text, ''
        compared = sum(row.compared for row in done.rows if row.engine == done.rows[0].engine)
        seen, is_proof = f'{compared} detections', compared >= DETECTIONS
        if kind == 'Seg':
            seen = f'{compared} labels'
            is_proof = done.rows[0].classes >= min(CLASSES, model.num_classes)
        return 'equal' if is_proof else 'unproven', '; '.join([done.says, *done.notes])[:400], seen


def in_a_line(error: Exception) -> str:
    return (' '.join(str(error).split()) or type(error).__name__)[:400]


def picture(seed: int, scale: tuple[int, int] = SCALES[0]) -> Image.Image:
    """Patches of all colours, of another width each time."""
    patches = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)
    return Image.fromarray(patches).resize((scale[0] + 40 * seed, scale[1]))


def balance(model: Any, image: Image.Image) -> None:
    """Change a segmentor's random weights in its last layers so that several classes are seen."""
    from mmseg.structures import SegDataSample

    head = model.decode_head
    is_of_queries = hasattr(head, 'cls_embed')  # of MaskFormer and Mask2Former
    last = [
        layer
        for name, layer in head.named_modules()
        if name.rpartition('.')[2] == 'conv_seg' and isinstance(layer, nn.Conv2d)
    ]
    if is_of_queries:
        last = [head.cls_embed, head.mask_embed[-1]]
    outputs: dict[Any, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, _, output: outputs.update({layer: output}))
        for layer in last
    ]
    bgr = torch.from_numpy(np.asarray(image)[..., ::-1].copy()).permute(2, 0, 1)
    shapes = dict(img_shape=bgr.shape[1:], ori_shape=bgr.shape[1:])
    with torch.no_grad():
        for name, parameter in head.named_parameters() if is_of_queries else ():
            for part, factor in OF_QUERIES.items():
                if part in name:
                    parameter *= factor
            if name.endswith('mask_feature.weight'):  # its inputs are positive
                parameter -= parameter.mean(1, keepdim=True)
        model.test_step(dict(inputs=[bgr], data_samples=[SegDataSample(metainfo=shapes)]))
        for hook in hooks:
            hook.remove()
        for layer, output in outputs.items():
            if is_of_queries:
                values = output.flatten(0, -2)[-head.num_queries :]  # of the last layer
                # a mask is a product of as many numbers
                count = 1 if layer is head.cls_embed else values.shape[1]
                layer.bias -= values.mean(0)
                for parameter in layer.parameters():
                    parameter *= SPREAD / count**0.5 / values.std(0).mean()
            elif layer.bias is not None:
                layer.bias -= output.mean((0, 2, 3))
                layer.bias[SEEN:] -= 1000


def report(rows: Sequence[Row]) -> str:
    """The page in Markdown."""
    counts = Counter(row.state for row in rows)
    totals = ', '.join(f'{counts[state]} {text}' for state, text in STATES.items())
    lines = [[row.family, f'`{row.config}`', STATES[row.state], row.says, row.seen] for row in rows]
    return (
        f'# Census of exports\n\nMade by `make census-export`; ConvNeXt-atto.\n{versions()}\n\n'
        f'{len(rows)} families: {totals}.\n\n'
        + markdown_table(['family', 'config', 'outcome', 'sizes, or why not', 'compared'], lines)
        + '\n'
    )
