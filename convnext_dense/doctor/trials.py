"""What has to run in a sound environment: a script that the doctor starts as a child process.

    python trials.py NAME [NAME ...]

It prints the name of each trial before it begins, and stops at the first one that fails, with the
error. A broken library may end the interpreter: then the name alone was printed.
"""

import contextlib
import sys


def torch() -> None:
    import torch  # noqa: F401


def torch_with_numpy() -> None:
    """A torch that was compiled for NumPy 1 imports beside NumPy 2, but cannot exchange arrays."""
    import numpy
    import torch

    torch.from_numpy(numpy.ones(1))


def torchvision() -> None:
    import torchvision  # noqa: F401


def torch_on_gpu() -> None:
    import torch

    torch.ones(1, device='cuda') + 1


def mmengine() -> None:
    import mmengine.runner  # noqa: F401
    from mmengine.utils import is_installed

    is_installed('mmengine')  # upstream's imports pkg_resources for it


def mmcv() -> None:
    import mmcv  # noqa: F401


def mmcv_ops(device: str = 'cpu') -> None:
    import torch
    from mmcv.ops import nms

    box = torch.tensor([[0.0, 0, 1, 1]], device=device)
    nms(box, torch.ones(1, device=device), 0.5)


def mmcv_ops_on_gpu() -> None:
    mmcv_ops('cuda')


def mmdet() -> None:
    import mmdet.models  # noqa: F401


def mmseg() -> None:
    import mmseg.models  # noqa: F401


# Each may fail because of those above it. The first part of a name is the package that it needs.
TRIALS = (
    torch,
    torch_with_numpy,
    torchvision,
    torch_on_gpu,
    mmengine,
    mmcv,
    mmcv_ops,
    mmcv_ops_on_gpu,
    mmdet,
    mmseg,
)

if __name__ == '__main__':
    for trial in TRIALS:
        if trial.__name__ in sys.argv[1:]:
            print(trial.__name__, flush=True)
            try:
                with contextlib.redirect_stdout(sys.stderr):  # for what libraries print
                    trial()
            except Exception as error:
                first_line = str(error).partition('\n')[0]
                sys.exit(f'{type(error).__name__}: {first_line}')
