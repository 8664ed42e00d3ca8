"""Draws the maps that a ConvNeXt makes of an image: shows whether weights are really loaded."""

import copy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure  # pyplot would change the backend of the user's program
from PIL import Image
from torch import Tensor, nn

from ..architectures import ARCHITECTURES
from ..backbone import ConvNeXt
from ..data.pictures import save_figure
from ..errors import WeightsError
from ..weights import LoadReport, layouts, load_weights
from ..weights.loading import read


class Networks(NamedTuple):
    loaded: ConvNeXt  # with the weights of a file
    random: ConvNeXt  # of the same architecture
    report: LoadReport


def load(weights: str) -> Networks:
    """The network whose weights a preset, a path or a URL holds, in eval mode.

    Raises:
        WeightsError: they cannot be read, or are not of a ConvNeXt of four stages.
    """
    tensors, where, _ = read(weights)
    architecture = layouts.architecture_of(layouts.to_ours(tensors, where).tensors)
    if not architecture:
        raise WeightsError(f'{where} holds no ConvNeXt of four stages')
    arch: str | dict = architecture._asdict()
    for name, known in ARCHITECTURES.items():
        if known._replace(eps=architecture.eps) == architecture:  # files do not tell the eps
            arch = name
    torch.manual_seed(0)
    loaded, random = ConvNeXt(arch).eval(), ConvNeXt(arch).eval()
    return Networks(loaded, random, load_weights(loaded, tensors))


def resize(image: np.ndarray, size: int) -> Image.Image:
    """Image (H, W, 3) uint8, shorter side to ``size`` pixels, both sides to multiples of 32."""
    picture = Image.fromarray(image)
    scale = size / min(picture.size)
    width, height = (max(32, round(side * scale / 32) * 32) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def stage_maps(net: ConvNeXt, image: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Image (1, 3, H, W) -> the maps of the four stages before, and after their LayerNorms."""
    without_norms = copy.deepcopy(net)
    for i in range(4):
        setattr(without_norms, f'norm{i}', nn.Identity())
    with torch.no_grad():
        return without_norms(image), net(image)


def components(features: Tensor) -> tuple[np.ndarray, float]:
    """The first three principal components of a map's pixels, as red, green and blue.

    The sign of a component is arbitrary. It is chosen so that the top quarter of the image has a
    positive mean, so that pictures of several runs and weights can be compared.

    Args:
        features: (1, C, H, W).

    Returns:
        Picture (H, W, 3) in 0 ... 1, and the components' share of the map's variance.
    """
    _, channels, height, width = features.shape
    pixels = features[0].reshape(channels, -1).T.double()
    pixels = pixels - pixels.mean(0)
    values, vectors = torch.linalg.eigh(pixels.T @ pixels)
    projected = pixels @ vectors[:, -3:].flip(1)
    top = projected[: len(projected) // 4].mean(0)
    projected = projected * torch.where(top < 0, -1.0, 1.0)
    low, high = projected.quantile(0.02, 0), projected.quantile(0.98, 0)
    picture = ((projected - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    share = values[-3:].sum() / values.sum().clamp(min=1e-12)
    return picture.reshape(height, width, 3).numpy(), share.item()


def draw_features(
    picture: Image.Image,
    networks: Networks,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    path: Path,
) -> None:
    """Write the components of all maps, of the loaded network above the random one, to ``path``.

    Args:
        picture: RGB.
        mean, std: of the three channels, in 0 ... 255, by which the image is normalised.
    """
    image = torch.from_numpy(np.array(picture, np.float32))[None]
    image = ((image - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    rows = {}
    for name, net in (('loaded', networks.loaded), ('random', networks.random)):
        before, after = stage_maps(net, image)
        rows[f'{name},\nbefore LayerNorm'] = before
        rows[f'{name},\nafter LayerNorm'] = after
    aspect = picture.height / picture.width
    figure = Figure(figsize=(15, 0.8 + 4 * (3 * aspect + 0.3)), layout='constrained')
    grid = figure.subplots(4, 5)
    for axes_of_row, (title, maps) in zip(grid, rows.items()):
        axes_of_row[0].imshow(picture)
        axes_of_row[0].set_ylabel(title, fontsize=13)
        for i, (axes, features) in enumerate(zip(axes_of_row[1:], maps), 1):
            shown, share = components(features)
            axes.imshow(shown, interpolation='nearest')
            shape = ' x '.join(map(str, features.shape[1:]))
            axes.set_title(f'stage {i}: {shape}, {share:.0%}', fontsize=11)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path, 80)
