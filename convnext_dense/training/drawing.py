"""What the hooks that draw pictures share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mmengine.runner import Runner


def path_in_work_dir(runner: Runner, name: str) -> Path:
    path = Path(runner.work_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def failures_as_warnings(runner: Runner) -> Iterator[None]:
    """A picture that cannot be drawn (the disk is full, say) is no reason to end the training."""
    try:
        yield
    except Exception as error:
        runner.logger.warning(f'no picture of the training: {type(error).__name__}: {error}')
