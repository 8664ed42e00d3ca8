"""A trained model as one ONNX file, from the pixels to labels or boxes, which is verified.

    convnext-dense export CONFIG CHECKPOINT -o model.onnx
    convnext-dense export CONFIG CHECKPOINT -o model.onnx --images FOLDER
    convnext-dense export CONFIG CHECKPOINT -o model.onnx --precision int8

Before the file gets its name, onnxruntime runs it against the framework's own prediction on real
pictures: those of --images, or of the test split. Where sizes cannot be free, they are fixed, and
that is said; what cannot be exported rightly is refused. docs/export.md describes inputs, outputs
and what is known. The file runs without torch: python -m convnext_dense.runtime model.onnx FOLDER
"""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from ..evaluation.model_under_test import ModelUnderTest
from ..export.engines import ENGINES
from ..export.verifying import first_line
from ..export.writing import export
from ..printing import console
from ..training.running import load_config
from .shared import add_data_arguments, errors_as_messages, make_parser

HELP = dict(
    out='the file that is written (default: %(default)s)',
    images='a folder of pictures, or a picture, to verify with (default: the test split)',
    output="of a segmentor: the classes' numbers, or their scores (default: labels)",
    static='the only size that the file takes (default: any size, where that holds)',
    precision="fp16: in the network's layers, but where values do not fit; int8: in the linear "
    "layers of ConvNeXt's blocks. Ranges are measured on 24 pictures, and the scores of the test "
    'split printed before and after (default: fp32)',
    no_fuse='leave the affine parts of the blocks where they are',
)


@errors_as_messages()
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add_data_arguments(parser)
    add = parser.add_argument
    add('checkpoint', help='path or URL of the trained model')
    add('-o', '--out', type=Path, default=Path('model.onnx'), metavar='FILE', help=HELP['out'])
    add('--images', type=Path, metavar='FOLDER', help=HELP['images'])
    add('--output', choices=('labels', 'logits'), default='labels', help=HELP['output'])
    add('--static', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'), help=HELP['static'])
    add('--precision', choices=('fp32', 'fp16', 'int8'), default='fp32', help=HELP['precision'])
    add('--no-fuse', action='store_true', help=HELP['no_fuse'])
    args = parser.parse_args(argv)
    if args.images and not args.images.exists():
        parser.error(f'--images: nothing at {args.images}')
    if args.static and min(args.static) < 32:
        parser.error('--static: a side is 32 pixels or more')
    if args.out.is_dir():
        parser.error(f'-o {args.out}: that is a folder, expected the name of a file')

    # The frameworks warn that no weights were loaded, which is done here.
    warnings.simplefilter('ignore')
    cfg = load_config(args.config, (), None, args.data_root, args.cfg_options)
    done = export(
        cfg,
        args.checkpoint,
        args.out,
        args.images,
        args.output,
        tuple(args.static) if args.static else None,
        not args.no_fuse,
        args.precision,
    )
    screen = console()
    for note in done.notes:
        screen.print(note, style='yellow', markup=False)
    for row in done.rows:
        screen.print(f'  {row}', markup=False)
    megabytes = args.out.stat().st_size / 1e6
    screen.print(f'wrote {args.out} ({megabytes:.1f} MB): {done.says}', markup=False)
    if args.precision != 'fp32':
        for line in scores(cfg, args.checkpoint, args.out):
            screen.print(f'  {line}', markup=False)


def scores(cfg: Config, checkpoint: str, file: Path) -> Iterator[str]:
    """Lines on what the config's evaluator says of the model and of the file."""
    with tempfile.TemporaryDirectory() as folder:
        config = f'{folder}/config.py'
        cfg.dump(config)
        for name, path, form in (('framework', checkpoint, ''), ('file', str(file), ENGINES[0])):
            try:
                metrics = ModelUnderTest(config, path, form, folder).score()['metrics']
            except Exception as error:  # of any data set
                yield f'scores: not measured on the test split ({first_line(error)})'
                return
            yield f'{name}: ' + ', '.join(f'{key} {value:.2f}' for key, value in metrics.items())
