"""``python -m convnext_dense.commands NAME ARGUMENTS``: what tools/NAME.py runs."""

import sys
from importlib import import_module
from pathlib import Path

NAMES = sorted(
    path.stem
    for path in Path(__file__).parent.glob('*.py')
    if path.stem not in ('__init__', '__main__', 'shared')
)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f'{__doc__.splitlines()[0]}\nNAME is one of {", ".join(NAMES)}')
    name = sys.argv.pop(1)
    sys.argv[0] = name
    import_module(f'convnext_dense.commands.{name}').main()


if __name__ == '__main__':
    main()
