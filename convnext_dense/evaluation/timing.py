"""Interleaved timing, the allocator's count of memory, and what the machine can do."""

import contextlib
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from .. import __version__
from ..printing import progress

# Without this the profiler writes a line whenever it starts or stops.
os.environ.setdefault('KINETO_LOG_LEVEL', '99')

KINDS = {  # of operators -> parts of the profiler's names
    'matrix products': ('addmm', 'mm', 'bmm', 'linear_pointwise', 'mkl_linear', 'baddbmm'),
    'convolutions': ('convolution',),
    'LayerNorm': ('layer_norm',),
    'GELU': ('gelu',),
    'copies': ('copy_', 'clone'),
    'allocation': ('empty',),
}
# Child of a detector (or of its roi_head) or of a segmentor -> names of parts and their methods.
PARTS = dict(
    backbone=[('backbone', 'forward')],
    neck=[('neck', 'forward')],
    decode_head=[('head', 'forward')],
    rpn_head=[('RPN', 'forward'), ('proposals', 'predict_by_feat')],
    bbox_roi_extractor=[('RoIAlign of boxes', 'forward')],
    bbox_head=[('box head', 'forward'), ('boxes', 'predict_by_feat')],
    mask_roi_extractor=[('RoIAlign of masks', 'forward')],
    mask_head=[('mask head', 'forward'), ('pasting', 'predict_by_feat')],
)
Key = TypeVar('Key')
Answer = TypeVar('Answer')


class Candidate(NamedTuple):
    """A function to time, and how exact its result is."""

    function: Callable[[], object]
    device: str
    error: float | None = None  # of the worst map, relative to float64; None: not compared
    is_available: bool = True  # False: the function does nothing
    model: nn.Module | None = None  # that the function calls

    def seconds(self) -> float:
        start = time.perf_counter()
        self.function()
        synchronize(self.device)
        return time.perf_counter() - start

    def memory(self) -> int:
        return peak_memory(self.function, self.device)

    def shares(self) -> dict[str, float]:
        return shares(self.function, self.device)

    def parts(self) -> dict[str, float]:
        return parts(self.model, self.seconds) if self.model else {}


class Measurement(NamedTuple):
    """Of one model."""

    seconds: list[float]  # of each call
    memory: int  # bytes
    error: float | None = None  # as the candidate's

    @property
    def median(self) -> float:
        return median(self.seconds)


class Figures(NamedTuple):
    """Of a model beside others."""

    median: float  # seconds
    spread: float  # the middle half of the runs, as a share of the median
    speed: float  # relative to the fastest peer
    low: float  # ends of the 95 % interval of that speed
    high: float
    megabytes: float
    relative_memory: float  # to the lightest peer's


def figures(rows: Mapping[str, Measurement]) -> dict[str, Figures]:
    """Name of a model -> its figures, relative to the best of its peers.

    Peers are all models but those of ``convnext_dense``; without any, the first row is.
    """
    peers = [row for name, row in rows.items() if not name.startswith('convnext_dense')]
    peers = peers or list(rows.values())[:1]
    quickest = min(peers, key=lambda row: row.median)
    lightest = min(row.memory for row in peers)
    result = {}
    for name, row in rows.items():
        times, quarter = sorted(row.seconds), len(row.seconds) // 4
        spread = (times[-1 - quarter] - times[quarter]) / row.median
        speed = quickest.median / row.median
        ends = interval(quickest.seconds, row.seconds)
        memory = row.memory / 1e6, row.memory / lightest
        result[name] = Figures(row.median, spread, speed, *ends, *memory)
    return result


