"""Write configs/coco/README.md and configs/ade20k/README.md from the configs and configs/published.json.

    python tools/make_tables.py

What is published stands in the JSON; parameters, FLOPs, weights and licences are read or counted from the configs.
"""

from ..evaluation.recipe_tables import ROOT, TASKS, table
from .shared import make_parser


def main(argv=None):
    make_parser(__doc__).parse_args(argv)
    for task in TASKS:
        (ROOT / 'configs' / task / 'README.md').write_text(table(task))
