"""Swap the backbone of every config that mmdet and mmseg install, and write what came of it.

    convnext-dense census --out census.md

Every config is swapped. Of configs whose swapped models are equal but for weights, losses, numbers
of classes, and settings of training and test, one is built and trained for a step. Grounding DINO
and GLIP get a BERT of two layers with random weights, since the published one would have to be
downloaded. All of it takes half an hour or so on two cores.
"""

from pathlib import Path

from ..evaluation.census import census, report
from .shared import errors_as_messages, make_parser


@errors_as_messages()
def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument('--out', default='docs/census.md', help='Markdown to write')
    parser.add_argument('--arch', default='tiny')
    parser.add_argument('--only', default='', help='configs whose path contains this')
    args = parser.parse_args(argv)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)  # before half an hour of work
    page = report(census(args.arch, args.only), args.arch)
    Path(args.out).write_text(page, encoding='utf-8')
    print(f'wrote {args.out}')
