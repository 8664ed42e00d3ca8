"""Make a virtual environment with one OpenMMLab family and this package in it.

    python3 -m tools.env.make_env .venv tools/env/onedl.txt     (from the root of the clone)

PINS is a requirements file. mmcv is compiled, and its wheel is kept outside the clone, so that the
next clone does not compile again. May be interrupted and run again: finished steps are quick, and
the compiler goes on where it was. Only the standard library is used: nothing is installed yet.

environment variables: CPU=1 builds mmcv without CUDA on a machine that has a GPU;
CONVNEXT_DENSE_CACHE is where wheels are kept (default ~/.cache/convnext_dense).
"""

import argparse
import os
import re
import shutil
import signal
import sys
from pathlib import Path

from .build_mmcv import build_mmcv
from .steps import Log

ROOT = Path(__file__).resolve().parents[2]
GB = 2**30
# What mmcv is compiled with.
FIRST = ('torch', 'torchvision', 'numpy', 'setuptools', 'wheel', 'packaging', 'ninja', 'psutil')

# One box suppressed by NMS, one average over a constant map: wrong or missing ops cannot pass.
PROVE_OPS = """
import sys, torch
from mmcv.ops import nms, roi_align
device = sys.argv[1]
boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30.]], device=device)
kept = nms(boxes, torch.tensor([.9, .8, .7], device=device), 0.5)[1]
assert kept.tolist() == [0, 2], kept
ones, roi = torch.full((1, 1, 8, 8), 3., device=device), [[0, 1, 1, 6, 6.]]
pooled = roi_align(ones, torch.tensor(roi, device=device), 2)
assert torch.allclose(pooled, torch.full_like(pooled, 3.)), pooled
print('nms and roi_align ran on', device)
"""


def read_pins(path: Path) -> dict[str, str]:
    """Of a requirements file: name of the distribution -> 'name==version'."""
    lines = (line.split('#')[0].strip() for line in path.read_text().splitlines())
    return {re.split('[=<>]', line)[0]: line for line in lines if line}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('venv', type=Path, help='folder of the environment')
    parser.add_argument('pins', type=Path, help='requirements file of a family')
    newest_help = 'newest Python that the family runs on'
    parser.add_argument('--max-python', default='3.13', help=newest_help)
    args = parser.parse_args()

    newest = tuple(map(int, args.max_python.split('.')))
    if not (3, 10) <= sys.version_info[:2] <= newest:
        sys.exit(
            f'{args.pins.stem} needs Python 3.10 to {args.max_python}, this is '
            f'{sys.version.split()[0]}. Name another: make PYTHON=python3.11 ...'
        )
    for ending in (signal.SIGTERM, signal.SIGHUP):  # end like Ctrl-C: no compiler is left running
        signal.signal(ending, signal.default_int_handler)
    parent = args.venv.absolute().parent
    free = shutil.disk_usage(parent).free / GB
    if free < 9 and not args.venv.exists():
        sys.exit(f'An environment takes about 9 GB on disk, {parent} has {free:.1f} GB free.')

    home = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'convnext_dense'
    cache = Path(os.environ.get('CONVNEXT_DENSE_CACHE', home))
    python = args.venv.absolute() / 'bin' / 'python'
    pip = [python, '-m', 'pip', 'install', '--no-input', '--disable-pip-version-check']
    pins = read_pins(args.pins)
    mmcv = next(pin for name, pin in pins.items() if name.endswith('mmcv'))

    print(f'Setting up {args.venv} with {args.pins}: about 5 minutes on two cores.')
    log = Log(args.venv / 'setup.log')
    log.run('make the virtual environment', [sys.executable, '-m', 'venv', args.venv])
    first = [*pip, *(pins[name] for name in FIRST)]
    log.run('install torch and the build tools', first, 'about 2 minutes, 5 GB')
    wheel, device = build_mmcv(mmcv, python, cache, log)
    # Forced, because a wheel for another torch or device has the same version.
    log.run('install mmcv', [*pip, '--force-reinstall', '--no-deps', wheel])
    family = 'install the OpenMMLab family and the test tools'
    log.run(family, [*pip, '-r', args.pins], 'about 2 minutes')
    editable = [*pip, '--no-deps', '--no-build-isolation', '-e', ROOT]
    log.run('install convnext_dense', editable)
    for where in ['cpu'] if device == 'cpu' else ['cpu', 'cuda']:
        title = f'prove the compiled ops on {where} (if they fail, delete {wheel.parent})'
        print(log.run(title, [python, '-c', PROVE_OPS, where]), end='')
    (args.venv / '.ready').write_text(f'{wheel.parent.name}\n')


if __name__ == '__main__':
    main()
