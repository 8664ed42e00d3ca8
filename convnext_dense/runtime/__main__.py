"""What an exported model sees in an image, or in the images of a folder.

    python -m convnext_dense.runtime model.onnx street.jpg
    python -m convnext_dense.runtime model.onnx FOLDER --out predictions

Leaves in --out what ``convnext-dense predict`` leaves: overlays/; of a segmentor labels/*.png,
whose pixels are the numbers of the classes; of a detector predictions.json in COCO's format. It
needs numpy, onnxruntime and Pillow. The folder of this program may be copied out alone.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from .instances import Instances
from .model import Model, UnusableFile
from .pictures import draw_instances
from .predictions import IMAGES, Predictions


class ModelPredictions(Predictions):
    """With a model in a file."""

    def __init__(self, model: Model, out: Path, score: float):
        super().__init__(out, model.meta['classes'], model.meta['palette'], score)
        self.model = model

    def see(self, image: np.ndarray, key: str, name: str) -> np.ndarray:
        seen = self.model(image)
        if isinstance(seen, Instances):
            self.keep_instances(image, seen, name)
            return draw_instances(image, seen, self.classes, self.colours, self.score)
        labels = seen if self.model.meta['output'] == 'labels' else self._best(seen)
        return self.keep_labels(image, labels, key)

    def _best(self, logits):
        """(C, H, W) -> labels (H, W)."""
        if len(logits) > 1:
            return logits.argmax(0)
        return (logits[0] > self.model.meta['thresholds']['score']).astype(np.uint8)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog=f'python -m {__package__}',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('model', type=Path, help='a file of convnext-dense export')
    add('input', type=Path, help='an image, or a folder (with the folders in it)')
    out = 'folder for what it leaves (default: %(default)s)'
    add('--out', type=Path, default=Path('predictions'), help=out)
    add('--score', type=float, default=0.3, help='least score that is drawn (default: 0.3)')
    add('--threads', type=int, help='default: one for each core')
    args = parser.parse_args(argv)
    if not args.input.exists():
        parser.error(f'no image or folder at {args.input}')
    if not 0 <= args.score <= 1:
        parser.error(f'--score {args.score:g}: scores lie between 0 and 1')
    try:
        model = Model(args.model, args.threads)
        model.check_resize()
    except UnusableFile as error:
        sys.exit(str(error))
    predictions = ModelPredictions(model, args.out, args.score)
    try:
        if not predictions.run(args.input):
            sys.exit(f'{args.input}: no images; expected files that end in {", ".join(IMAGES)}')
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
    try:
        predictions.close()
    except OSError as error:
        sys.exit(f'{args.out}/predictions.json cannot be written: {error.strerror}')
    predictions.report('the file drops those of low scores, as its config had it.')
    sys.exit(0 if predictions.done else 1)


if __name__ == '__main__':
    main()
