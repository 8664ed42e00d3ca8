"""The facts about this machine that the checks judge."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from .trials import TRIALS

SECONDS = 10  # that a host has to answer
# Loaded as a file: as a module it would import its room, which needs torch.
PRESETS = Path(__file__).parents[1] / 'weights/presets.py'
# What train and test read below the current folder; the parts that one split needs on each line.
LAYOUTS = {
    'data/coco': (
        ('train2017', 'annotations/instances_train2017.json'),
        ('val2017', 'annotations/instances_val2017.json'),
    ),
    'data/ade': (
        ('ADEChallengeData2016/images/training', 'ADEChallengeData2016/annotations/training'),
        ('ADEChallengeData2016/images/validation', 'ADEChallengeData2016/annotations/validation'),
    ),
}


class Distribution(NamedTuple):
    version: str
    requirements: list[str]  # as in its metadata


class Facts(NamedTuple):
    pip: str  # the command that installs into this environment
    distributions: dict[str, Distribution]
    owners: dict[str, list[str]]  # package -> the distributions that install it
    failed: tuple[str, str]  # the first trial that fails, and its error; two '' if none does
    gpus: list[str]  # that the driver shows, hidden ones left out
    tools: dict[str, str]  # what compiles mmcv -> where it is, '' if it is not there
    data: dict[str, str]  # missing part of a data folder -> where it lies instead, or ''
    free: dict[str, tuple[Path, float]]  # what is written -> its folder, and GB that are free there
    unreachable: dict[str, str]  # host of published weights -> error


def facts(offline: bool = False) -> Facts:
    """``offline`` asks no host for its files."""
    owners, gpus = package_owners(), visible_gpus()
    return Facts(
        pip=pip_command(),
        distributions=installed(),
        owners=owners,
        failed=first_failure(owners, bool(gpus)),
        gpus=gpus,
        tools=compilers(),
        data=misplaced(Path()),
        free={
            name: (folder, free_gigabytes(folder))
            for name, folder in dict(checkpoints=Path.cwd(), weights=weights_folder()).items()
        },
        unreachable={} if offline else unreachable_hosts(),
    )


def normalised(name: str) -> str:
    return re.sub('[-_.]+', '-', name).lower()


def named_distributions() -> list[tuple[str, metadata.Distribution]]:
    """From the end of the path to its beginning, so that a dict keeps those that are imported."""
    return [
        (normalised(distribution.metadata['Name']), distribution)
        for distribution in reversed(list(metadata.distributions()))
        if 'Name' in distribution.metadata  # not in what an interrupted pip leaves
    ]


def package_owners() -> dict[str, list[str]]:
    """As metadata.packages_distributions(), which on Python 3.10 misses onedl-mmengine."""
    owners: dict[str, set[str]] = {}
    for name, distribution in named_distributions():
        record = distribution.read_text('RECORD') or ''  # an editable install lists no package
        packages = re.findall(r'^(\w+)/__init__\.py,', record, re.M)
        for package in [*packages, *(distribution.read_text('top_level.txt') or '').split()]:
            owners.setdefault(package, set()).add(name)
    return {package: sorted(names) for package, names in owners.items()}


def installed() -> dict[str, Distribution]:
    return {
        name: Distribution(distribution.version, distribution.requires or [])
        for name, distribution in named_distributions()
    }


def pip_command() -> str:
    """Users whose environment is not activated have another ``pip``, or none."""
    if shutil.which('pip') == str(Path(sys.executable).with_name('pip')):
        return 'pip'
    return f'{shlex.quote(sys.executable)} -m pip'


def first_failure(owners: dict[str, list[str]], gpu: bool) -> tuple[str, str]:
    names = [trial.__name__ for trial in TRIALS]
    names = [name for name in names if name.partition('_')[0] in owners]
    names = [name for name in names if gpu or not name.endswith('gpu')]
    script = Path(__file__).with_name('trials.py')
    child = subprocess.run(
        [sys.executable, script, *names],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),  # it sees what is seen here
    )
    if not child.returncode:
        return '', ''
    name = child.stdout.split()[-1]
    if child.returncode != 1:  # not by the script
        return name, f'it ends Python with status {child.returncode}'
    return name, child.stderr.splitlines()[-1]


def visible_gpus() -> list[str]:
    if os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'):  # hidden on purpose
        return []
    if shutil.which('nvidia-smi'):
        listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True)
        if not listed.returncode:
            return [line for line in listed.stdout.splitlines() if line.startswith('GPU ')]
    return [str(device) for device in sorted(Path('/dev').glob('nvidia[0-9]*'))]


def compilers() -> dict[str, str]:
    headers = Path(sysconfig.get_path('include'), 'Python.h')
    cuda = Path(os.environ.get('CUDA_HOME', '/usr/local/cuda'), 'bin')
    return dict(
        compiler=shutil.which(os.environ.get('CXX', 'c++').split()[0]) or '',
        headers=str(headers) if headers.exists() else '',
        nvcc=shutil.which('nvcc') or shutil.which('nvcc', path=str(cuda)) or '',
    )


def misplaced(root: Path) -> dict[str, str]:
    """Missing parts of the data folders that are there.

    A split may be absent as a whole, as long as the other one is complete.
    """
    missing: dict[str, str] = {}
    for folder, splits in LAYOUTS.items():
        if not (root / folder).is_dir():
            continue
        absent = [
            [part for part in parts if not (root / folder / part).exists()] for parts in splits
        ]
        for parts, lacking in zip(splits, absent):
            if lacking != list(parts) or [] not in absent:
                missing |= {f'{folder}/{part}': elsewhere(root / folder, part) for part in lacking}
    return missing


def elsewhere(folder: Path, part: str) -> str:
    """Where in a data folder of another layout a part lies, at most two folders deeper."""
    end = part.removeprefix('ADEChallengeData2016/')
    places = [place for depth in ('', '*/', '*/*/') for place in folder.glob(depth + end)]
    return str(min(places)) if places else ''  # YOLO's images/train2017, not its labels/train2017


def weights_folder() -> Path:
    """Where downloaded weights are kept: torch.hub.get_dir(), which needs torch to be asked."""
    cache = os.environ.get('XDG_CACHE_HOME', '~/.cache')
    return Path(os.environ.get('TORCH_HOME', f'{cache}/torch')).expanduser() / 'hub'


def free_gigabytes(folder: Path) -> float:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


def unreachable_hosts() -> dict[str, str]:
    """A published file of each host is asked for."""
    hub = os.environ.get('HF_ENDPOINT', 'https://huggingface.co')
    files: dict[str, str] = {}
    for preset in runpy.run_path(str(PRESETS))['PRESETS'].values():
        is_url = preset.source.startswith('https://')
        url = preset.source if is_url else f'{hub}/{preset.source}/resolve/main/model.safetensors'
        files.setdefault(urlsplit(url).netloc, url)
    with ThreadPoolExecutor() as threads:
        errors = zip(files, threads.map(error_of, files.values()))
    return {host: error for host, error in errors if error}


def error_of(url: str) -> str:
    try:
        with urlopen(Request(url, method='HEAD'), timeout=SECONDS):
            return ''
    except (OSError, HTTPException) as error:
        return str(error)
