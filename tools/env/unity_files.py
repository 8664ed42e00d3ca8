"""mmcv's 76 C++ files, compiled as ten: most of the time goes into torch's headers.

A unity file includes several of theirs, which stay as they are.
"""

from pathlib import Path

UNITY = 14  # files in a unity file
# Not in one file with others, which define the same names.
ALONE = (
    'info.cpp',
    'pybind.cpp',
    'cpu/bezier_align.cpp',
    'cpu/roi_align_rotated.cpp',
    'cpu/rotated_feature_align.cpp',
)
# It defines min and max as macros, so that nothing may come after it.
LAST = 'cpu/psamask.cpp'


def unite(source: Path) -> None:
    """Write the unity files, and have mmcv's own setup.py compile them in place of its files."""
    ops = source / 'mmcv' / 'ops' / 'csrc'
    setup = (source / 'setup.py').read_text(encoding='utf-8')
    for folder in ('', 'cpu/'):
        names = sorted(f'{folder}{path.name}' for path in (ops / 'pytorch' / folder).glob('*.cpp'))
        names.sort(key=LAST.__eq__)
        together = [name for name in names if name not in ALONE]
        groups = [together[i : i + UNITY] for i in range(0, len(together), UNITY)]
        groups += [[name] for name in names if name in ALONE]
        (ops / 'unity' / folder).mkdir(parents=True, exist_ok=True)
        for i, group in enumerate(groups):
            up = '../../' if folder else '../'
            lines = [f'#include "{up}pytorch/{name}"\n' for name in group]
            (ops / 'unity' / folder / f'unity{i}.cpp').write_text(''.join(lines))
        setup = setup.replace(f'csrc/pytorch/{folder}*.cpp', f'csrc/unity/{folder}*.cpp')
    (source / 'setup.py').write_text(setup, encoding='utf-8')
