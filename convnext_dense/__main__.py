"""ConvNeXt under dense-prediction models of mmdet and mmseg.

    convnext-dense COMMAND ARGUMENTS
    convnext-dense COMMAND --help

``python -m convnext_dense`` is the same program.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path

from . import __version__

FOLDER = Path(__file__).parent / 'commands'
NAMES = sorted({path.stem for path in FOLDER.glob('*.py')} - {'__init__', 'shared'})


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ('-h', '--help', 'help'):
        print(describe())
    elif arguments[0] in ('-V', '--version'):
        print(f'convnext_dense {__version__}')
    elif (name := arguments[0].replace('-', '_')) in NAMES:
        sys.argv = [f'convnext-dense {arguments[0]}', *arguments[1:]]  # argparse prints the first
        try:
            import_module(f'convnext_dense.commands.{name}').main()
        except Exception as error:
            try:
                from .commands.shared import message_of
            except Exception:  # without torch there is only the traceback
                raise error from None
            sys.exit(message_of(error))
    else:
        sys.exit(f'{describe()}\n\nconvnext-dense: there is no command {arguments[0]}')


def describe() -> str:
    """The commands, each with the first sentence of its help. Nothing of them is imported."""
    lines = []
    for name in NAMES:
        doc = ast.get_docstring(ast.parse((FOLDER / f'{name}.py').read_text('utf-8'))) or ''
        sentence = ' '.join(doc.partition('\n\n')[0].split())
        lines.append(f'  {name.replace("_", "-"):<12}{sentence}')
    return '\n'.join([(__doc__ or '').replace('``', ''), 'commands:', *lines])


if __name__ == '__main__':
    main()
