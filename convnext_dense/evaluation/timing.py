"""Interleaved timing, the allocator's count of memory, and what the machine can do."""

import contextlib
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from rich.progress import track
from torch.profiler import ProfilerActivity, profile

# else the profiler writes a line whenever it starts or stops
os.environ.setdefault('KINETO_LOG_LEVEL', '99')

PARTS = {
    'matrix products': ('addmm', 'mm', 'bmm', 'linear_pointwise', 'mkl_linear', 'baddbmm'),
    'convolutions': ('convolution',),
    'LayerNorm': ('layer_norm',),
    'GELU': ('gelu',),
    'copies': ('copy_', 'clone'),
    'allocation': ('empty',),
}


class Candidate(NamedTuple):
    """A function to time, and what is known of it."""

    function: Callable | None  # None: there is nothing to time
    device: str
    facts: dict | None

    def seconds(self) -> float:
        start = time.perf_counter()
        self.function()
        synchronize(self.device)
        return time.perf_counter() - start

    def memory(self) -> int:
        return peak_memory(self.function, self.device)

    def shares(self) -> dict[str, float]:
        return shares(self.function, self.device)


def interleaved(
    candidates: dict[str, Callable[[], float]], count: int, title: str
) -> dict[str, list[float]]:
    """Seconds of ``count`` calls of each, in turns, so that what else the machine does hits all.

    Args:
        title: of the progress bar; without it there is none.
    """
    seconds = {name: [] for name in candidates}
    is_silent = not title or not sys.stdout.isatty()
    for i in track(range(count + 1), title, transient=True, disable=is_silent):
        for name, candidate in candidates.items():
            took = candidate()
            if i:  # the first is a warm-up
                seconds[name].append(took)
    return seconds


def fastest(candidates: Sequence[Candidate]) -> Candidate:
    """By the better of two calls of each; the first may be slow."""
    return min(candidates, key=lambda candidate: min(candidate.seconds() for _ in range(2)))


class Figures(NamedTuple):
    """Of a model beside others."""

    median: float  # seconds
    spread: float  # the middle half of the runs, as a share of the median
    speed: float  # relative to the fastest peer
    memory: int  # bytes
    relative_memory: float  # to the lightest peer's


def figures(rows: dict[str, dict]) -> dict[str, Figures]:
    """Of each row (``seconds``, a list, and ``memory``); peers are those that are not ours."""
    medians = {name: median(row['seconds']) for name, row in rows.items()}
    peers = [name for name in rows if not name.startswith('convnext_dense')]
    quickest = min((medians[name] for name in peers), default=math.nan)
    lightest = min((rows[name]['memory'] for name in peers), default=math.nan)
    answer = {}
    for name, row in rows.items():
        times, middle = sorted(row['seconds']), medians[name]
        spread = (times[-1 - len(times) // 4] - times[len(times) // 4]) / middle
        answer[name] = Figures(
            middle, spread, quickest / middle, row['memory'], row['memory'] / lightest
        )
    return answer


@contextlib.contextmanager
def tf32(is_on: bool) -> Iterator[None]:
    """Whether a GPU may round the factors of fp32 products and convolutions to 10 bits.

    Torch's default is yes in convolutions and no in products.
    """
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = is_on
        yield
    finally:
        for switch, value in zip(switches, before):
            switch.allow_tf32 = value


def synchronize(device: str):
    if device == 'cuda':
        torch.cuda.synchronize()


def peak_memory(function: Callable, device: str) -> int:
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


def operators(function: Callable) -> int:
    """Number of operators that a call runs, those within others included."""
    function()  # the first call may do more
    return sum(event.name() != '[memory]' for event in _events(function))


def _events(function):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    return record.profiler.kineto_results.events()  # record.events() takes a hundred times as long


def _start(event):
    return event.start_ns() if hasattr(event, 'start_ns') else event.start_us()  # torch 2.1


def shares(function: Callable, device: str) -> dict[str, float]:
    """What the time of a call goes to, by kind of operator."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == 'cuda')
    with profile(activities=activities) as record:
        function()
        synchronize(device)
    times = {event.key: _self_time(event, device) for event in record.key_averages()}
    parts = {}
    for key, value in times.items():
        name = next(
            (part for part, marks in PARTS.items() if any(mark in key for mark in marks)), key
        )
        parts[name] = parts.get(name, 0) + value / max(sum(times.values()), 1)
    return dict(sorted(parts.items(), key=lambda item: -item[1]))


def _self_time(event, device):
    if device != 'cuda':
        return event.self_cpu_time_total
    name = 'self_device_time_total'
    return getattr(event, name if hasattr(event, name) else 'self_cuda_time_total')  # torch 2.1


def product_rate(dtype: torch.dtype, device: str, side: int = 2048) -> float:
    """FLOP/s of a large matrix product, the best of eleven: what the machine can do at most."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = Candidate(lambda: a @ b, device, {})
    return 2 * side**3 / min(product.seconds() for _ in range(11))


def machine(device: str) -> dict[str, str]:
    """What a figure has to be read with."""
    facts = dict(
        hardware=torch.cuda.get_device_name() if device == 'cuda' else cpu_name(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        commit=_commit(),
    )
    if device == 'cuda':
        facts.update(CUDA=torch.version.cuda, cuDNN=torch.backends.cudnn.version())
    return facts


def _commit():
    """Of this clone; '' where the package is installed, or there is no git."""
    root = Path(__file__).resolve().parents[2]
    command = ['git', '-C', str(root), 'rev-parse', '--short', 'HEAD']
    try:
        if (root / '.git').exists():
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        pass
    return ''


def cpu_name() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            lines = [line.split(':', 1) for line in file if ':' in line]
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, value in lines}
    flags = facts.get('flags', '').split()
    extra = [
        flag.upper() for flag in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16') if flag in flags
    ]
    return ' '.join([facts.get('model name', platform.processor()), *extra])