def interval(seconds: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Between which ratios ``seconds / others`` lies, with 95 % confidence; of calls in turns.

    The logarithms of the pairs' ratios are taken to be normally distributed.
    """
    ratios = [math.log(first / second) for first, second in zip(seconds, others)]
    if len(ratios) < 2:
        return math.nan, math.nan
    half = 2.1 * stdev(ratios) / math.sqrt(len(ratios))  # 2.1: Student's t of about 15 pairs
    return math.exp(mean(ratios) - half), math.exp(mean(ratios) + half)


def interleaved(
    functions: Mapping[Key, Callable[[], Answer]], count: int, title: str = ''
) -> dict[Key, list[Answer]]:
    """Answers of ``count`` calls of each function, and a first one as warm-up, which is dropped.

    The functions take turns, so that whatever else the machine does slows all of them alike.

    Args:
        title: of the progress bar; without it there is none.
    """
    answers: dict[Key, list[Answer]] = {name: [] for name in functions}
    rounds = range(count + 1)
    for _ in progress(rounds, title) if title else rounds:
        for name, function in functions.items():
            answers[name].append(function())
    return {name: values[1:] for name, values in answers.items()}


def fastest(candidates: Iterable[Candidate]) -> Candidate:
    """By the better of two calls of each, as the first may be slow."""
    return min(candidates, key=lambda candidate: min(candidate.seconds() for _ in range(2)))


@contextlib.contextmanager
def tf32(is_on: bool) -> Iterator[None]:
    """Whether a GPU may round the factors of fp32 products and convolutions to 10 bits.

    Torch's default is yes in convolutions and no in products.
    """
    switches: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = is_on
        yield
    finally:
        for switch, value in zip(switches, before):
            switch.allow_tf32 = value


def synchronize(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()


def peak_memory(function: Callable[[], object], device: str) -> int:
    """Bytes at the peak of a call, above what was allocated before it, as the allocator counts."""
    if device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    events = [event for event in _events(function) if event.name() == '[memory]']
    now = peak = 0
    for event in sorted(events, key=_start):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def operators(function: Callable[[], object]) -> int:
    """Number of operators that a call runs, those within others included."""
    function()  # the first call may do more
    return sum(event.name() != '[memory]' for event in _events(function))


def _events(function):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    return record.profiler.kineto_results.events()  # record.events() takes a hundred times as long


def _start(event):
    return event.start_ns() if hasattr(event, 'start_ns') else event.start_us()  # torch 2.1


def shares(function: Callable[[], object], device: str) -> dict[str, float]:
    """Key of ``KINDS``, or the name of another operator -> its share of a call's time."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == 'cuda')
    with profile(activities=activities) as record:
        function()
        synchronize(device)
    seconds: dict[str, float] = {}
    for event in record.key_averages():
        kinds = (kind for kind, marks in KINDS.items() if any(mark in event.key for mark in marks))
        kind = next(kinds, event.key)
        seconds[kind] = seconds.get(kind, 0) + _self_time(event, device)
    total = max(sum(seconds.values()), 1)
    return {
        kind: seconds[kind] / total for kind in sorted(seconds, key=lambda kind: -seconds[kind])
    }


def parts(model: nn.Module, seconds: Callable[[], float], count: int = 5) -> dict[str, float]:
    """Part of a detector or segmentor -> its share of a call's time, the median of ``count``.

    Args:
        seconds: calls the model, and returns how long that took.
    """
    spent: dict[str, float] = {}
    with contextlib.ExitStack() as restored:
        for name, module in model.named_modules():
            for part, method in PARTS.get(name.removeprefix('roi_head.').partition('.')[0], ()):
                is_list = isinstance(module, nn.ModuleList)
                if name.count('.') - name.startswith('roi_head.') > 1 or is_list:
                    continue
                if hasattr(module, method):
                    setattr(module, method, _timed(getattr(module, method), part, spent))
                    restored.callback(delattr, module, method)
        shares = []
        for _ in range(count):
            spent.clear()
            total = seconds()
            shares.append({part: time / total for part, time in spent.items()})
    return {part: median(share[part] for share in shares) for part in shares[0]}


def _timed(function, part, spent):
    def call(*args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        spent[part] = spent.get(part, 0) + time.perf_counter() - start
        return result

    return call


def _self_time(event, device):
    if device != 'cuda':
        return event.self_cpu_time_total
    name = 'self_device_time_total'
    return getattr(event, name if hasattr(event, name) else 'self_cuda_time_total')  # torch 2.1


def machine(device: str) -> dict[str, Any]:
    """On what a figure was measured: hardware and versions."""
    facts = dict(
        hardware=torch.cuda.get_device_name() if device == 'cuda' else cpu_name(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        convnext_dense=__version__,
    )
    if commit := _commit():
        facts['commit'] = commit
    if device == 'cuda':
        facts.update(CUDA=torch.version.cuda, cuDNN=torch.backends.cudnn.version())
    return facts


def _commit():
    """Of this clone; '' where the package is installed, or there is no git."""
    root = Path(__file__).resolve().parents[2]
    command = ['git', '-C', str(root), 'rev-parse', '--short', 'HEAD']
    with contextlib.suppress(OSError):
        if (root / '.git').exists():
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return ''


def cpu_name() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(':') for line in lines)
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    flags, telling = facts.get('flags', '').split(), ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16')
    extra = [flag.upper() for flag in telling if flag in flags]
    return ' '.join([facts.get('model name', platform.processor()), *extra])
