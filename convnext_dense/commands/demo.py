"""Train, evaluate and show: Mask R-CNN and UperNet on ConvNeXt-atto, on generated data.

    convnext-dense demo                                   # ten minutes on two CPU cores
    convnext-dense demo --seeds 0 1 2 --report demo.md    # the table that the docs show

Weights are random at the start. Leaves OUT/index.html, the pictures in it, and OUT/results.json.
Models are trained and tested by the commands train and test, exactly as a user would run them.
"""

import time
from pathlib import Path

from ..demo.running import run_demo
from .shared import errors_as_messages, make_parser


@errors_as_messages()
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    report = 'also write the table to this Markdown file, and the picture beside it'
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--report', type=Path, help=report)
    args = parser.parse_args(argv)

    start, out = time.time(), args.out.resolve()
    print('The demo takes about ten minutes a seed on two CPU cores.')
    for folder in (out, *([args.report.parent] if args.report else [])):
        folder.mkdir(parents=True, exist_ok=True)
    text = run_demo(out, args.seeds, args.report)
    print(f'\n{text}Done in {(time.time() - start) / 60:.1f} minutes. Open {out}/index.html')
