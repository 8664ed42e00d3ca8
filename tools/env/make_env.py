"""Make a virtual environment with one OpenMMLab family and this package in it.

    python3 -m tools.env.make_env .venv tools/env/onedl.txt     (from the root of the clone)

PINS is a requirements file that pins all packages. mmcv is compiled, and its wheel is kept outside
the clone, so that the next clone does not compile again. May be interrupted and run again: finished
steps are quick, and the compiler goes on where it was. Only the standard library is used: nothing
is installed yet.

environment variables:
  CPU=1                   compiles mmcv without CUDA on a machine that has a GPU
  FORCE_CUDA=1            compiles it for CUDA where no GPU is visible, for the GPUs that
                          TORCH_CUDA_ARCH_LIST names (9.0: H100). CUDA_HOME is where nvcc is found
  CONVNEXT_DENSE_WHEELS   an index or a page or a folder of wheels, where mmcv is looked for before
                          it is compiled
  CONVNEXT_DENSE_CACHE    where compiled wheels are kept (default ~/.cache/convnext_dense)
"""

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

from .build_mmcv import build_mmcv
from .steps import Log, StepFailed

ROOT = Path(__file__).resolve().parents[2]
GB = 2**30
IMPORT = 'import mmdet.apis, mmseg.apis, convnext_dense.hooks'
# One box suppressed by NMS, one average over a constant map: wrong or missing ops cannot pass.
PROVE_OPS = """
import os, torch
from mmcv.ops import nms, roi_align
on_gpu = torch.cuda.is_available() and os.environ.get('CPU') != '1'
for device in ['cpu', 'cuda'] if on_gpu else ['cpu']:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30.]], device=device)
    kept = nms(boxes, torch.tensor([.9, .8, .7], device=device), 0.5)[1]
    assert kept.tolist() == [0, 2], kept
    ones, roi = torch.full((1, 1, 8, 8), 3., device=device), [[0, 1, 1, 6, 6.]]
    pooled = roi_align(ones, torch.tensor(roi, device=device), 2)
    assert torch.allclose(pooled, torch.full_like(pooled, 3.)), pooled
    print('   nms and roi_align ran on', device)
"""


def install_mmcv(pin: str, python: Path, pip: list, cache: Path, log: Log) -> None:
    """From CONVNEXT_DENSE_WHEELS, if the wheel there works on this machine; else compiled."""
    prove = [python, '-c', PROVE_OPS]
    pip = [*pip, '--force-reinstall']  # a wheel for another torch or device has the same version
    place = os.environ.get('CONVNEXT_DENSE_WHEELS')
    if place:
        # An index has a folder for each package; a page or a folder has the wheels themselves.
        options = ['--index-url', place, '--find-links', place, '--only-binary', ':all:']
        try:
            log.run(f'install mmcv from {place}', [*pip, *options, pin])
            print(log.run('prove the compiled ops', prove), end='')
            return
        except StepFailed:
            print(f'   no wheel of mmcv there works here (why: {log.path}), so it is compiled')
    wheel = build_mmcv(pin, python, cache, log)
    log.run('install mmcv', [*pip, wheel])
    title = f'prove the compiled ops (if they fail, delete {wheel.parent})'
    print(log.run(title, prove), end='')


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
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free / GB
    if free < 9 and not args.venv.exists():
        sys.exit(f'An environment takes about 9 GB on disk, {parent} has {free:.1f} GB free.')

    home = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'convnext_dense'
    cache = Path(os.environ.get('CONVNEXT_DENSE_CACHE', home))
    python = args.venv.absolute() / 'bin' / 'python'
    pins = [line for line in args.pins.read_text().splitlines() if '==' in line]
    mmcv = next(pin for pin in pins if 'mmcv==' in pin)

    print(f'Setting up {args.venv} with {args.pins}: about 5 minutes on two cores.')
    log = Log(args.venv / 'setup.log')
    log.run('make the virtual environment', [sys.executable, '-m', 'venv', args.venv])
    # pip writes INSTALLER last, but takes a package without it for whole.
    for info in args.venv.glob('lib/python*/site-packages/*.dist-info'):
        if not (info / 'INSTALLER').exists():
            shutil.rmtree(info)
    # All is pinned, and the build tools are in the environment: nothing is left to pip to choose.
    pip = [python, '-m', 'pip', 'install', '--no-input', '--disable-pip-version-check', '--no-deps']
    pip += ['--no-build-isolation', '--no-compile']  # what is imported is compiled below
    log.run('install the build tools', [*pip, 'setuptools', 'wheel', '-c', args.pins])
    title = 'install torch, the OpenMMLab family and the test tools'
    rest = [pin for pin in pins if pin != mmcv]
    log.run(title, [*pip, *rest], 'about 2 minutes, 6 GB')
    install_mmcv(mmcv, python, pip, cache, log)
    log.run('install convnext_dense', [*pip, '-e', ROOT])
    # Where PYTHONDONTWRITEBYTECODE is set, every process would compile them again.
    writing = {key: value for key, value in os.environ.items() if key != 'PYTHONDONTWRITEBYTECODE'}
    log.run('compile the modules that are imported', [python, '-c', IMPORT], env=writing)
    (args.venv / '.ready').touch()


if __name__ == '__main__':
    main()
