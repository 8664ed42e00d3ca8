"""The folder of a training: checkpoints that are never half written, one training at a time, and
the checkpoint to go on from."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mmengine.fileio import LocalBackend, register_backend

from ..errors import ConfigError, WeightsError
from ..weights.reading import read

BACKEND = 'convnext_dense.WholeFiles'  # for backend_args


@register_backend(BACKEND, force=True)
class WholeFileBackend(LocalBackend):
    """Local files, each of which is there whole or not at all, whenever the process ends."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write ``obj`` beside the file, and put it into its place when it is on the disk.

        Raises:
            OSError: it cannot be written; what was at ``filepath`` before is still there.
        """
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f'{path.name}.unfinished')
        try:
            with open(unfinished, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise


class RemovesLater:
    """A storage backend whose removals wait for ``flush``."""

    def __init__(self, backend):
        self.backend, self.paths = backend, []

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.paths.append(path)

    rmtree = remove

    def flush(self, kept: str | None) -> None:
        """Remove what was to be removed, but for the path ``kept``."""
        for path in self.paths:
            if path == kept:
                continue
            if self.backend.isdir(path):  # DeepSpeed's checkpoints are folders
                self.backend.rmtree(path)
            elif self.backend.isfile(path):
                self.backend.remove(path)


def lock(work_dir: str | Path) -> IO:
    """Keep other trainings out of a folder until the returned file is closed or the process ends.

    Its child processes do not hold the lock, so that a training whose main process was killed can
    go on at once.

    Raises:
        ConfigError: another training runs in this folder.
    """
    path = Path(work_dir, '.training')
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, 'a+', encoding='utf-8')  # noqa: SIM115 closed by the caller
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        process = file.read().strip()
        file.close()
        raise ConfigError(
            f'another training runs in {work_dir} ({process or "its process is not known"}): wait '
            'for its end, or name another folder with --work-dir'
        ) from error
    except OSError:  # a file system without locks
        return file
    file.truncate(0)
    file.write(f'process {os.getpid()} on {os.uname().nodename}')
    file.flush()
    return file


def latest_checkpoint(work_dir: str | Path, say=print) -> Path | None:
    """The newest checkpoint of a training that can be read; None if there is none.

    The one that ``last_checkpoint`` names comes first. It lies beside that file when the folder has
    been moved or copied.

    Args:
        say: is called with a line for each checkpoint that cannot be read.

    Raises:
        WeightsError: there are checkpoints, and none can be read.
    """
    folder, failed = Path(work_dir), []
    for path in _candidates(folder):
        try:
            read(path)
        except WeightsError as error:
            failed.append(path)
            say(f'{path} cannot be read, an older checkpoint is looked for: {error}')
        else:
            return path
    if failed:
        raise WeightsError(f'no checkpoint in {work_dir} can be read')
    return None


def _candidates(folder: Path) -> Iterator[Path]:
    named = None
    with contextlib.suppress(OSError):
        text = (folder / 'last_checkpoint').read_text(encoding='utf-8').strip()
        named = Path(text) if text else None
    if named:
        beside = folder / named.name
        named = beside if beside.exists() else named
        if named.is_file():
            yield named
    others = [path for pattern in ('epoch_*.pth', 'iter_*.pth') for path in folder.glob(pattern)]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        if path != named:
            yield path
