"""Write configs/coco/README.md and configs/ade20k/README.md.

    python tools/make_tables.py

What is published stands in configs/published.json; parameters, FLOPs, weights and licences are
read or counted from the configs.
"""

from ..evaluation.recipe_tables import CONFIGS, TASKS, page
from .shared import make_parser


def main(argv=None):
    make_parser(__doc__).parse_args(argv)
    for task in TASKS:
        (CONFIGS / task / 'README.md').write_text(page(task))
