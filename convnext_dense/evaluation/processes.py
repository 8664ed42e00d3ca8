"""Models in processes of their own, which answer questions."""

import json
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from ..printing import progress, quiet
from ..training.work_dir import put_in_place, unfinished

_starting = threading.Lock()  # libraries refuse to fork while another thread does


class Process:
    """The object that ``make(*args)`` returns, in a process of its own.

    Beside other models in one process, a model that allocates much finds pages of memory that
    they have made ready, and looks 1.2 times as fast as its users see it.

    Args:
        method: of multiprocessing; ``'fork'`` has what is imported here already.
    """

    def __init__(self, make: Callable, *args, method: Literal['spawn', 'fork'] = 'spawn'):
        context: Any = multiprocessing.get_context(method)
        self.pipe, far_end = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(far_end, torch.get_num_threads(), make, args), daemon=True
        )
        with _starting:
            self.process.start()
        far_end.close()

    def ask(self, question: str, seconds: float | None = None) -> Any:
        """The object's attribute, or its method's result, of that name.

        Args:
            seconds: that it may take; None: as long as it needs.

        Raises:
            RuntimeError: ``make`` or the object raised something, the process was killed, or took
                too long.
        """
        try:
            self.pipe.send(question)
            if not self.pipe.poll(seconds):
                raise RuntimeError(f'it took more than {seconds} s')
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError('its process has died: out of memory?') from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        self.process.terminate()
        self.process.join()


def _serve(pipe, threads, make, args):
    # Ctrl-C is for the process that asks, and it ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Those of other libraries, for every model again; what matters raises.
    warnings.simplefilter('ignore')
    torch.set_num_threads(threads)
    served = None
    while True:
        question = pipe.recv()
        try:
            with quiet():
                served = served or make(*args)
            answer = getattr(served, question)
            answer = answer() if callable(answer) else answer
        except Exception as error:
            answer = RuntimeError(f'{type(error).__name__}: {error}')
        pipe.send(answer)


def ask_each(
    question: str, starts: Mapping[Path, Callable[[], Process]], seconds: float
) -> list[dict | RuntimeError]:
    """Ask many processes, each once, and as many at a time as there are cores.

    Args:
        question: a method that returns a dataclass.
        starts: the file that keeps an answer for the next run -> what starts the process.
        seconds: that an answer may take.

    Returns:
        The fields of each answer; or, kept nowhere, the error that ``Process.ask`` raised.
    """

    def ask(path: Path, start: Callable[[], Process]) -> dict | RuntimeError:
        if path.exists():
            return json.loads(path.read_text())
        process = start()
        try:
            answer = asdict(process.ask(question, seconds))
        except RuntimeError as error:
            return error
        finally:
            process.end()
        unfinished(path).write_text(json.dumps(answer, default=str))
        put_in_place(path)
        return answer

    for path in starts:
        path.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(progress(threads.map(ask, starts, starts.values()), question, len(starts)))
