#!/usr/bin/env python3
"""Make a virtual environment with one OpenMMLab family and this package in it.

    python3 tools/env/make_env.py .venv tools/env/onedl.txt

PINS is a requirements file. mmcv has no wheels: it is compiled against the torch of the environment, and the
wheel is kept outside the clone, under a name that holds everything it was compiled for, so that the next clone
does not compile again. May be interrupted and run again: finished steps are quick, and the compiler goes on where
it was. Only the standard library is used, because nothing is installed yet.

environment variables: CPU=1 builds mmcv without CUDA on a machine that has a GPU;
CONVNEXT_DENSE_CACHE is where wheels are kept (default ~/.cache/convnext_dense).
"""

import argparse
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GB = 2**30
FIRST = (
    'torch',
    'torchvision',
    'numpy',
    'setuptools',
    'wheel',
    'packaging',
    'ninja',
    'psutil',
)  # to compile mmcv

# Printed as "torch, python tag, device tag"; the device tag is cpu, or CUDA version and compute capability.
DESCRIBE = """
import os, sys, torch
gpu = torch.cuda.is_available() and os.environ.get('CPU') != '1'
device = 'cpu' if not gpu else 'cu%s-sm%d%d' % (torch.version.cuda.replace('.', ''), *torch.cuda.get_device_capability())
print(torch.__version__, 'cp%d%d' % sys.version_info[:2], device)
"""

# One box suppressed by NMS, one average over a constant map: wrong or missing ops cannot pass.
PROVE_OPS = """
import sys, torch
from mmcv.ops import nms, roi_align
device = sys.argv[1]
boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30.]], device=device)
kept = nms(boxes, torch.tensor([.9, .8, .7], device=device), 0.5)[1]
assert kept.tolist() == [0, 2], kept
pooled = roi_align(torch.full((1, 1, 8, 8), 3., device=device), torch.tensor([[0, 1, 1, 6, 6.]], device=device), 2)
assert torch.allclose(pooled, torch.full_like(pooled, 3.)), pooled
print('nms and roi_align ran on', device)
"""


