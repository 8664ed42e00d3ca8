"""What a ConvNeXt makes of an image, stage by stage, as a picture: how one sees that weights have really loaded."""

import copy

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..architectures import ARCHITECTURES
from ..backbone import ConvNeXt
from ..errors import WeightsError
from ..weights import layouts, load_weights
from ..weights.loading import read


def load(weights: str):
    """The network that a file is of, with its weights and with random ones, and the report."""
    tensors, where, _ = read(weights)
    found = layouts.architecture_of(layouts.to_ours(tensors, where).tensors)
    names = [
        name
        for name, known in ARCHITECTURES.items()
        if found and known._replace(eps=found.eps) == found
    ]
    if not found:
        raise WeightsError(f'{where} holds no ConvNeXt of four stages')
    arch = (
        names[0]
        if names
        else dict(depths=found.depths, dims=found.dims, generation=found.generation)
    )
    torch.manual_seed(0)
    net, random = ConvNeXt(arch).eval(), ConvNeXt(arch).eval()
    report = load_weights(net, tensors)
    return net, random, report


def resized(image, size):
    """To multiples of 32."""
    picture = Image.fromarray(image)
    scale = size / min(picture.size)
    return picture.resize(
        [max(32, round(side * scale / 32) * 32) for side in picture.size], Image.BICUBIC
    )


def maps(net: nn.Module, image: Tensor):
    """Image (1, 3, H, W) -> the maps of the four stages before, and after their LayerNorms."""
    bare = copy.deepcopy(net)
    for i in range(4):
        setattr(bare, f'norm{i}', nn.Identity())
    with torch.no_grad():
        return bare(image), net(image)


def components(one: Tensor):
    """Map (1, C, H, W) -> picture (H, W, 3) in 0 ... 1, and the share of variance in it. The signs of components are arbitrary: the one
    that points to the top of the image is taken, so that runs and weights compare."""
    _, channels, height, width = one.shape
    pixels = one[0].reshape(channels, -1).T.double()
    pixels = pixels - pixels.mean(0)
    values, vectors = torch.linalg.eigh(pixels.T @ pixels)
    projected = pixels @ vectors[:, -3:].flip(1)
    top = projected[: len(projected) // 4].mean(0)
    projected = projected * torch.where(top < 0, -1.0, 1.0)
    low, high = projected.quantile(0.02, 0), projected.quantile(0.98, 0)
    picture = ((projected - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return picture.reshape(height, width, 3).numpy(), (
        values[-3:].sum() / values.sum().clamp(min=1e-12)
    ).item()


def draw(picture, net, random, mean, std, path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image = torch.from_numpy(np.array(picture, np.float32))[None]
    image = ((image - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    rows = dict(zip(('loaded,\nbefore LayerNorm', 'loaded,\nafter LayerNorm'), maps(net, image)))
    rows.update(zip(('random,\nbefore LayerNorm', 'random,\nafter LayerNorm'), maps(random, image)))
    aspect = picture.height / picture.width
    figure = Figure(figsize=(15, 0.8 + 4 * (3 * aspect + 0.3)), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(4, 5)
    for row, (title, found) in zip(axes, rows.items()):
        row[0].imshow(picture)
        row[0].set_ylabel(title, fontsize=13)
        for i, (axis, one) in enumerate(zip(row[1:], found)):
            shown, share = components(one)
            axis.imshow(shown, interpolation='nearest')
            axis.set_title(
                f'stage {i + 1}: {one.shape[1]} x {one.shape[2]} x {one.shape[3]}, {share:.0%}',
                fontsize=11,
            )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
