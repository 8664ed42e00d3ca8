"""mmcv has no wheels: it is compiled against the torch of the environment, and the wheel kept."""

import fcntl
import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from .steps import Log
from .unity_files import unite

# Of the environment: torch's version, Python's tag, torch's CUDA and, where a GPU is visible, its
# compute capability.
DESCRIBE = """
import sys, torch
visible = torch.cuda.is_available()
capability = '%d.%d' % torch.cuda.get_device_capability() if visible else ''
print(torch.__version__, 'cp%d%d' % sys.version_info[:2], torch.version.cuda, capability, sep=';')
"""
NO_ARCHITECTURE = """FORCE_CUDA=1 without a visible GPU: name the compute capability of the GPUs
that mmcv is compiled for, such as TORCH_CUDA_ARCH_LIST=9.0 for H100 or 8.0 for A100."""
NO_NVCC = """mmcv is to be compiled for GPUs, but nvcc, which does that, is not on PATH.
Install the CUDA toolkit (the version that torch was built with: see the step above) and put its
bin folder on PATH or set CUDA_HOME; or set CPU=1 for an environment that uses the CPU only."""
NO_COMPILER = """mmcv has to be compiled, and there is no C++ compiler. On Debian or Ubuntu:
apt install g++"""
NO_HEADERS = """mmcv has to be compiled, and the headers of Python are not there. On Debian or
Ubuntu: apt install python3-dev"""


def build_mmcv(pin: str, python: Path, cache: Path, log: Log) -> Path:
    """Compile mmcv unless the cache has it, under a name that holds all it was compiled for."""
    description = log.run('look at torch and the device', [python, '-c', DESCRIBE])
    torch, tag, cuda, visible = description.splitlines()[-1].split(';')
    device, architectures = 'cpu', ''
    if os.environ.get('CPU') != '1' and (visible or os.environ.get('FORCE_CUDA') == '1'):
        architectures = os.environ.get('TORCH_CUDA_ARCH_LIST') or visible
        if not architectures:
            sys.exit(NO_ARCHITECTURE)
        device = f'cu{cuda}-sm{re.sub("[; ]+", "-", architectures)}'.replace('.', '')
    folder = cache / 'mmcv' / f'{pin.replace("==", "-")}-torch{torch}-{tag}-{device}'
    wheels = list(folder.glob('*.whl'))
    if wheels:
        print(f'-> mmcv was compiled before: {wheels[0]}')
        return wheels[0]
    if architectures and not has_nvcc():
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
        return _compile(pin, python, folder, architectures, lock, log)


def has_nvcc() -> bool:
    """Where torch's build looks for it, too."""
    named = shutil.which('nvcc') or os.environ.get('CUDA_HOME')
    return bool(named or Path('/usr/local/cuda/bin/nvcc').exists())


def _compile(pin, python: Path, folder: Path, architectures: str, lock, log: Log) -> Path:
    """--no-cache-dir: pip's own cache does not know which torch a wheel was compiled for."""
    cores = os.cpu_count() or 1
    env = dict(os.environ, MMCV_WITH_OPS='1', CFLAGS='-O2 -g0', MAX_JOBS=str(cores))
    env['FORCE_CUDA'] = '1' if architectures else '0'
    if architectures:
        env['TORCH_CUDA_ARCH_LIST'] = architectures
        # Torch's own packages have the headers that a small CUDA toolkit lacks.
        headers = python.parents[1].glob('lib/python*/site-packages/nvidia/*/include')
        named = filter(None, [env.get('CPLUS_INCLUDE_PATH')])
        env['CPLUS_INCLUDE_PATH'] = os.pathsep.join([*named, *map(str, headers)])
    else:
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
    for library in source.glob('build/lib*/mmcv/*.so'):
        library.unlink()  # half-written if a linker was killed, and setuptools would keep it
    minutes = max(1, (60 if architectures else 4) // cores)
    wheel = [*pip, 'wheel', source, '-v', '-w', out, *options]
    title = f'compile mmcv and its ops on {cores} cores'
    # The compiler holds the lock as well, in case that it outlives this process.
    log.run(title, wheel, f'about {minutes} minutes', env=env, pass_fds=[lock.fileno()])
    built = next(out.glob('*.whl'))
    kept = built.rename(folder / built.name)
    for leftover in (source, unpacked, out):
        shutil.rmtree(leftover, ignore_errors=True)
    return kept
