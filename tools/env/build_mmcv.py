"""mmcv has no wheels: it is compiled against the torch of the environment, and the wheel kept."""

import fcntl
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from .steps import Log
from .unity_files import unite

# Printed as "torch, python tag, device tag"; the device tag is cpu, or CUDA version and compute
# capability.
DESCRIBE = """
import os, sys, torch
device = 'cpu'
if torch.cuda.is_available() and os.environ.get('CPU') != '1':
    capability = '%d%d' % torch.cuda.get_device_capability()
    device = 'cu%s-sm%s' % (torch.version.cuda.replace('.', ''), capability)
print(torch.__version__, 'cp%d%d' % sys.version_info[:2], device)
"""
NO_NVCC = """A GPU is visible, but nvcc, which compiles mmcv for it, is not on PATH.
Install the CUDA toolkit (the version that torch was built with: see the step above) and put its
bin folder on PATH or set CUDA_HOME; or set CPU=1 for an environment that uses the CPU only."""
NO_COMPILER = """mmcv has to be compiled, and there is no C++ compiler. On Debian or Ubuntu:
apt install g++"""
NO_HEADERS = """mmcv has to be compiled, and the headers of Python are not there. On Debian or
Ubuntu: apt install python3-dev"""


def build_mmcv(pin: str, python, cache: Path, log: Log) -> tuple[Path, str]:
    """Compile mmcv unless the cache has it, under a name that holds all it was compiled for.

    Returns:
        The wheel, and the device tag.
    """
    description = log.run('look at torch and the device', [python, '-c', DESCRIBE])
    torch, tag, device = description.split()[-3:]
    folder = cache / 'mmcv' / f'{pin.replace("==", "-")}-torch{torch}-{tag}-{device}'
    wheels = list(folder.glob('*.whl'))
    if wheels:
        print(f'-> mmcv was compiled before: {wheels[0]}')
        return wheels[0], device
    if device != 'cpu' and not has_nvcc():
        sys.exit(NO_NVCC)
    if not shutil.which('c++') and not shutil.which('g++'):
        sys.exit(NO_COMPILER)
    if not Path(sysconfig.get_path('include'), 'Python.h').exists():
        sys.exit(NO_HEADERS)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(
                f'Another set-up compiles this wheel in {folder}. Run this again when it ends.'
            )
        return _compile(pin, python, folder, device != 'cpu', log), device


def has_nvcc() -> bool:
    """Where torch's build looks for it, too."""
    named = shutil.which('nvcc') or os.environ.get('CUDA_HOME')
    return bool(named or Path('/usr/local/cuda/bin/nvcc').exists())


def _compile(pin: str, python, folder: Path, cuda: bool, log: Log) -> Path:
    """--no-cache-dir: pip's own cache does not know which torch a wheel was compiled for."""
    env = dict(os.environ, MMCV_WITH_OPS='1', FORCE_CUDA=str(int(cuda)), CFLAGS='-O2 -g0')
    env['MAX_JOBS'] = str(os.cpu_count())
    if not cuda:
        env['CUDA_VISIBLE_DEVICES'] = ''
    pip, options = [python, '-m', 'pip'], ['--no-deps', '--no-build-isolation', '--no-cache-dir']
    source, unpacked, out = folder / 'source', folder / 'unpacked', folder / 'out'
    if not source.exists():
        download = [*pip, 'download', pin, *options, '--no-binary', ':all:', '-d', folder]
        log.run('fetch the sources of mmcv', download, env=env)
        shutil.unpack_archive(next(folder.glob('*.tar.gz')), unpacked)
        (sources,) = unpacked.iterdir()
        unite(sources)
        sources.rename(source)
    cores = os.cpu_count() or 1
    minutes = 'half an hour or more with CUDA' if cuda else f'about {max(1, 4 // cores)} minutes'
    wheel = [*pip, 'wheel', source, '-v', '-w', out, *options]
    log.run(f'compile mmcv and its ops on {cores} cores', wheel, minutes, env=env)
    built = next(out.glob('*.whl'))
    kept = built.rename(folder / built.name)
    for leftover in (source, unpacked, out):
        shutil.rmtree(leftover, ignore_errors=True)
    return kept
