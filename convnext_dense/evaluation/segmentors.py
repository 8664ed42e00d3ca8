"""Accuracy, speed and memory of segmentors side by side: finds, trains, scores and times them."""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.progress import Progress

from ..config_names import find_config, match_recipes, read_file
from ..data import label_folder
from ..errors import ConfigError, WeightsError
from ..export.engines import ENGINES
from ..printing import console, quiet
from ..training.running import follow
from . import segmentors_page as page
from .kept_rows import Row, data_stamp, keep, load_kept, row_key, speed_key
from .model_under_test import BURST, ModelUnderTest
from .processes import Process
from .timing import interleaved, machine

DRIFT = 0.15  # of the machine's speed, that is told
FORMS = 'fused', 'bf16', 'fused, bf16'  # of the model of the row before
NO_CHECKPOINT = 'no checkpoint: name it, CONFIG=CHECKPOINT, or train with --train'


class Entry(NamedTuple):
    """A model that takes part."""

    name: str
    config: str  # path
    checkpoint: str | None  # path or URL; None: to be trained
    form: str = ''  # as of a ``Row``


class Options(NamedTuple):
    """How models are compared: the options of ``convnext-dense compare``."""

    out: Path  # folder
    data_root: str | None = None  # None: the data that the configs name
    classes: Sequence[str] | None = None  # of the data in data_root; None: the config's
    ignore: Sequence[int] = ()  # labels in data_root that mean unknown, besides 255
    train: bool = False  # what has no checkpoint
    cfg_options: Mapping[str, Any] = {}  # for every config
    tta: bool = False  # score with test-time augmentation, too
    runs: int = 20  # that are timed
    batch: int = 4  # images at once for the throughput
    examples: int = 4  # images on the page
    device: str = 'cpu'
    dtype: str = 'fp32'  # 'bf16': a row more of each model


def find(models: Sequence[str]) -> list[Entry]:
    """Models by ``CONFIG``, ``CONFIG=CHECKPOINT``, a pattern as ``demo/*_street``, or a folder of
    work dirs; names differ.

    Raises:
        ConfigError: a folder holds no work dirs, no recipe is of that pattern, or a model is named
            twice.
    """
    entries: list[Entry] = []
    for text in models:
        if Path(text).is_dir():
            entries += _trained_in(Path(text))
        elif '*' in text:
            entries += [Entry(Path(name).stem, name, None) for name in match_recipes(text)]
        else:
            split = text.rpartition if '.py=' in text else text.partition  # paths may have a =
            config, _, checkpoint = split('=')
            name = Path(config).stem
            if checkpoint.endswith('.onnx'):  # of a config that may have several
                entries += [
                    Entry(f'{name} {Path(checkpoint).stem}, {engine}', config, checkpoint, engine)
                    for engine in ENGINES
                    if engine == ENGINES[0] or find_spec(engine)
                ]
            else:
                entries.append(Entry(name, config, checkpoint or None))
    if len({entry.name for entry in entries}) < len(entries):
        names = [f'{entry.name} {Path(entry.checkpoint or "").stem}' for entry in entries]
        entries = [entry._replace(name=name) for entry, name in zip(entries, names)]
    if len({entry.name for entry in entries}) < len(entries):
        raise ConfigError('a model is named twice')
    return entries


def _trained_in(folder):
    runs = [run for run in (folder, *sorted(folder.iterdir())) if _is_run(run)]
    if not runs:
        raise ConfigError(
            f'{folder} holds no work dirs: expected folders with last_checkpoint and a config'
        )
    entries = []
    for run in runs:
        config = next(run.glob('*.py'), run / 'config.py')
        entries.append(Entry(run.name, str(config), str(_best(run) or _last(run))))
    return entries


def _is_run(folder):
    return (folder / 'last_checkpoint').is_file()


def _best(run):
    return max(run.glob('best_*.pth'), key=lambda path: path.stat().st_mtime, default=None)


def _last(run):
    """The work dir may have been moved since its path was written down."""
    return run / Path((run / 'last_checkpoint').read_text().strip()).name


