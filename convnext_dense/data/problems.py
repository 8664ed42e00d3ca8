"""What can be wrong with images and annotations, and how it is mended."""

from collections.abc import Iterable
from typing import NamedTuple

from ..errors import DataError

SHOWN = 5  # of each kind, in a message

# Kind of problem -> how it is mended. With one of these a model would be trained or scored on
# something else than the config says, or the run would end.
REFUSED = {
    'class names': 'name the classes in the config as they stand in the annotation file, in the '
    "file's order: mmdet numbers them so, whatever order the config has",
    'order of categories': 'bring the categories of one file into the order of the other, and keep '
    'their ids: mmdet numbers the classes in the order of each file, so no order in the config '
    'fits both',
    'number of classes': "set num_classes of these heads to the number of the data's classes, or "
    'the classes (metainfo) to those that the heads were made for',
    'other widths': 'set in_channels of these parts to the widths of the maps that they read '
    '(an auxiliary head reads one of them); convnext-dense swap does so for a whole config',
    'other images': 'let the evaluator (ann_file) and the data set read the same annotation file',
    'missing file': 'put it there, or take its entry out of the list; data_root starts at the '
    'current folder',
    'no images': 'name a file or folder that has some; of images without objects none is left for '
    'training, unless filter_empty_gt=False',
    'unreadable file': 'replace the file, or take its entry out of the list',
    'sizes differ': 'replace the file, or mend the size that the other states. An image that its '
    'EXIF data turn (a photograph of a phone) is read as one sees it: annotate it so, or read it '
    "as it is stored, with color_type='color_ignore_orientation' in LoadImageFromFile",
    'missing key': "COCO's format has it in every entry: add it",
    'wrong value': 'mend or remove the annotation',
    'no segmentation': 'add it, or train without masks: with_mask=False in LoadAnnotations, and a '
    'detector without a mask head',
    'duplicate': 'make the names or ids different',
    'label map': 'save it with one channel of 8 bits, in which a pixel is the number of its class',
    'label out of range': 'name a class for each label; or, if it means unknown, put '
    "dict(type='convnext_dense.IgnoreLabels', labels=[...]) after LoadAnnotations in the pipeline",
    'failed step': 'mend the file or the step of the pipeline',
}
# Kind -> what becomes of it. The run goes on; the number is told.
COUNTED = {
    'other classes': 'left out: their class is not one of the config',
    'unknown category': 'left out: their category is not in the file',
    'too small': 'left out: less than a pixel wide or high, or of no area',
    'outside': 'left out: outside of their image',
    'not a number': 'left out: NaN in their box',
    'ignored mask': 'their mask is ignored: it has no polygon of three points',
    'no such image': 'left out: their image is not in the file',
    'duplicate image id': 'left out: a later image has the same id, and gets their objects',
    'no objects': 'images without objects; mmdet leaves them out of training if filter_empty_gt',
    'other suffix': 'left out: the config reads files of another suffix',
    'label map without image': 'left out',
    'no labels': 'label maps in which all pixels are unknown',
    'narrow': 'images 20 times as long as wide: steps that resize them may leave nothing of them',
    'not RGB': 'images that are grey, transparent, CMYK or of 16 bits; LoadImageFromFile makes '
    'them RGB of 8 bits, unless its color_type says otherwise',
    'turned': 'images that their EXIF data turn, as they are read',
    'in two splits': 'images that are trained on and evaluated on',
}


class Problem(NamedTuple):
    """Something that is wrong with a file.

    Args:
        kind: of ``REFUSED`` or ``COUNTED``.
        file: that has to be mended.
        detail: which entry, and what was expected.
        image: path of a picture that shows it.
        box: x, y, width, height in it, in pixels.
    """

    kind: str
    file: str
    detail: str = ''
    image: str = ''
    box: tuple = ()

    def __str__(self):
        return f'{self.file}: {self.detail}' if self.detail else self.file


def describe(problems: Iterable[Problem], shown: int = SHOWN) -> str:
    """The problems by kind, some of each, and how they are mended."""
    by_kind: dict[str, list[Problem]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(problem)
    lines = []
    for kind, items in by_kind.items():
        lines.append(f'{kind}: {len(items)}')
        lines += [f'  {problem}' for problem in items[:shown]]
        lines += [f'  ... and {len(items) - shown} more'] if len(items) > shown else []
        lines.append(f'  -> {(REFUSED | COUNTED)[kind]}')
    return '\n'.join(lines)


def refuse(problems: Iterable[Problem]) -> None:
    """Raise DataError if one of them is to be refused."""
    refused = [problem for problem in problems if problem.kind in REFUSED]
    if refused:
        raise DataError(f'the data do not fit this config\n{describe(refused)}')
