"""What the benchmarks share: interleaved timing, the allocator's count of memory, and what the machine can do."""
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
import warnings
from typing import Callable, Dict, List, NamedTuple

import torch
from common import quiet
from rich.progress import track
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # else the profiler writes a line whenever it starts or stops

PARTS = {'matrix products': ('addmm', 'mm', 'bmm', 'linear_pointwise', 'mkl_linear', 'baddbmm'), 'convolutions': ('convolution',),
         'LayerNorm': ('layer_norm',), 'GELU': ('gelu',), 'copies': ('copy_', 'clone'), 'allocation': ('empty',)}


class Candidate(NamedTuple):
    """What a process has to time, and what is known of it."""
    function: Callable
    device: str
    facts: dict

    def seconds(self) -> float:
        start = time.perf_counter()
        self.function()
        synchronize(self.device)
        return time.perf_counter() - start

    def memory(self) -> int:
        return peak_memory(self.function, self.device)

    def shares(self) -> Dict[str, float]:
        return shares(self.function, self.device)


class Process:
    """``make(*args)``, a Candidate, in a process of its own, so that no other model has warmed its memory: beside others in one
    process, a model that allocates much finds pages that are there already, and looks 1.2 times as fast as its users see it.

    Raises:
        RuntimeError: ``make`` or the candidate raised something, or the process was killed.
    """

    def __init__(self, make: Callable, *args):
        context = multiprocessing.get_context('spawn')
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, torch.get_num_threads(), make, args), daemon=True)
        self.process.start()
        other.close()

    def ask(self, what: str):
        """``facts``, ``seconds``, ``memory`` or ``shares`` of the candidate."""
        try:
            self.pipe.send(what)
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError('its process has died: out of memory?') from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self):
        self.process.terminate()
        self.process.join()


def _serve(pipe, threads, make, args):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks, and it ends this one
    warnings.simplefilter('ignore')  # of other libraries, for every model again; what matters raises
    torch.set_num_threads(threads)
    candidate = None
    while True:
        what = pipe.recv()
        try:
            with quiet():
                candidate = candidate or make(*args)
            answer = candidate.facts if what == 'facts' else getattr(candidate, what)()
        except Exception as error:
            answer = RuntimeError(f'{type(error).__name__}: {error}')
        pipe.send(answer)


def interleaved(candidates: Dict[str, Callable[[], float]], count: int, what: str) -> Dict[str, List[float]]:
    """Seconds of ``count`` calls of each, in turns, so that what else the machine does hits all alike."""
    seconds = {name: [] for name in candidates}
    for round_ in track(range(count + 1), what, transient=True, disable=not sys.stdout.isatty()):  # the first is a warm-up
        for name, candidate in candidates.items():
            took = candidate()
            if round_:
                seconds[name].append(took)
    return seconds


def synchronize(device):
    if device == 'cuda':
        torch.cuda.synchronize()


def peak_memory(function: Callable, device: str) -> int:
    """Bytes at the peak of a call, above what was allocated before it, by the allocator's own count."""
    if device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == '[memory]']
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns() if hasattr(event, 'start_ns') else event.start_us()):  # torch 2.1
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def shares(function: Callable, device: str) -> Dict[str, float]:
    """What the time of a call goes to, by kind of operator."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == 'cuda')
    with profile(activities=activities) as record:
        function()
        synchronize(device)
    own = {event.key: event.self_device_time_total if device == 'cuda' else event.self_cpu_time_total for event in record.key_averages()}
    found = {}
    for key, value in own.items():
        name = next((part for part, marks in PARTS.items() if any(mark in key for mark in marks)), key)
        found[name] = found.get(name, 0) + value / max(sum(own.values()), 1)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def product_rate(dtype: torch.dtype, device: str, side: int = 2048) -> float:
    """FLOP/s of a large matrix product, the best of eleven: what the machine can do at most."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = Candidate(lambda: a @ b, device, {})
    return 2 * side**3 / min(product.seconds() for _ in range(11))


def machine(device: str) -> Dict[str, str]:
    """What a figure has to be read with."""
    name = torch.cuda.get_device_name() if device == 'cuda' else cpu_name()
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=os.path.dirname(__file__), capture_output=True, text=True)
    return dict(hardware=name, threads=torch.get_num_threads(), torch=torch.__version__, python=platform.python_version(),
                commit=commit.stdout.strip())


def cpu_name():
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            found = dict(line.split(':', 1) for line in file if ':' in line)
        names = {key.strip(): value.strip() for key, value in found.items()}
        extra = [flag.upper() for flag in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16') if flag in names.get('flags', '').split()]
        return ' '.join([names.get('model name', platform.processor()), *extra])
    except OSError:
        return platform.processor() or platform.machine()
