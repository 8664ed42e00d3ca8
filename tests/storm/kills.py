"""Trainings that are killed again and again, and resumed each time, beside undisturbed ones.

A training in one process and one in two (torchrun, gloo) run as a user starts them. The plan of
what is done to whom, and when, is drawn from a seed. Both have to end with the weights, the
optimiser's state, the schedules and the random states of the undisturbed trainings, bit for bit.
"""

import contextlib
import errno
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from convnext_dense import config
from convnext_dense.data.locating import SPLITS
from convnext_dense.demo.scenes import write
from convnext_dense.printing import markdown_table, progress
from convnext_dense.training.work_dir import latest_checkpoint, unfinished

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS, INTERVAL = 60, 5  # of a training; between two checkpoints
LIMIT = 900  # seconds, for a run to end or to reach the moment of its kill
SHARED = 'state_dict', 'optimizer', 'param_schedulers', 'random_states'  # compared bit for bit
LOGGED = re.compile(rf'Iter\(train\) +\[ *(\d+)/{ITERATIONS}\]')
RESUMED = re.compile(r'resumed epoch: \d+, iter: (\d+)')
START = ['-m', 'convnext_dense', 'train']
LAUNCH = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', *START]
CONFIG = """\
_base_ = {base!r}
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        arch=dict(_delete_=True, depths=(1, 1, 2, 1), dims=(32, 64, 96, 192)), drop_path_rate=0.2
    ),
    decode_head=dict(in_channels=[32, 64, 96, 192], channels=32),
    auxiliary_head=dict(in_channels=96, channels=32),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=(64, 64), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root={data!r}, pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=0, dataset=dict(data_root={data!r}, indices=2))
train_cfg = dict(max_iters={iterations}, val_interval=20)
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(interval={interval}, max_keep_ckpts=1, save_best='mIoU'),
)
custom_hooks = []  # curves and examples, which take longer than this training
visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])
"""


class Kill(NamedTuple):
    """How a run of a training ends before its time.

    Moments: ``starting`` (``at``: seconds after the start), ``training`` (``at``: the iteration
    that is being computed), ``saving`` (``at``: the iteration whose checkpoint is being written).
    """

    how: str  # a signal's name, or FULL
    whom: str = 'all'  # of two processes: 'all' with their launcher, or 'one'
    moment: str = 'training'
    at: float = 0
    rank: int = 0  # of the one


FULL = 'disk full'  # the kernel takes no more than ROOM of a file, and says EFBIG
ROOM = 1_000_000  # bytes: more than a log, less than a checkpoint
# Processes -> what is done to their training, in an order that is drawn.
PLANS = {
    1: [
        Kill('SIGKILL'),
        Kill('SIGTERM'),
        Kill('SIGINT'),
        Kill('SIGKILL', moment='starting'),
        Kill('SIGKILL', moment='saving'),
        Kill('SIGKILL', moment='saving'),
        Kill('SIGTERM', moment='saving'),
        Kill('SIGINT', moment='saving'),
        Kill(FULL, moment='saving'),
        Kill(FULL, moment='saving'),
    ],
    2: [
        Kill('SIGKILL', 'one'),
        Kill('SIGTERM', 'one'),
        Kill('SIGINT', 'one'),
        Kill('SIGKILL', 'all'),
        Kill('SIGTERM', 'all'),
        Kill('SIGINT', 'all'),
        Kill('SIGKILL', 'one', 'saving'),
        Kill('SIGKILL', 'all', 'saving'),
        Kill('SIGTERM', 'all', 'saving'),
        Kill(FULL, 'all', 'saving'),
    ],
}


class Outcome(NamedTuple):
    processes: int
    kill: Kill
    reached: int  # the last iteration that was logged before the end
    status: int  # of the process that was started
    seconds: float  # from the kill to its end
    left: str  # files in the work directory afterwards
    resumed: int  # iteration from which the next run went on
    wrong: str  # what is not as it should be


