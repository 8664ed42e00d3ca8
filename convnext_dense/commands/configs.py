"""List the recipes with what others published of them, or write a config that inherits one.

    convnext-dense configs
    convnext-dense configs upernet
    convnext-dense configs mask-rcnn_convnext-t-in1k_fpn_amp-ms-crop-3x_coco -o mine.py

Where other commands take a config, the name of a recipe will do. No model was trained by us. The
licence is that of the pretrained weights.
"""

import sys
from pathlib import Path

from ..config_names import find_config, inheriting, match_recipes
from ..evaluation.recipe_tables import TASKS, read_recipes
from .shared import errors_as_messages, make_parser


@errors_as_messages()
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add('name', nargs='?', default='', help='part of the names that are listed; with -o: a config')
    add('-o', '--out', type=Path, help='config to write, which inherits NAME')
    args = parser.parse_args(argv)
    if args.out:
        write(args.name, args.out, parser)
    else:
        show(args.name)


def show(part: str) -> None:
    """Not as a table: the names are too long for most terminals, and are there to be copied."""
    is_empty = True
    for task, (title, *_) in TASKS.items():
        recipes = [recipe for recipe in read_recipes(task) if part in recipe.name]
        if recipes:
            print(title)
            is_empty = False
        for recipe in recipes:
            facts = [f'{metric} {score}' for metric, score in recipe.scores.items()]
            facts += [f'{recipe.parameters} M parameters'] if recipe.parameters else []
            facts += [f'{recipe.flops} GFLOPs'] if recipe.flops else []
            facts += [recipe.status] if recipe.is_for_own_data else []
            print(f'  {recipe.name}\n      {", ".join([*facts, f"weights: {recipe.licence}"])}')
    small = [name for name in match_recipes('demo/*') if part in name]
    if small:
        is_empty = False
        print('Small models, for the demo and for comparisons', *small, sep='\n  ')
    if is_empty:
        sys.exit(f'no recipe has {part!r} in its name')


def write(name: str, out: Path, parser) -> None:
    """A config that inherits the one called ``name``."""
    if not name:
        parser.error('-o needs the NAME of a recipe')
    if out.suffix != '.py':
        parser.error(f'{out}: a config is a .py file')
    if out.exists():
        parser.error(f'{out} is there already: name another file')
    path, scoped = find_config(name)
    base = scoped if '::' in scoped else str(path.resolve())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        f'_base_ = {inheriting(base)}\n\n'
        '# Write below what differs, for instance: train_dataloader = dict(batch_size=4)\n',
        encoding='utf-8',
    )
    print(f'wrote {out}, which inherits {base}')
