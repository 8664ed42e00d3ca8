"""Accuracy, speed and memory of segmentors side by side, on your data and your machine: a table, and a page of plots and pictures."""

import hashlib
import json
import shutil
import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..data import label_folder
from ..errors import ConfigError, WeightsError
from ..printing import quiet
from ..training.running import follow
from . import segmentors_page as page
from .contestant import BURST, Contestant
from .processes import Process
from .timing import interleaved, machine

FORMAT = 2  # of rows that are kept; those of another are measured anew


class Entry(NamedTuple):
    name: str
    config: str
    checkpoint: str | None
    is_fused: bool = False


def find(models):
    """What the command line names, as entries whose names differ."""
    found = []
    for text in models:
        config, equals, checkpoint = text.rpartition('=') if '.py=' in text else (text, '', '')
        if Path(text).is_dir():
            runs = [
                path
                for path in (Path(text), *sorted(Path(text).iterdir()))
                if path.is_dir() and (path / 'last_checkpoint').is_file()
            ]
            if not runs:
                raise ConfigError(
                    f'{text} holds no work dirs: expected folders with last_checkpoint and a config in them'
                )
            found += [
                (run.name, str(next(run.glob('*.py'), run / 'config.py')), str(_best(run)))
                for run in runs
            ]
        else:
            found.append((Path(config).stem, config, checkpoint or None))
    if len({name for name, *_ in found}) < len(found):
        found = [
            (f'{name} {Path(checkpoint or "").stem}', config, checkpoint)
            for name, config, checkpoint in found
        ]
    if len({name for name, *_ in found}) < len(found):
        raise ConfigError('a model is named twice')
    return [Entry(*one) for one in found]


