"""Refuses data that do not fit the config, before the first iteration and as they are read."""

from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..data.checked_pipeline import CheckedPipeline
from ..data.checking import COCO, LABEL_MAPS, classes_of, kind_of, leaves, quick_problems, source_of
from ..data.label_folder import UNKNOWN
from ..data.problems import COUNTED, REFUSED, Problem, describe
from ..errors import DataError
from ..registry import HOOKS

EVERYTHING = 'convnext-dense check CONFIG reads every file and draws what is wrong'


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Compares the data with the config, where it begins to read a split.

    - The classes are those that mmdet gives the annotation file's categories, in the same order,
      and the same in all splits; the heads predict as many.
    - The headers of 200 images of each data set have the sizes that the annotations have.
    - Each sample is looked at as it is read (:class:`CheckedPipeline`).

    What is left out of training (objects outside of their image, images of another suffix, ...) is
    counted in the log, once; in annotation files above 32 MB it is not.
    Knows mmdet's CocoDataset and mmseg's BaseSegDataset; of others only the number of classes is
    checked, and a line in the log says so. ``default_hooks = dict(data_check=None)`` turns it off.

    Raises:
        DataError: in all processes, or from a dataloader.
    """

    def __init__(self) -> None:
        self._said: set = set()

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        splits = dict(train=loop.dataloader)
        if runner.val_loop is not None:
            splits['val'] = runner.val_loop.dataloader
        self._check(runner, splits)
        if hasattr(loop, 'dataloader_iterator'):  # its workers may have been started before
            sampler = getattr(loop.dataloader.batch_sampler, 'sampler', None)
            if isinstance(sampler, InfiniteSampler):
                # Its stream of indices would end with the iterator that has begun to read it. The
                # seed may be that of a checkpoint by now.
                InfiniteSampler.__init__(sampler, sampler.dataset, sampler.shuffle, sampler.seed)
            loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)

    def before_val(self, runner: Runner) -> None:
        self._check(runner, dict(val=runner.val_loop.dataloader))

    def before_test(self, runner: Runner) -> None:
        self._check(runner, dict(test=runner.test_loop.dataloader))

    def _check(self, runner: Runner, loaders: dict[str, Any]) -> None:
        new = {split: loader for split, loader in loaders.items() if split not in self._said}
        if not new:
            return
        self._said |= set(new)
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        problems: list[Problem] = []
        notes: list[str] = []
        if is_main_process():
            splits = {split: loader.dataset for split, loader in loaders.items()}
            problems, notes = quick_problems(splits, model, runner.cfg)
        refused = [problem for problem in problems if problem.kind in REFUSED]
        message = [describe(refused) if refused else '']
        broadcast_object_list(message)
        if message[0]:
            raise DataError(f'the data do not fit this config\n{message[0]}\n{EVERYTHING}')
        for kind, advice in COUNTED.items():
            count = sum(problem.kind == kind for problem in problems)
            if count:
                first = next(problem for problem in problems if problem.kind == kind)
                runner.logger.warning(f'data: {kind}: {count} ({advice}). The first: {first}')
        for note in notes:
            runner.logger.warning(note)
        ignored = ignored_labels(runner, model)
        for loader in new.values():
            for leaf in leaves(loader.dataset):
                kind = kind_of(leaf)
                if kind in (COCO, LABEL_MAPS):
                    classes = classes_of(leaf) if kind == LABEL_MAPS else ()
                    leaf.pipeline = CheckedPipeline(
                        leaf.pipeline, classes, ignored, source_of(leaf)
                    )
            loader._iterator = None  # persistent workers have copies of the data set


def ignored_labels(runner: Runner, model) -> set[int]:
    """Labels that the model or an evaluator leaves out."""
    holders = [*model.modules()]
    for name in ('val', 'test'):
        loop = getattr(runner, f'_{name}_loop')
        holders += getattr(getattr(loop, 'evaluator', None), 'metrics', [])
    numbers = {getattr(holder, 'ignore_index', None) for holder in holders}
    return {UNKNOWN} | {number for number in numbers if isinstance(number, int)}
