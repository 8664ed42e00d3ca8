"""The folder of a training: checkpoints that are never half written, one training at a time, and
the checkpoint to go on from."""

import contextlib
import fcntl
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import ConfigError, WeightsError
from ..weights.reading import read
from ..weights.zipcheck import check_zip

UNFINISHED, REPLACED = '.unfinished', '.replaced'  # endings of names


def unfinished(path: str | Path) -> Path:
    """Where a checkpoint is written, to be put into its place by ``put_in_place``."""
    return Path(f'{path}{UNFINISHED}')


def put_in_place(path: str | Path) -> None:
    """Give a checkpoint its name once it is on the disk. So there is none of that name, the older
    or the newer one, and never a part of it, whenever the process ends.

    A folder that is there already is renamed first, and removed afterwards.

    Raises:
        OSError: it cannot be written; what was at ``path`` before is still there.
    """
    path, source = Path(path), unfinished(path)
    for file in source.rglob('*') if source.is_dir() else [source]:
        if file.is_file():
            with open(file, 'rb') as opened:
                os.fsync(opened.fileno())
    replaced = Path(f'{path}{REPLACED}')
    if path.is_dir():
        remove(replaced)
        os.replace(path, replaced)
    os.replace(source, path)
    remove(replaced)


def remove(path: Path) -> None:
    """A file or folder, where it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
            if self.backend.isdir(path):  # of DeepSpeed, and of FSDP by default
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
            check_checkpoint(path)
        except WeightsError as error:
            failed.append(path)
            say(f'{path} cannot be read, an older checkpoint is looked for: {error}')
        else:
            return path
    if failed:
        raise WeightsError(f'no checkpoint in {work_dir} can be read')
    return None


def check_checkpoint(path: str | Path) -> None:
    """
    Args:
        path: a file; or a folder, as DeepSpeed and FSDP write them: then its files are looked at.

    Raises:
        WeightsError: it is not there, or not whole.
    """
    path = Path(path)
    if not path.is_dir():
        read(path)
        return
    files = [file for file in sorted(path.rglob('*')) if file.suffix in ('.pt', '.pth')]
    if not files:
        raise WeightsError(f'{path} is a folder without files of weights (.pt, .pth)')
    for file in files:
        try:
            with open(file, 'rb') as opened, zipfile.ZipFile(opened) as archive:
                check_zip(opened, archive)
        except (OSError, zipfile.BadZipFile) as error:
            raise WeightsError(f'{file} is damaged or cut short ({error})') from None


def _candidates(folder: Path) -> Iterator[Path]:
    named = None
    with contextlib.suppress(OSError):
        text = (folder / 'last_checkpoint').read_text(encoding='utf-8').strip()
        named = Path(text) if text else None
    if named:
        beside = folder / named.name
        named = beside if beside.exists() else named
        if named.exists():
            yield named
    endings = '.pth', f'.pth{REPLACED}'
    others = [
        path
        for kind in ('epoch', 'iter')
        for ending in endings
        for path in folder.glob(f'{kind}_*{ending}')
    ]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        if path != named:
            yield path
