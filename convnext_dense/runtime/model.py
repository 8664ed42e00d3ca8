"""A file of ``convnext-dense export``: opened, checked, and run on pictures."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .instances import Instances, paste
from .resizing import resize, target_size

KEY = 'convnext_dense'  # of the JSON text in the file's metadata
FORMAT = 1  # of that text
PROVIDERS = 'CUDAExecutionProvider', 'CPUExecutionProvider'
UNSIGNED = b'sha256:' + b'0' * 64  # stands in the file where its digest is put


class UnusableFile(ValueError):
    """A file that is damaged, or not of ``convnext-dense export``."""


class Model:
    """Predicts for an image of any size, at its size, as the framework does that it comes from.

    Args:
        path: of the file.
        threads: of onnxruntime; default: one for each core.

    Attributes:
        meta: what the file says of itself: ``classes``, ``palette`` (RGB), ``task``,
            ``output``, ``resize`` and more.

    Raises:
        UnusableFile: it is not there, is damaged, or comes from another program.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        import onnxruntime  # what else is in this folder runs without it

        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UnusableFile(f'{path} cannot be read: {error.strerror}') from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # it is said here
        if threads:
            options.intra_op_num_threads = threads
        available = onnxruntime.get_available_providers()
        try:
            self.session = onnxruntime.InferenceSession(
                content, options, providers=[name for name in PROVIDERS if name in available]
            )
        except Exception as error:  # its types are those of C++
            reason = str(error).strip().partition('\n')[0][:200]
            raise UnusableFile(f'{path} is damaged, or no model in ONNX: {reason}') from None
        self.meta = _meta(path, content, self.session.get_modelmeta().custom_metadata_map)
        self.path, self.takes_size = path, len(self.session.get_inputs()) > 1

    def check_resize(self) -> None:
        """Raise UnusableFile where the file does not say how images are resized."""
        if self.meta['resize'] is None:
            raise UnusableFile(
                f'{self.path} does not say how images are resized, since its config does it in a '
                'way that is not known here: resize them, and run the file with onnxruntime'
            )

    def __call__(self, image: np.ndarray) -> np.ndarray | Instances:
        """
        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            Of a segmentor its output at the size of the image: labels (H, W) or logits (C, H, W).
            Of a detector the instances, in pixels of the image.

        Raises:
            UnusableFile: the file does not say how images are resized.
        """
        self.check_resize()
        height, width = image.shape[:2]
        size = target_size(height, width, self.meta['resize'])
        inputs = dict(image=resize(image, *size)[None] if size != (height, width) else image[None])
        if self.takes_size:
            inputs['size'] = np.array([height, width], np.int64)
        outputs = [output[0] for output in self.session.run(None, inputs)]
        if self.meta['task'] == 'segmentation':
            return outputs[0]
        return self.instances(outputs, (height, width), (size[1] / width, size[0] / height))

    def instances(
        self,
        outputs: Sequence[np.ndarray],
        size: tuple[int, int],
        scale_factor: tuple[float, float],
    ) -> Instances:
        """What the outputs of a detector say of one of its images.

        Args:
            outputs: ``boxes`` (M, 4), ``scores`` (M,), ``labels`` (M,) and perhaps ``masks``.
            size: height and width of the image before it was resized.
            scale_factor: of the resizing, of the width and of the height.

        Returns:
            Those that are there, in pixels of the image before it was resized.
        """
        boxes, scores, labels, *masks = (part[outputs[1] >= 0] for part in outputs)
        if self.takes_size:  # boxes and masks are of that image already
            return Instances(boxes, scores, labels, masks[0] > 0)
        boxes = boxes / np.tile(np.asarray(scale_factor, np.float32), 2)
        if not masks:
            return Instances(boxes, scores, labels)
        threshold = self.meta['thresholds'].get('mask', 0.5)
        pasted = np.zeros((len(boxes), *size), bool)
        for place, box, mask in zip(pasted, boxes, masks[0]):
            place[:] = paste(mask, box, *size, threshold)
        return Instances(boxes, scores, labels, pasted)


def _meta(path, content, metadata):
    if KEY not in metadata:
        raise UnusableFile(f'{path} is not of convnext-dense export: it says nothing of itself')
    try:
        meta = json.loads(metadata[KEY])
        is_newer, writer = meta['format'] > FORMAT, meta['versions']['convnext_dense']
        signature = meta['digest'].encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnusableFile(f'{path} is damaged: what it says of itself cannot be read') from None
    if is_newer:
        raise UnusableFile(
            f'{path} was written by a newer convnext_dense, {writer}: copy the runtime folder of '
            'that version'
        )
    if signed(content.replace(signature, UNSIGNED)) != signature:
        raise UnusableFile(f'{path} is damaged, or was changed after it was exported')
    return meta


def signed(content: bytes) -> bytes:
    """The signature of the bytes of a file that has ``UNSIGNED`` in place of it."""
    return b'sha256:' + hashlib.sha256(content).hexdigest().encode()