def compare(entries: Sequence[Entry], options: Options, command: str = '') -> list[Row]:
    """Measure the models, and those on our ConvNeXt a second time, fused; if asked to, in bf16.

    A model that fails has an ``error`` in its row, and the others go on. Says on the terminal how
    far it is; leaves ``index.html``, ``results.csv`` and ``results.json`` in ``options.out``, and
    a folder for each model.

    Args:
        command: what the page names as its origin.
    """
    with quiet():
        names = [name for name in ('mmengine', 'mmcv', 'mmseg', 'mmdet') if find_spec(name)]
        versions = {name: import_module(name).__version__ for name in names}
    data = options.data_root or 'as the configs name them'
    about: dict[str, Any] = {**machine(options.device), **versions}
    about.update(command=command, batch=options.batch, data=data)
    _say(', '.join(f'{key} {about[key]}' for key in ('hardware', 'threads', 'torch')))
    rows: list[Row] = []
    for entry in entries:
        row = measured_row(entry, options, rows)
        rows.append(row)
        forms = ['fused'] * (row.is_ours and not row.form)
        if options.dtype == 'bf16' and not row.form:
            forms.append(', '.join([*forms, 'bf16']))
        for form in forms if not row.error else []:
            other = Entry(f'{entry.name}, {form}', row.config, row.checkpoint, form)
            rows.append(measured_row(other, options, rows))
        page.write(rows, about, options.out)
    measure_speed([row for row in rows if not row.error], options)
    change = drift(rows)
    if abs(change - 1) > DRIFT:
        about['drift'] = (
            f'While models were timed, in turns, the machine became {change:.2f} times as slow: '
            'compare the models with each other, and not with another run.'
        )
        _say(about['drift'], style='red')
    page.write(rows, about, options.out)
    return rows


def _say(text, style=None):
    console().print(text, style=style, markup=False, soft_wrap=True)


def measured_row(entry: Entry, options: Options, others: Sequence[Row]) -> Row:
    """All but the speed: kept from an earlier run, or measured; or why it cannot be.

    Args:
        others: the rows before it; its test data have to be those of the first.
    """
    folder = options.out / entry.name.replace(', ', '-').replace(' ', '-')
    folder.mkdir(parents=True, exist_ok=True)
    row = Row(**entry._asdict(), folder=folder.name)
    try:
        cfg = prepared_config(entry, options, folder)
        row.is_ours = 'convnext_dense.ConvNeXt' in repr(cfg.model)
        if 'decode_head' in cfg.model:
            row.meaning = label_folder.meaning(cfg)
            if all(row.meaning != other.meaning for other in others):
                _say(f'labels: {row.meaning}')
        if entry.form not in FORMS:
            row.config = str(folder / 'config.py')
            cfg.dump(row.config)
        if row.checkpoint is None:
            row.checkpoint = train(entry.name, cfg, folder, options.train)
        form, device = entry.form, options.device
        row.key = row_key(cfg, row.checkpoint, form, options.tta, options.examples, device)
        kept = load_kept(folder / 'row.json', row.key)
        if kept:
            _say(f'{entry.name}: kept')
            row = Row(**kept)
        else:
            _say(f'{entry.name}: scoring')
            row = replace(row, **_measure(row, folder, options))
            keep(folder / 'row.json', row.known())
            _say(f'{entry.name}: {page.scores(row)}')
        _check_same_data(row, others)
    except Exception as error:  # whatever it is, the other models go on
        is_plain = isinstance(error, (ConfigError, WeightsError, RuntimeError))
        text = str(error) if is_plain else f'{type(error).__name__}: {error}'
        row.error = text.removeprefix('ConfigError: ').removeprefix('WeightsError: ')
        _say(f'{entry.name}: {row.error}', style='red')
    return row


def _check_same_data(row, others):
    first = next((other for other in others if not other.error), row)
    for field, words in (('data', 'test images'), ('classes', 'classes')):
        if getattr(row, field) != getattr(first, field):
            raise ConfigError(
                f'its {words} are not those of {first.name}: the figures cannot be compared. '
                '--data-root gives all models the same'
            )


def prepared_config(entry: Entry, options: Options, folder: Path) -> Config:
    """The config with the data and the settings of the options in it.

    Raises:
        ConfigError: a file is missing, or the data do not fit.
    """
    path = find_config(entry.config)[0]
    if entry.checkpoint and '://' not in entry.checkpoint and not Path(entry.checkpoint).is_file():
        raise ConfigError(f'no checkpoint at {entry.checkpoint}')
    if entry.form in FORMS:  # its config was prepared for the row before
        return read_file(path)
    to_train = entry.checkpoint is None
    if to_train and not options.train and not (folder / 'train').exists():
        raise ConfigError(NO_CHECKPOINT)
    try:
        with quiet():
            cfg = read_file(path)
        cfg.merge_from_dict(options.cfg_options)
    except Exception as error:
        raise ConfigError(f'the config cannot be read: {type(error).__name__}: {error}') from error
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    if 'decode_head' in cfg.model:
        if options.data_root:
            label_folder.put(cfg, options.data_root, options.classes, options.ignore, to_train)
        for split in ('train', 'test') if to_train else ('test',):
            label_folder.check(cfg, split)
    elif options.data_root:
        raise ConfigError(
            'detectors are compared on the data that their configs name, without --data-root'
        )
    return cfg