def draw(processes: int, rng: random.Random) -> list[Kill]:
    """The plan for a training: each kill comes after the one before it."""
    while True:
        kills, plan = list(PLANS[processes]), []
        rng.shuffle(kills)
        for kill, iteration in zip(kills, sorted(rng.sample(range(2, ITERATIONS), len(kills)))):
            at: float = iteration
            if kill.moment == 'starting':
                at = round(rng.uniform(0.5, 6), 1)
            elif kill.moment == 'saving':  # the next checkpoint
                at = -(-iteration // INTERVAL) * INTERVAL
            plan.append(kill._replace(at=at, rank=rng.randrange(processes)))
        iterations = [kill.at for kill in plan if kill.moment != 'starting']
        if all(a < b for a, b in zip(iterations, iterations[1:])):
            return plan


def storm(folder: Path, seed: int) -> list[Outcome]:
    """Kill the two trainings as planned, and compare how they end.

    Raises:
        RuntimeError: an undisturbed training fails, or a run neither ends nor comes to its kill.
    """
    # A shell that starts this in the background has SIGINT ignored, and child processes inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    write(folder / 'data', dict.fromkeys(SPLITS, 8))
    path = folder / 'storm.py'
    text = CONFIG.format(
        base=config('demo/upernet_convnext-atto_shapes'),
        data=str(folder / 'data/ade'),
        iterations=ITERATIONS,
        interval=INTERVAL,
    )
    path.write_text(text, encoding='utf-8')
    rng, outcomes = random.Random(seed), []
    for processes in PLANS:
        whole = Training(folder, f'undisturbed_{processes}', processes)
        whole.run()
        outcomes += Training(folder, f'killed_{processes}', processes).survive(
            draw(processes, rng), whole
        )
    return outcomes


class Training:
    """Runs of one training, each of which goes on from the last."""

    def __init__(self, folder: Path, name: str, processes: int):
        self.folder, self.processes = folder / name, processes
        self.log = folder / f'{name}.log'
        self.command = [sys.executable, *(START if processes == 1 else LAUNCH)]
        self.command += [str(folder / 'storm.py'), '--work-dir', str(self.folder), '--resume']
        self.command += ['--launcher', 'pytorch'] if processes > 1 else []

    def run(self, kill: Kill | None = None) -> 'Run':
        run = Run(self, kill)
        try:
            run.follow()
        finally:
            run.end()
        if kill is None and run.process.returncode:
            raise RuntimeError(f'a training that nobody disturbed failed: {self.log}')
        return run

    def survive(self, plan: Sequence[Kill], whole: 'Training') -> list[Outcome]:
        """Each kill of the plan, and a last run to the end."""
        title = f'killing a training of {self.processes}'
        runs = [self.run(kill) for kill in progress([*plan, None], title)]
        afters = [resuming(runs[i + 1 :]) for i in range(len(plan))]
        wrong = [run.wrong(after) for run, after in zip(runs, afters)]
        wrong[-1] += self._compare(whole)
        return [
            Outcome(
                self.processes,
                run.kill,
                run.reached,
                run.process.returncode,
                run.seconds,
                run.left,
                after.resumed,
                '; '.join(texts),
            )
            for run, after, texts in zip(runs, afters, wrong)
        ]

    def _compare(self, whole: 'Training') -> list[str]:
        files = [sorted(path.name for path in t.folder.glob('*.pth*')) for t in (whole, self)]
        if files[0] != files[1]:
            return [f'files at the end: {files[1]}, undisturbed {files[0]}']
        last = f'iter_{ITERATIONS}.pth'
        a, b = (torch.load(t.folder / last, weights_only=False) for t in (whole, self))
        other = [name for key in SHARED for name in differing(a[key], b[key], key)]
        return [f'{len(other)} values differ at the end, such as {other[0]}'] if other else []


def resuming(runs: Sequence['Run']) -> 'Run':
    """The first that came as far as to read a checkpoint: the last has no kill."""
    return next(run for run in runs if run.kill is None or run.kill.moment != 'starting')


class Run:
    """A run of a training, to its end or to the kill."""

    def __init__(self, training: Training, kill: Kill | None):
        self.training, self.kill = training, kill
        self.reached = self.resumed = 0
        self.log, self.seconds, self.left = '', 0.0, ''
        self.struck: float | None = None
        training.log.parent.mkdir(exist_ok=True)
        with open(training.log, 'ab') as log:
            self.position = log.tell()
            self.process = subprocess.Popen(
                training.command,
                cwd=ROOT,
                env=os.environ | dict(OMP_NUM_THREADS='1'),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started = time.monotonic()

    def follow(self) -> None:
        """Until the process ends; strikes when the moment has come.

        Raises:
            RuntimeError: it takes too long.
        """
        with open(self.training.log, encoding='utf-8', errors='replace') as log:
            log.seek(self.position)
            while self.process.poll() is None:
                self._read(log.read())
                if self.struck is None and self.kill and self._is_time(self.kill):
                    self._strike(self.kill)
                if time.monotonic() > (self.struck or self.started) + LIMIT:
                    raise RuntimeError(f'a training of {self.kill} does not end: {log.name}')
                time.sleep(0 if self._is_close() else 0.001)
            self._read(log.read())
        self.seconds = time.monotonic() - (self.struck or self.started)
        paths = sorted(self.training.folder.glob('iter_*.pth*'))
        sizes = (f'{path.name} ({path.stat().st_size / 1e6:.1f} MB)' for path in paths)
        self.left = ', '.join(sizes) or 'none'
        self.newest = latest_checkpoint(self.training.folder)

    def end(self) -> None:
        """Whatever happened."""
        if self.process.poll() is None:
            for pid in (self.process.pid, *ranks(self.process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()

    def wrong(self, after: 'Run') -> list[str]:
        """What is not as it should be, of a run that was killed and the one after it."""
        texts = []
        if self.struck is None:
            texts.append('the moment to kill it did not come')
        if self.process.returncode == 0:
            texts.append('it ended with status 0')
        newest = int(re.sub(r'\D', '', self.newest.stem)) if self.newest else 0
        if after.resumed != newest:
            texts.append(f'resumed from {after.resumed}, the newest checkpoint is {newest}')
        # The checkpoint of the iteration that is logged last may not have been written yet.
        if newest < (self.reached - 1) // INTERVAL * INTERVAL:
            texts.append(f'iteration {self.reached} was reached, and a checkpoint was lost')
        if self.kill.how == FULL and f'[Errno {errno.EFBIG}]' not in self.log:
            texts.append('the disk was not full')
        return texts

    def _read(self, text: str) -> None:
        self.log += text
        for match in LOGGED.finditer(self.log, len(self.log) - len(text) - 100):
            self.reached = int(match[1])
        if match := RESUMED.search(self.log):
            self.resumed = int(match[1])

    def _is_close(self) -> bool:
        """To a checkpoint that is to be caught while it is written, within milliseconds."""
        kill = self.kill
        return bool(kill) and kill.moment == 'saving' and self.reached >= kill.at - 1

    def _is_time(self, kill: Kill) -> bool:
        if kill.moment == 'starting':
            return time.monotonic() > self.started + kill.at
        if kill.moment == 'training' or kill.how == FULL:
            return self.reached >= kill.at - 1
        return unfinished(self.training.folder / f'iter_{kill.at:.0f}.pth').exists()

    def _strike(self, kill: Kill) -> None:
        children = ranks(self.process.pid)
        self.struck = time.monotonic()
        everyone = [self.process.pid, *children]
        for pid in everyone if kill.whom == 'all' else [children[kill.rank]]:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                if kill.how == FULL:
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (ROOM, ROOM))
                else:
                    os.kill(pid, signal.Signals[kill.how])


def ranks(launcher: int) -> list[int]:
    """Processes that torchrun has started, in the order of their ranks."""
    pids = {}
    try:
        children = Path(f'/proc/{launcher}/task/{launcher}/children').read_text().split()
        for pid in map(int, children):
            environment = Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
            rank = next((item for item in environment if item.startswith(b'RANK=')), None)
            if rank:
                pids[int(rank[5:])] = pid
    except OSError:  # it has just ended
        pass
    return [pids[rank] for rank in sorted(pids)]


def differing(a, b, name: str) -> list[str]:
    """Names of the values in which two parts of checkpoints differ in any bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [text for key in a for text in differing(a[key], b[key], f'{name}.{key}')]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [
            text for i, pair in enumerate(zip(a, b)) for text in differing(*pair, f'{name}.{i}')
        ]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and torch.equal(a, b)
    else:
        same = type(a) is type(b) and a == b
    return [] if same else [name]


# ---- the table ----


def table(outcomes: Sequence[Outcome]) -> str:
    header = 'processes', 'what', 'to', 'when', 'status', 'after', 'left', 'resumed from'
    return markdown_table(
        ['#', *header, 'wrong'], [[i, *_row(outcome)] for i, outcome in enumerate(outcomes, 1)]
    )


def _row(outcome: Outcome) -> list:
    kill = outcome.kill
    whom = f'rank {kill.rank}' if kill.whom == 'one' else 'all' if outcome.processes > 1 else 'it'
    when = {
        'starting': f'{kill.at} s after its start',
        'training': f'in iteration {kill.at:.0f}',
        'saving': f'saving iteration {kill.at:.0f}',
    }[kill.moment]
    return [
        outcome.processes,
        kill.how,
        whom,
        when,
        outcome.status,
        f'{outcome.seconds:.1f} s',
        outcome.left,
        outcome.resumed,
        outcome.wrong,
    ]
