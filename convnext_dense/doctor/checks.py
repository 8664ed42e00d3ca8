"""Judges the facts: what is wrong, and the command that mends it."""

import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from .probing import Distribution, Facts, normalised

NOTHING = Distribution('', [])


class Finding(NamedTuple):
    wrong: str
    mend: str  # a command, or advice where no command does it


# What each family was tried with. They install the same packages.
FAMILIES = {
    'onedl': dict(
        torch='torch==2.12.1',
        torchvision='torchvision==0.27.1',
        numpy='numpy>2',
        setuptools='setuptools>=77,<82',  # mmcv's pyproject.toml needs 77; torch refuses 82
        mmengine='onedl-mmengine==0.10.12',
        mmcv='onedl-mmcv==2.3.6',
        mmdet='onedl-mmdetection==3.5.1',
        mmseg='onedl-mmsegmentation==1.4.2',
    ),
    'upstream': dict(
        torch='torch==2.1.2',
        torchvision='torchvision==0.16.2',
        numpy='numpy<2',  # torch 2.1 was compiled for it
        setuptools='setuptools<70',  # torch 2.1 and mmcv need its pkg_resources
        mmengine='mmengine==0.10.7',
        mmcv='mmcv==2.1.0',
        mmdet='mmdet==3.3.0',
        mmseg='mmsegmentation==1.2.2',
    ),
}
PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg')
# pip's cache does not know for which torch a wheel was compiled; and an isolated build has no
# torch, so that mmcv comes out without ops.
BUILD = '--no-build-isolation --no-cache-dir'
COMPILE = (
    '{pip} install "{setuptools}" wheel ninja psutil && '
    f'{{pip}} install {BUILD} --force-reinstall --no-deps {{mmcv}}'
)
NEW_TORCH = (2, 14)  # its headers are C++20, mmcv is compiled as C++17
REINSTALL = '{pip} install --force-reinstall --no-deps {installed}'
REPLACE_TORCH = '{pip} uninstall -y torch torchvision && {pip} install {torch} {torchvision}'
CHOOSE_TORCH = (
    'update the NVIDIA driver, or install a torch that is built for it and for this GPU: '
    'https://pytorch.org/get-started/previous-versions'
)
# Trial ('' for any), part of its error, what is wrong, how to mend it. The first row that fits.
FAULTS = (
    ('mmcv_ops', "'mmcv._ext'", 'mmcv has no compiled ops', COMPILE),
    ('mmcv_ops', 'undefined symbol', 'the ops of mmcv were compiled for another torch', COMPILE),
    ('', 'MMCV==', '{package} refuses this version of mmcv', COMPILE),
    ('', "'pkg_resources'", 'setuptools is too new, or missing', '{pip} install "{setuptools}"'),
    ('', 'libGL.so.1', 'OpenCV needs libGL', 'apt install libgl1'),
    ('', "No module named 'cv2'", 'OpenCV is missing', '{pip} install opencv-python "{numpy}"'),
    ('', 'No module named', '{package} needs {missing}', '{pip} install "{missing}"'),
    ('torch_with_numpy', '', 'torch was compiled for NumPy 1', '{pip} install "numpy<2"'),
    ('torchvision', '', 'torchvision does not fit torch', REINSTALL + '{index}'),
    ('torch_on_gpu', 'not compiled with CUDA', 'torch has no CUDA', REPLACE_TORCH),
    ('torch_on_gpu', '', 'torch cannot use the GPU', CHOOSE_TORCH),
    ('mmcv_ops', '', 'the ops of mmcv do not run, as when compiled for another torch', COMPILE),
    ('mmcv_ops_on_gpu', '', 'the ops of mmcv do not run on the GPU', COMPILE),
    ('', '', '{package} does not import', REINSTALL),
)
# What compiles mmcv -> its lack, how to mend it.
TOOLS = dict(
    compiler=('there is no C++ compiler', 'apt install g++'),
    headers=(
        'the headers of Python are missing',
        f'apt install python{sys.version_info.major}.{sys.version_info.minor}-dev',
    ),
    nvcc=(
        'there is a GPU, and no nvcc',
        'install the CUDA toolkit that torch was built for, and name its folder in CUDA_HOME: '
        'https://developer.nvidia.com/cuda-toolkit-archive',
    ),
)
# What is written -> GB that it takes, of what, how to mend a lack of it.
ROOM = dict(
    checkpoints=(
        7,
        'the checkpoints of UperNet-T on ADE20K',
        'train with --cfg-options default_hooks.checkpoint.max_keep_ckpts=1, or --work-dir FOLDER',
    ),
    weights=(
        3.4,
        'the weights of the largest preset',
        'export TORCH_HOME=FOLDER HF_HOME=FOLDER, with a FOLDER on another disk',
    ),
)


def diagnose(facts: Facts) -> list[Finding]:
    """Of the packages only the first kind of fault is told, since others may follow from it."""
    pins = FAMILIES[family_of(facts)]
    packages = families(facts, pins) or requirements(facts, pins) or failure(facts, pins)
    if any(BUILD in finding.mend for finding in packages):
        packages = build_tools(facts, pins) + packages
    return packages + data(facts) + room(facts) + hosts(facts)


def family_of(facts: Facts) -> str:
    """The one of which more is installed."""

    def installed(family: str) -> int:
        return sum(name_in(FAMILIES[family][each]) in facts.distributions for each in PACKAGES)

    return max(FAMILIES, key=installed)