def train(name: str, cfg: Config, folder: Path, is_allowed: bool) -> str:
    """Train as ``convnext-dense train`` does; or go on, or take what is finished.

    Args:
        folder: has the config, ``config.py``; the work dir is ``train`` in it.
        is_allowed: else it takes what is finished, and raises where nothing is.

    Returns:
        Path of the last checkpoint.

    Raises:
        ConfigError: there is nothing finished of this config and these data.
        RuntimeError: the training failed.
    """
    work_dir = folder / 'train'
    description, done = work_dir / 'trained.txt', work_dir / 'done'
    text = f'{cfg.pretty_text}\n{data_stamp(cfg, "train")}'
    is_other = description.exists() and description.read_text() != text
    if not is_allowed and (is_other or not done.exists()):
        raise ConfigError(NO_CHECKPOINT)
    if is_other:
        number = 1 + len(list(folder.glob('train-before-*')))
        earlier = work_dir.rename(folder / f'train-before-{number}')
        _say(f'{name}: its config or data have changed, it starts anew; the earlier: {earlier}')
    work_dir.mkdir(exist_ok=True)
    description.write_text(text)
    if not done.exists():
        log = work_dir / 'train.log'
        arguments = [folder / 'config.py', '--work-dir', work_dir]
        arguments += ['--resume'] if _is_run(work_dir) else []
        _say(f'{name}: training (log: {log})')
        with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
            bar = progress.add_task('training')
            for _, step, total, loss in follow('train', arguments, log):
                state = f'loss {loss:.3f}' if loss else 'evaluation'
                title = f'training {step}/{total}, {state}'
                progress.update(bar, description=title, completed=step, total=total)
        done.touch()
    return str(_last(work_dir))


def _process(row, options, folder=''):
    paths = row.config, row.checkpoint, row.form, str(folder)
    return Process(ModelUnderTest, *paths, options.device, options.batch, options.examples)


def _measure(row, folder, options):
    for maps in ('predictions', 'truth'):
        shutil.rmtree(folder / maps, ignore_errors=True)
    process = _process(row, options, folder)
    try:
        figures = dict(process.ask('facts'), **process.ask('score'))
        if options.tta:
            try:
                figures['tta'] = process.ask('tta_score')['metrics']
            except RuntimeError as error:  # the rest of the row stands
                figures['note'] = f'no TTA: {error}'
        return dict(figures, memory=process.ask('memory'), examples=process.ask('example_names'))
    finally:
        process.end()


def measure_speed(rows: Sequence[Row], options: Options) -> None:
    """Fill in the seconds of all models, which are timed in turns; or take those of the last run.

    In turns, so that what else the machine does hits all alike. A model that cannot be timed
    beside the others gets a ``note``.
    """
    path, key = options.out / 'speed.json', speed_key(rows, options.runs, options.batch)
    seconds = (load_kept(path, key) or {}).get('seconds', {})
    if rows and not seconds:
        seconds = _timed_in_turns(rows, options)
        if len(seconds) == len(rows):  # else the next run tries again
            keep(path, dict(key=key, seconds=seconds))
    for row in rows:
        if row.name in seconds:
            row.seconds, row.batch_seconds = seconds[row.name]
            row.batch = options.batch


def drift(rows: Sequence[Row]) -> float:
    """How many times as slow all models were in the last third of their runs as in the first.

    1 where there are too few runs to tell.
    """
    ratios = []
    for row in rows:
        seconds = row.seconds or []
        third = len(seconds) // 3
        if third >= 3:
            ratios.append(median(seconds[-third:]) / median(seconds[:third]))
    return median(ratios) if ratios else 1.0


def _timed_in_turns(rows, options):
    """Name of a model -> seconds of one image, and of a batch, of every run."""
    processes = {row.name: _process(row, options) for row in rows}
    candidates: dict[str, Callable[[], Any]] = {}
    try:
        for row in rows:
            candidate = partial(processes[row.name].ask, 'seconds')
            try:
                candidate()
                candidates[row.name] = candidate
            except RuntimeError as error:  # too little memory for a batch, or for all of them
                row.note = f'speed not measured: {error}'
        turns: dict[str, list[Any]] = interleaved(candidates, -(-options.runs // BURST), 'speed')
    finally:
        for process in processes.values():
            process.end()
    return {
        name: [sum(bursts, [])[: options.runs] for bursts in zip(*pairs)]
        for name, pairs in turns.items()
    }
