"""Generate the demo's data: scenes of textured shapes, in the layouts of COCO and ADE20K.

    convnext-dense demo-data work_dirs/demo/data

convnext_dense/demo/scenes.py describes them. The same arguments give the same files.
"""

from pathlib import Path

from ..demo.scenes import SPLITS, write
from .shared import errors_as_messages, make_parser


@errors_as_messages()
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add, counts = parser.add_argument, list(SPLITS.values())
    add('folder', type=Path)
    add('--scenes', type=int, nargs=3, default=counts, metavar=('TRAIN', 'VAL', 'TEST'))
    add('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    write(args.folder, dict(zip(SPLITS, args.scenes)), args.seed)
    print(f'{args.folder}/coco and {args.folder}/ade are ready')
