"""Write configs/coco/README.md and configs/ade20k/README.md, in the root of a clone.

    convnext-dense tables

What is published stands in the metafile.yml beside them; parameters and FLOPs are counted.
"""

from pathlib import Path

from ..evaluation.recipe_tables import TASKS, page
from .shared import errors_as_messages, make_parser


@errors_as_messages()
def main(argv=None):
    parser = make_parser(__doc__)
    parser.parse_args(argv)
    if not all(Path('configs', task).is_dir() for task in TASKS):
        parser.error('configs/coco and configs/ade20k are not here: run it in the root of a clone')
    for task in TASKS:
        Path('configs', task, 'README.md').write_text(page(task), encoding='utf-8')
