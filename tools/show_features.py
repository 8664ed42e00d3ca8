#!/usr/bin/env python3
"""What a ConvNeXt makes of an image, stage by stage, as a picture: how one sees that weights have really loaded.

    python tools/show_features.py street.jpg tiny_in22k
    python tools/show_features.py street.jpg work_dirs/mine/iter_10000.pth --out features.png

The first three principal components of each map as red, green and blue, before and after the LayerNorm of the stage, beside those of
random weights. Trained maps show the things in the image as areas of a colour, ever more so from stage to stage; random ones show
edges and brightness. The number is the share of the map's variance that the three components hold.
"""

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from convnext_dense import ARCHITECTURES, PRESETS, ConfigError, ConvNeXt, WeightsError, load_weights
from convnext_dense.pictures import read as read_image
from convnext_dense.weights import layouts
from convnext_dense.weights.loading import read
from convnext_dense.weights.presets import IMAGENET


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('image', type=Path)
    parser.add_argument(
        'weights',
        help='a preset (tools/convert_weights.py --list), a path or a URL, of a backbone or a whole model',
    )
    parser.add_argument(
        '--size', type=int, default=512, help='shorter side of the image, pixels (default: 512)'
    )
    parser.add_argument(
        '--out', type=Path, default=Path('features.png'), help='default: features.png'
    )
    args = parser.parse_args()
    if not args.image.is_file():
        parser.error(f'no image at {args.image}')
    if args.size < 32:
        parser.error('--size is 32 or more')
    try:
        net, random, report = load(args.weights)
        image = read_image(args.image)[0]
    except (ConfigError, WeightsError, OSError, SyntaxError, ValueError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
    if report.left_as_initialised:
        print(
            'The weights hold no LayerNorm of the stages: these are as initialised, and only normalise.'
        )
    preset = PRESETS.get(args.weights)
    image = resized(image, args.size)
    draw(image, net, random, *((preset.mean, preset.std) if preset else IMAGENET), args.out)
    print(f'wrote {args.out}')


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


if __name__ == '__main__':
    main()
