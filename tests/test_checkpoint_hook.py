"""A detector that starts from another: the parts that may differ are named, the rest is loaded. And
weights that are averaged while they are trained."""

import json
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from storm.kills import differing

from conftest import DEMO, ROOT, demo_options
from convnext_dense import ConfigError, WeightsError
from convnext_dense.commands import test, train
from convnext_dense.inference.building import build, load
from convnext_dense.weights.comparing import check_names

RECIPES = (ROOT / 'docs/recipes.md').read_text()
OWN_DATA = (ROOT / 'docs/own-data.md').read_text()
FASTER = re.search(r"```python\n_base_ = 'my_detector.py'\n(.*?)```", OWN_DATA, re.DOTALL)[1]
CASCADE = """
head, rcnn = _base_.model.roi_head.bbox_head, _base_.model.train_cfg.rcnn
model = dict(
    type='CascadeRCNN', train_cfg=dict(rcnn=[rcnn, rcnn]),
    roi_head=dict(type='CascadeRoIHead', num_stages=2, stage_loss_weights=[1, 0.5],
                  bbox_head=[head, head]))
"""


@pytest.fixture(scope='module')
def mask_rcnn(tmp_path_factory):
    """Path of a Mask R-CNN's checkpoint, and its tensors."""
    init_default_scope('mmdet')
    tensors = MODELS.build(Config.fromfile(ROOT / DEMO['coco']).model).state_dict()
    path = tmp_path_factory.mktemp('mask_rcnn') / 'mask_rcnn.pth'
    torch.save(dict(state_dict=tensors), path)
    return path, tensors


@pytest.fixture
def detector(mask_rcnn, scenes, tmp_path):
    """``detector(text, **hook)`` is the demo's config with ``text``. It trains one step from the
    Mask R-CNN, at a rate of 0, and tests on one scene."""

    def make(text, **hook):
        (tmp_path / 'config.py').write_text(f"_base_ = '{ROOT / DEMO['coco']}'\n{text}")
        cfg = Config.fromfile(tmp_path / 'config.py')
        options = dict(work_dir=str(tmp_path), load_from=str(mask_rcnn[0]), custom_hooks=[])
        options.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
        options.update(train_cfg=dict(max_iters=1), optim_wrapper=dict(optimizer=dict(lr=0.0)))
        cfg.merge_from_dict(options | dict(default_hooks=dict(checkpoint=hook)))
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            loader.update(batch_size=1, num_workers=0, persistent_workers=False)
            loader.dataset.update(data_root=f'{scenes}/coco/', indices=1)
        cfg.test_evaluator.ann_file = f'{scenes}/coco/annotations/instances_test2017.json'
        return cfg

    return make


@pytest.mark.parametrize(
    'text, hook, part, left, dropped',
    [
        (FASTER, {}, 'roi_head.mask_head', 0, 8),
        (CASCADE, dict(may_differ='roi_head'), 'roi_head', 32, 16),
    ],
    ids=['faster', 'cascade'],
)
def test_training_starts_once_parts_are_named(
    text, hook, part, left, dropped, detector, mask_rcnn, tmp_path
):
    """The refusal tells which; then everything outside the part is loaded, and a warning counts the
    tensors inside it that are not."""
    with pytest.raises(WeightsError, match='not of this model') as refused:
        Runner.from_cfg(detector(text, may_differ=[])).train()
    advice = f"default_hooks = dict(checkpoint=dict(may_differ=['{part}']))"
    assert str(refused.value).endswith(advice)
    runner = Runner.from_cfg(detector(text, **hook))
    runner.train()
    trained, tensors = runner.model.state_dict(), mask_rcnn[1]
    common = trained.keys() & tensors.keys()
    assert common >= {name for name in tensors if not name.startswith(part)}
    assert all(torch.equal(trained[name], tensors[name]) for name in common)
    log = ''.join(path.read_text() for path in tmp_path.glob('*/*.log'))
    counts = f'{left} tensors of the model left as initialised, {dropped} of the checkpoint dropped'
    assert f'WARNING - may_differ, {part}: {counts}' in log


def test_parts_may_not_differ_to_resume_or_test(detector, tmp_path):
    cfg = detector(FASTER)
    with pytest.raises(WeightsError, match='not of this model'):
        Runner.from_cfg(cfg).test()
    cfg.resume = True
    with pytest.raises(WeightsError, match='not of this model'):
        Runner.from_cfg(cfg).train()
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'faster.pth')
    cfg.load_from, cfg.resume = str(tmp_path / 'faster.pth'), False
    # a checkpoint of this very model is tested, although the part in may_differ is not in it
    assert 'coco/bbox_mAP' in Runner.from_cfg(cfg).test()


