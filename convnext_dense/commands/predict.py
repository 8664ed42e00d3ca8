"""What a trained detector or segmentor sees in an image, the images of a folder, or a video.

    python tools/predict.py CONFIG CHECKPOINT street.jpg
    python tools/predict.py CONFIG CHECKPOINT FOLDER --out predictions

Leaves in --out: overlays/ (boxes and masks, or a semantic map with its legend; of a video a video); of a segmentor labels/*.png, whose
pixels are the numbers of the classes; of a detector predictions.json in COCO's format, every prediction with its score. Pictures of any
kind are read as people see them: turned as their EXIF data say, CMYK and 16 bits converted. What cannot be read is reported and skipped.
"""

import sys
import warnings
from pathlib import Path

from mmengine.config import Config

from ..errors import ConfigError, WeightsError
from ..inference.prediction import Job, make_predictor
from .shared import add_device, make_parser


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument('config', help='path of a config')
    parser.add_argument('checkpoint', help='path or URL of the trained model')
    parser.add_argument(
        'input', type=Path, help='an image, a folder (with what is below it), or a video'
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/predictions'))
    parser.add_argument(
        '--score', type=float, default=0.3, help='least score of what is drawn (default: 0.3)'
    )
    add_device(parser)
    args = parser.parse_args(argv)
    if not args.input.exists():
        parser.error(f'no image, folder or video at {args.input}')
    if not Path(args.config).is_file():
        parser.error(f'no config at {args.config}')
    warnings.simplefilter(
        'ignore'
    )  # of the frameworks: that no weights were loaded, which is done here, that boxes touch the border ...
    try:
        predictor = make_predictor(Config.fromfile(args.config), args.checkpoint, args.device)
    except (ConfigError, WeightsError) as error:
        beside = sorted(str(path) for path in Path(args.checkpoint).parent.glob('*.py'))
        sys.exit(
            f'{type(error).__name__}: {error}'
            + (f'\nThe config of that training may be {beside[0]}' if beside else '')
        )
    job = Job(predictor, args)
    try:
        job.run()
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
    job.close()
    sys.exit(0 if job.done else 1)
