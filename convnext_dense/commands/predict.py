"""What a trained detector or segmentor sees in an image, the images of a folder, or a video.

    convnext-dense predict CONFIG CHECKPOINT street.jpg
    convnext-dense predict CONFIG CHECKPOINT FOLDER --out predictions

Leaves in --out: overlays/ (boxes and masks, or a semantic map with its legend; of a video, a
video); of a segmentor labels/*.png, whose pixels are the numbers of the classes; of a detector
predictions.json in COCO's format, every prediction with its score. Pictures are read as people see
them: turned as their EXIF data say, CMYK and 16 bits converted. What cannot be read is reported and
skipped.
"""

import sys
import warnings
from pathlib import Path

from ..errors import WeightsError
from ..inference.precision import to_bf16
from ..inference.prediction import Predictions, inferencer
from .shared import add_device, add_dtype, errors_as_messages, make_parser


@errors_as_messages()
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add('config', help='path of a config, or name of a recipe')
    add('checkpoint', help='path or URL of the trained model')
    add('input', type=Path, help='an image, a folder (with the folders in it), or a video')
    out = 'folder for what it leaves (default: %(default)s)'
    add('--out', type=Path, default=Path('work_dirs/predictions'), help=out)
    add('--score', type=float, default=0.3, help='least score that is drawn (default: 0.3)')
    add_device(parser)
    add_dtype(parser, 'bf16: convolutions and products in bfloat16, if that is faster here')
    args = parser.parse_args(argv)
    if not args.input.exists():
        parser.error(f'no image, folder or video at {args.input}')
    if not 0 <= args.score <= 1:
        parser.error(f'--score {args.score:g}: scores lie between 0 and 1')

    # The frameworks warn that no weights were loaded, which is done here, and of boxes at borders.
    warnings.simplefilter('ignore')
    try:
        predictor = inferencer(args.config, args.checkpoint, args.device)
    except WeightsError as error:
        configs = sorted(str(path) for path in Path(args.checkpoint).parent.glob('*.py'))
        hint = f'\nThe config of that training may be {configs[0]}' if configs else ''
        raise WeightsError(f'{error}{hint}') from error
    if args.dtype == 'bf16':
        to_bf16(predictor.model, args.device)
    predictions = Predictions(predictor, args.out, args.score)
    try:
        predictions.run(args.input)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
    predictions.close()
    predictions.report('the test_cfg of the config drops those of low scores.')
    sys.exit(0 if predictions.done else 1)