def _best(run):
    best = sorted(run.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    return best[-1] if best else run / Path((run / 'last_checkpoint').read_text().strip()).name


def compare(entries, args):
    console = Console(width=None if sys.stdout.isatty() else 160)
    with quiet():
        versions = {
            name: import_module(name).__version__
            for name in ('mmengine', 'mmcv', 'mmseg', 'mmdet')
            if find_spec(name)
        }
    about = dict(
        machine(args.device),
        **versions,
        command=' '.join(sys.argv),
        batch=args.batch,
        data=args.data_root or 'as the configs name them',
    )
    console.print(
        ', '.join(f'{key} {about[key]}' for key in ('hardware', 'threads', 'torch')),
        highlight=False,
    )
    rows = []
    for entry in entries:
        found = [row_of(entry, args, rows, console)]
        if found[0].get('is_ours') and 'error' not in found[0]:
            found.append(
                row_of(
                    Entry(f'{entry.name}, fused', found[0]['config'], found[0]['checkpoint'], True),
                    args,
                    rows + found,
                    console,
                )
            )
        rows += found
        page.write(rows, about, args.out)
    clock([row for row in rows if 'error' not in row], args)
    page.write(rows, about, args.out)
    failed = sum('error' in row for row in rows)
    if failed < len(rows):
        console.print(page.table(rows))
        for row in rows:
            if 'note' in row:
                console.print(
                    f'{row["name"]}: {row["note"]}', style='red', markup=False, highlight=False
                )
        console.print(
            f'wrote {args.out}/index.html, results.csv, results.json; in {args.out}/MODEL label maps (predictions), the config '
            '(config.py), and of what was trained here the checkpoint (train)',
            highlight=False,
        )
    if failed:
        console.print(
            f'{failed} of {len(rows)} models failed, as said above', style='red', highlight=False
        )
    return int(failed == len(rows))


def row_of(entry, args, rows, console):
    """Everything but the speed: kept from an earlier run, or measured; or why it could not be."""
    folder = args.out / entry.name.replace(', ', '-').replace(' ', '-')
    folder.mkdir(parents=True, exist_ok=True)
    row = dict(
        name=entry.name,
        config=entry.config,
        checkpoint=entry.checkpoint,
        folder=folder.name,
        is_fused=entry.is_fused,
    )
    try:
        cfg = entry_config(entry, args, folder)
        meaning = label_folder.meaning(cfg) if 'decode_head' in cfg.model else None
        if meaning and all(meaning != other.get('meaning') for other in rows):
            console.print(f'labels: {meaning}', highlight=False)
        row['meaning'] = meaning
        row['is_ours'] = 'convnext_dense.ConvNeXt' in repr(cfg.model)
        if not entry.is_fused:
            cfg.dump(folder / 'config.py')
        row['config'] = str(
            (folder if not entry.is_fused else Path(entry.config).parent) / 'config.py'
        )
        if entry.checkpoint is None:
            row['checkpoint'] = train(entry.name, cfg, folder, args, console)
        key = _key(
            FORMAT,
            cfg.pretty_text,
            label_folder.stamp(cfg, 'test'),
            Path(row['checkpoint']),
            entry.is_fused,
            args.tta,
            args.examples,
            args.device,
        )
        kept = folder / 'row.json'
        if (old := _load(kept)).get('key') == key:
            console.print(f'{entry.name}: kept', highlight=False)
            row = old
        else:
            console.print(f'{entry.name}: scoring', highlight=False)
            row.update(measure(row, folder, args), key=key)
            _save(kept, row)
            console.print(f'{entry.name}: {page.scores(row)}', highlight=False)
        first = next((other for other in rows if 'error' not in other), row)
        for what in ('data', 'classes'):
            if row[what] != first[what]:
                raise ConfigError(
                    f'its {"test images" if what == "data" else what} are not those of {first["name"]}: the figures cannot be '
                    'compared. --data-root gives all models the same'
                )
    except Exception as error:  # whatever it is, the other models go on
        kind = (
            ''
            if isinstance(error, (ConfigError, WeightsError, RuntimeError))
            else f'{type(error).__name__}: '
        )
        row['error'] = kind + str(error).removeprefix('ConfigError: ').removeprefix(
            'WeightsError: '
        )
        console.print(f'{entry.name}: {row["error"]}', style='red', markup=False, highlight=False)
    return row


def entry_config(entry, args, folder):
    """The config with the command line's data and options in it. Raises ConfigError where the data do not fit."""
    if not Path(entry.config).is_file():
        raise ConfigError(f'no config at {entry.config}')
    if entry.checkpoint and '://' not in entry.checkpoint and not Path(entry.checkpoint).is_file():
        raise ConfigError(f'no checkpoint at {entry.checkpoint}')
    if entry.is_fused:  # of a model that has been through here
        return Config.fromfile(entry.config)
    if entry.checkpoint is None and not args.train and not (folder / 'train').exists():
        raise ConfigError('no checkpoint: name it, CONFIG=CHECKPOINT, or train with --train')
    try:
        with quiet():
            cfg = Config.fromfile(entry.config)
        cfg.merge_from_dict(args.cfg_options)
    except Exception as error:
        raise ConfigError(f'the config cannot be read: {type(error).__name__}: {error}') from error
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    to_train = entry.checkpoint is None
    if args.data_root and 'decode_head' not in cfg.model:
        raise ConfigError(
            'detectors are compared on the data that their configs name, without --data-root'
        )
    if args.data_root:
        label_folder.put(cfg, args.data_root, args.classes, args.ignore, to_train)
    if 'decode_head' in cfg.model:
        for split in ('train', 'test') if to_train else ('test',):
            label_folder.check(cfg, split)
    return cfg


def train(name, cfg, folder, args, console):
    """Train with tools/train.py as a user would, or go on, or take what is finished. Returns the last checkpoint."""
    work_dir, config = folder / 'train', folder / 'config.py'
    trained, done = work_dir / 'trained.txt', work_dir / 'done'
    this = f'{cfg.pretty_text}\n{label_folder.stamp(cfg, "train")}'
    is_other = trained.exists() and trained.read_text() != this
    if not args.train and (is_other or not done.exists()):
        raise ConfigError('no checkpoint: name it, CONFIG=CHECKPOINT, or train with --train')
    if is_other:
        console.print(
            f'{name}: the config or the training data have changed, it starts anew', highlight=False
        )
        shutil.rmtree(work_dir)
    work_dir.mkdir(exist_ok=True)
    trained.write_text(this)
    if not done.exists():
        arguments = [
            config,
            '--work-dir',
            work_dir,
            *(['--resume'] if (work_dir / 'last_checkpoint').exists() else []),
        ]
        with Progress(
            TextColumn('training'),
            BarColumn(),
            TextColumn('{task.completed}/{task.total} {task.fields[text]}'),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not sys.stdout.isatty(),
        ) as progress:
            console.print(f'{name}: training (log: {work_dir}/train.log)', highlight=False)
            task = progress.add_task('', total=cfg.train_cfg.get('max_iters'), text='')
            for mode, step, total, loss in follow('train', arguments, work_dir / 'train.log'):
                progress.update(
                    task,
                    completed=step,
                    total=total,
                    text=f'loss {loss:.3f}' if loss else 'evaluation',
                )
        done.touch()
    return str(work_dir / Path((work_dir / 'last_checkpoint').read_text().strip()).name)


def measure(row, folder, args):
    for old in ('predictions', 'truth'):
        shutil.rmtree(folder / old, ignore_errors=True)
    process = Process(
        Contestant,
        row['config'],
        row['checkpoint'],
        row['is_fused'],
        str(folder),
        args.device,
        args.batch,
        args.examples,
    )
    try:
        found = dict(process.ask('facts'), **process.ask('score'))
        if args.tta:
            try:
                found['tta'] = process.ask('tta_score')['metrics']
            except RuntimeError as error:  # the rest of the row stands
                found['note'] = f'no TTA: {error}'
        return dict(found, memory=process.ask('memory'), examples=process.ask('example_names'))
    finally:
        process.end()


def clock(rows, args):
    """Seconds of one image, and of a batch, of all models in turns; kept as long as the models are the same."""
    kept, key = (
        args.out / 'speed.json',
        _key([row['key'] for row in rows], args.runs, args.batch, torch.get_num_threads()),
    )
    found = _load(kept)
    if rows and found.get('key') != key:
        processes = {
            row['name']: Process(
                Contestant,
                row['config'],
                row['checkpoint'],
                row['is_fused'],
                '',
                args.device,
                args.batch,
                1,
            )
            for row in rows
        }
        try:
            candidates = {}
            for row in rows:
                try:
                    calls = {
                        (row['name'], what): partial(processes[row['name']].ask, what)
                        for what in ('seconds', 'batch_seconds')
                    }
                    [call() for call in calls.values()]
                    candidates.update(calls)
                except (
                    RuntimeError
                ) as error:  # too little memory for all of them at once, or for a batch
                    row['note'] = f'speed not measured: {error}'
            turns = interleaved(candidates, -(-args.runs // BURST), 'speed')
            seconds = {call: sum(found, [])[: args.runs] for call, found in turns.items()}
        finally:
            for process in processes.values():
                process.end()
        found = dict(
            key=key,
            seconds={
                name: [seconds[name, 'seconds'], seconds[name, 'batch_seconds']]
                for name, what in candidates
                if what == 'seconds'
            },
        )
        if len(found['seconds']) == len(rows):  # else the next run tries again
            _save(kept, found)
    for row in rows:
        if row['name'] in found['seconds']:
            row['seconds'], row['batch_seconds'] = found['seconds'][row['name']]


def _load(path):
    return json.loads(path.read_text()) if path.exists() else {}


def _save(path, content):
    """Whole or not at all, whenever it is interrupted."""
    path.with_suffix('.new').write_text(json.dumps(content, indent=1))
    path.with_suffix('.new').replace(path)


def _key(*parts):
    stamps = [
        (str(part), part.stat().st_size, part.stat().st_mtime)
        if isinstance(part, Path) and part.exists()
        else part
        for part in parts
    ]
    return hashlib.sha256(repr(stamps).encode()).hexdigest()