def test_parts_that_are_in_the_backbone_or_nowhere_are_refused(mask_rcnn):
    cfg, tensors = Config.fromfile(ROOT / DEMO['coco']), mask_rcnn[1]
    model = MODELS.build(cfg.model)
    for part, message in (
        ('roi_head.mask', "'roi_head.mask' is in neither.*such as .*roi_head.mask_head"),
        ('backbone', 'reaches into the backbone'),
        ('backbone.norm0', 'reaches into the backbone'),
    ):
        with pytest.raises(ConfigError, match=message):
            check_names(model, tensors, True, [part])


def test_the_largest_parts_that_differ_are_advised(mask_rcnn):
    """A part is advised whole if none of its tensors fits."""
    cfg, tensors = Config.fromfile(ROOT / DEMO['coco']), mask_rcnn[1]
    cfg.model.roi_head.mask_head.num_convs = 3
    cfg.model.neck.norm_cfg.num_groups, cfg.model.neck.out_channels = 4, 32
    model = MODELS.build(cfg.model)
    with pytest.raises(WeightsError, match=r"may_differ=\['roi_head.mask_head.convs.2', 'neck'\]"):
        check_names(model, tensors, True)
    assert len(check_names(model, tensors, True, ['roi_head.mask_head.convs.2', 'neck'])) == 2


# ---- averaged weights ----

EMA = re.search(r'convnext-dense train RECIPE --cfg-options \\\n(.*?)```', RECIPES, re.DOTALL)[1]
AVERAGED = [option.replace('0.0002', '0.5') for option in EMA.split()]


def train_averaged(work, scenes, *arguments):
    """The demo's segmentor by the documented line, but with more of each step in the average."""
    options = {
        'visualizer.name': work,  # MMEngine keeps one for each name
        'train_dataloader.batch_size': 2,
        'val_dataloader.dataset.indices': 1,
        'optim_wrapper.optimizer.lr': 0.01,
        'train_cfg.max_iters': 3,
        'train_cfg.val_interval': 3,
        'default_hooks.checkpoint.interval': 1,
    }
    command = [DEMO['ade'], '--work-dir', work, *arguments]
    train.main(
        [str(part) for part in [*command, *demo_options('ade', scenes, **options), *AVERAGED]]
    )


def scored(checkpoint, scenes, work):
    images = {  # those of the evaluation
        'test_dataloader.dataset.indices': 1,
        'test_dataloader.dataset.data_prefix.img_path': 'images/validation',
        'test_dataloader.dataset.data_prefix.seg_map_path': 'annotations/validation',
    }
    options = demo_options('ade', scenes, **{'visualizer.name': work} | images)
    command = [DEMO['ade'], checkpoint, '--work-dir', work, *options]
    test.main([str(part) for part in command])
    return score_in(work)


def score_in(work):
    """The last mIoU that was logged."""
    texts = [path.read_text() for path in sorted(work.glob('*/vis_data/scalars.json'))]
    texts += [path.read_text() for path in work.glob('*/*.json')]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    return [row['mIoU'] for row in rows if 'mIoU' in row][-1]


def test_averaged_weights_are_saved_scored_and_resumed(scenes, tmp_path, exits):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    train_averaged(whole, scenes)
    saved = [torch.load(whole / f'iter_{i}.pth', weights_only=False) for i in (1, 2, 3)]
    for before, after in zip(saved, saved[1:]):
        trained = after['ema_state_dict']
        for name, tensor in after['state_dict'].items():
            if tensor.is_floating_point() and 'running' not in name:
                expected = (before['state_dict'][name] + trained[f'module.{name}']) / 2
                assert torch.allclose(tensor, expected, rtol=1e-5, atol=1e-7), name

    resume = '--work-dir', parts, '--resume', whole / 'iter_2.pth'
    data = demo_options('ade', scenes, **{'visualizer.name': 'without'})
    message = exits('train', DEMO['ade'], *resume, *data)
    assert 'Resume with --cfg-options default_hooks.ema.type=EMAHook' in message
    train_averaged(parts, scenes, *resume[2:])
    resumed = torch.load(parts / 'iter_3.pth', weights_only=False)
    for key in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert differing(resumed[key], saved[-1][key], key) == []

    # as trained, they have other scores than averaged
    trained = {name[7:]: x for name, x in saved[-1]['ema_state_dict'].items() if name != 'steps'}
    torch.save(dict(state_dict=trained), tmp_path / 'trained.pth')
    scores = [
        scored(checkpoint, scenes, tmp_path / f'test_{i}')
        for i, checkpoint in enumerate([whole / 'iter_3.pth', tmp_path / 'trained.pth'])
    ]
    assert score_in(whole) == scores[0] != scores[1]
    model = build(Config.fromfile(ROOT / DEMO['ade']).model, 'cpu')
    load(model, whole / 'iter_3.pth')  # as predict, export and compare do
    assert differing(model.state_dict(), saved[-1]['state_dict'], 'state_dict') == []