def name_in(requirement: str) -> str:
    return re.split('[<>=]', requirement)[0]


def families(facts: Facts, pins: dict[str, str]) -> list[Finding]:
    """Packages that are missing, of the other family, or of two distributions.

    The second of two distributions overwrote files of the first, without a word.
    """
    findings = []
    for package in PACKAGES:
        expected = name_in(pins[package])
        owners = facts.owners.get(package, [])
        if owners == [expected]:
            continue
        install = COMPILE if package == 'mmcv' else f'{{pip}} install "{{numpy}}" {pins[package]}'
        if owners:
            wrong = f'{package} is installed by {" and ".join(owners)}, expected: {expected} alone'
            install = f'{{pip}} uninstall -y {" ".join(owners)} && {install}'
        elif package in ('mmengine', 'mmcv'):
            wrong = f'{package} is not installed'
        elif package == 'mmdet' and 'mmseg' not in facts.owners:
            wrong = 'neither mmdet nor mmseg is installed'
            install += f' {pins["mmseg"]}'
        else:
            continue
        findings.append(Finding(wrong, install.format(pip=facts.pip, **pins)))
    return findings


def requirements(facts: Facts, pins: dict[str, str]) -> list[Finding]:
    """Versions that the metadata of the packages ask for, and that are not installed."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return [Finding('packaging is not installed', f'{facts.pip} install packaging')]
    findings = []
    for owner in ('convnext-dense', *map(name_in, pins.values())):
        for text in facts.distributions.get(owner, NOTHING).requirements:
            requirement = Requirement(text)
            name = normalised(requirement.name)
            if requirement.marker and not requirement.marker.evaluate({'extra': ''}):
                continue
            if name == 'opencv-python' and 'cv2' in facts.owners:  # or its headless build
                continue
            version = facts.distributions.get(name, NOTHING).version
            if version and requirement.specifier.contains(version, prereleases=True):
                continue
            wrong = f'{owner} needs {text}, and {version or "nothing"} is installed'
            if (owner, name) == ('torchvision', 'torch') and version:
                # Not another torch: the ops of mmcv are compiled for this one.
                install = f'torch=={version} torchvision{index_of(version)}'
            elif name == 'torch':
                install = f'{pins["torch"]} {pins["torchvision"]}'
            else:
                install = f'"{pins.get(name) or f"{name}{requirement.specifier}"}"'
            findings.append(Finding(wrong, f'{facts.pip} install {install}'))
    return findings


def index_of(torch: str) -> str:
    """pip's option for torchvision beside a build of torch that is not PyPI's, as 2.12.1+cpu."""
    build = torch.partition('+')[2]
    return build and f' --index-url https://download.pytorch.org/whl/{build}'


def failure(facts: Facts, pins: dict[str, str]) -> list[Finding]:
    trial, error = facts.failed
    if not trial:
        return []
    package = trial.partition('_')[0]
    owner = facts.owners[package][0]
    version = facts.distributions[owner].version
    missing = (re.findall(r"No module named '([^'.]+)", error) or [''])[0]
    wrong, mend = next(
        (wrong, mend) for name, part, wrong, mend in FAULTS if name in ('', trial) and part in error
    )
    values = pins | dict(
        pip=facts.pip,
        package=package,
        missing=pins.get(missing, missing),
        installed=f'{owner}=={version.partition("+")[0]}',
        index=index_of(facts.distributions.get('torch', NOTHING).version),
    )
    return [Finding(f'{wrong.format(**values)} ({error})', mend.format(**values))]


def build_tools(facts: Facts, pins: dict[str, str]) -> list[Finding]:
    """What is missing to compile mmcv; nothing else needs it."""
    findings = [
        Finding(f'mmcv has to be compiled, and {TOOLS[name][0]}', TOOLS[name][1])
        for name, path in facts.tools.items()
        if not path and (name != 'nvcc' or facts.gpus)
    ]
    version = facts.distributions.get('torch', NOTHING).version
    if not version or tuple(map(int, re.findall(r'\d+', version)[:2])) >= NEW_TORCH:
        lack = f'torch {version} is too new for it' if version else 'torch is not installed'
        install = f'{facts.pip} install {pins["torch"]} {pins["torchvision"]}'
        findings.append(Finding(f'mmcv has to be compiled, and {lack}', install))
    return findings


def data(facts: Facts) -> list[Finding]:
    findings = []
    for path, elsewhere in facts.data.items():
        mend = 'put it there, or name the folder that has it with --data-root FOLDER'
        if elsewhere:
            link, target = Path(path), Path(elsewhere).absolute()
            mend = shlex.join(['mkdir', '-p', str(link.parent)])
            mend += f' && {shlex.join(["ln", "-s", str(target), str(link)])}'
        findings.append(Finding(f'{path} is missing', mend))
    return findings


def room(facts: Facts) -> list[Finding]:
    return [
        Finding(f'{free:.1f} GB are free in {folder}: {what} need {needed} GB', mend)
        for name, (folder, free) in facts.free.items()
        for needed, what, mend in [ROOM[name]]
        if free < needed
    ]


def hosts(facts: Facts) -> list[Finding]:
    if not facts.unreachable:
        return []
    answers = ', '.join(f'{host} ({error})' for host, error in facts.unreachable.items())
    mend = (
        'export https_proxy=URL, or fetch the file elsewhere and name its path as checkpoint in '
        'init_cfg; convnext-dense doctor --offline asks no host'
    )
    return [Finding(f'pretrained weights cannot be fetched from {answers}', mend)]