class Log:
    """Runs commands with their output in a file and one line on the screen that moves while they do."""

    def __init__(self, path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def run(self, title, command, estimate='', **kwargs):
        """Returns the output. Exits with the end of the log when the command fails."""
        print(f'-> {title}' + (f' ({estimate})' if estimate else ''), flush=True)
        start, last, lines = time.time(), '', []
        with open(self.path, 'a') as log:
            log.write(f'\n$ {" ".join(map(str, command))}\n')
            process = subprocess.Popen(
                [str(c) for c in command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
                start_new_session=True,
                **kwargs,
            )
            reader = threading.Thread(
                target=lambda: [(lines.append(s), log.write(s)) for s in process.stdout]
            )
            reader.start()
            try:
                while reader.is_alive():
                    # A terminal gets a line that moves twice a second, a log file one line every half minute.
                    reader.join(0.5 if sys.stdout.isatty() else 30)
                    last = _summary(lines[-1]) if lines else last
                    if reader.is_alive():
                        text = f'   {time.time() - start:4.0f} s  {last}'
                        print(
                            f'\r\033[K{text}' if sys.stdout.isatty() else text,
                            end='' if sys.stdout.isatty() else '\n',
                            flush=True,
                        )
            except KeyboardInterrupt:
                os.killpg(process.pid, signal.SIGINT)
                process.wait()
                sys.exit('\ninterrupted; run the same command again to go on')
            code = process.wait()
        if sys.stdout.isatty():
            print('\r\033[K', end='')
        if code:
            print(''.join(lines[-30:]))
            sys.exit(f'failed: {title}. The end of its output is above, all of it in {self.path}')
        print(f'   done in {time.time() - start:.0f} s', flush=True)
        return ''.join(lines)


def _summary(line):
    """A compiler's "[12/78] …long command" becomes its counter; anything else is cut to the screen."""
    counter = re.match(r'\s*\[(\d+)/(\d+)\]', line)
    return f'compiled {counter[1]} of {counter[2]} files' if counter else line.strip()[:100]


def read_pins(path):
    """Requirements file → dict: distribution name → 'name==version'."""
    lines = (line.split('#')[0].strip() for line in path.read_text().splitlines())
    return {re.split('[=<>]', line)[0]: line for line in lines if line}


def has_nvcc():
    """Where torch's build looks for it, too."""
    return bool(
        shutil.which('nvcc')
        or os.environ.get('CUDA_HOME')
        or Path('/usr/local/cuda/bin/nvcc').exists()
    )


def build_mmcv(pin, python, cache, log):
    """Compile mmcv for the environment's torch unless the cache has it. Returns (wheel, device tag)."""
    torch, tag, device = log.run('look at torch and the device', [python, '-c', DESCRIBE]).split()[
        -3:
    ]
    cuda = device != 'cpu'
    folder = cache / 'mmcv' / f'{pin.replace("==", "-")}-torch{torch}-{tag}-{device}'
    wheels = list(folder.glob('*.whl'))
    if wheels:
        print(f'-> mmcv was compiled before: {wheels[0]}')
        return wheels[0], device
    if cuda and not has_nvcc():
        sys.exit(
            'A GPU is visible, but nvcc, which compiles mmcv for it, is not on PATH.\n'
            'Install the CUDA toolkit (the version that torch was built with: see the step above) and put its\n'
            'bin folder on PATH or set CUDA_HOME; or set CPU=1 for an environment that uses the CPU only.'
        )
    if not shutil.which('c++') and not shutil.which('g++'):
        sys.exit(
            'mmcv has to be compiled, and there is no C++ compiler. On Debian or Ubuntu: apt install g++'
        )
    if not Path(sysconfig.get_path('include'), 'Python.h').exists():
        sys.exit(
            'mmcv has to be compiled, and the headers of Python are not there. On Debian or Ubuntu: '
            'apt install python3-dev'
        )
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / 'lock', 'w')  # held until this function returns
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(
            f'Another set-up is compiling this wheel in {folder}. Run this again when it has ended.'
        )
    source = folder / 'source'
    env = {
        **os.environ,
        'MMCV_WITH_OPS': '1',
        'FORCE_CUDA': str(int(cuda)),
        'CFLAGS': '-O2 -g0',
        'MAX_JOBS': str(os.cpu_count()),
    }
    if not cuda:
        env['CUDA_VISIBLE_DEVICES'] = ''
    if not source.exists():
        log.run(
            'fetch the sources of mmcv',
            [
                python,
                '-m',
                'pip',
                'download',
                pin,
                '--no-deps',
                '--no-binary',
                ':all:',
                '--no-build-isolation',
                '--no-cache-dir',
                '-d',
                folder,
            ],
            env=env,
        )
        shutil.unpack_archive(next(folder.glob('*.tar.gz')), folder / 'unpacked')
        next((folder / 'unpacked').iterdir()).rename(source)
    minutes = (
        'half an hour or more with CUDA'
        if cuda
        else f'about {max(2, 20 // os.cpu_count())} minutes'
    )
    # --no-cache-dir: pip's own cache does not know which torch a wheel was compiled for.
    log.run(
        f'compile mmcv and its ops on {os.cpu_count()} cores',
        [
            python,
            '-m',
            'pip',
            'wheel',
            source,
            '-v',
            '-w',
            folder / 'out',
            '--no-deps',
            '--no-build-isolation',
            '--no-cache-dir',
        ],
        estimate=minutes,
        env=env,
    )
    built = next((folder / 'out').glob('*.whl'))
    wheel = built.rename(folder / built.name)
    for leftover in (source, folder / 'unpacked', folder / 'out'):
        shutil.rmtree(leftover, ignore_errors=True)
    return wheel, device


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('venv', type=Path, help='folder of the environment')
    parser.add_argument('pins', type=Path, help='requirements file of a family')
    parser.add_argument(
        '--max-python', default='3.13', help='newest Python that the family runs on'
    )
    args = parser.parse_args()

    newest = tuple(map(int, args.max_python.split('.')))
    if not (3, 10) <= sys.version_info[:2] <= newest:
        sys.exit(
            f'{args.pins.stem} needs Python 3.10 to {args.max_python}, this is {sys.version.split()[0]}. '
            f'Name another: make PYTHON=python3.11 …'
        )
    for ending in (signal.SIGTERM, signal.SIGHUP):  # end like Ctrl-C: no compiler is left running
        signal.signal(ending, signal.default_int_handler)
    free = shutil.disk_usage(args.venv.absolute().parent).free
    if free < 9 * GB and not args.venv.exists():
        sys.exit(
            f'An environment takes about 9 GB on disk, {args.venv.absolute().parent} has {free / GB:.1f} GB free.'
        )

    default_cache = (
        Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'convnext_dense'
    )
    cache = Path(os.environ.get('CONVNEXT_DENSE_CACHE', default_cache))
    python = args.venv.absolute() / 'bin' / 'python'
    pip = [python, '-m', 'pip', 'install', '--no-input', '--disable-pip-version-check']
    pins = read_pins(args.pins)
    mmcv = next(pin for name, pin in pins.items() if name.endswith('mmcv'))

    print(
        f'Setting up {args.venv} with {args.pins}: about 5 minutes, and 10 more if mmcv is to be compiled '
        f'(two cores).'
    )
    log = Log(args.venv / 'setup.log')
    log.run('make the virtual environment', [sys.executable, '-m', 'venv', args.venv])
    log.run(
        'install torch and the build tools',
        [*pip, *(pins[name] for name in FIRST)],
        estimate='about 2 minutes, 5 GB',
    )
    wheel, device = build_mmcv(mmcv, python, cache, log)
    # Forced, because a wheel for another torch or device has the same version.
    log.run('install mmcv', [*pip, '--force-reinstall', '--no-deps', wheel])
    log.run(
        'install the OpenMMLab family and the test tools',
        [*pip, '-r', args.pins],
        estimate='about 2 minutes',
    )
    log.run('install convnext_dense', [*pip, '--no-deps', '--no-build-isolation', '-e', ROOT])
    for where in ('cpu',) if device == 'cpu' else ('cpu', 'cuda'):
        print(
            log.run(
                f'prove the compiled ops on {where} (if they fail, delete {wheel.parent})',
                [python, '-c', PROVE_OPS, where],
            ),
            end='',
        )
    (args.venv / '.ready').write_text(f'{wheel.parent.name}\n')


if __name__ == '__main__':
    main()
