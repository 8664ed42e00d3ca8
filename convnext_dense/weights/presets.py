"""The catalogue of published weights, and how they are fetched."""

import hashlib
import os
import re
import socket
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock  # torch requires it
from mmengine.logging import print_log

from ..errors import WeightsError
from .reading import read

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
CLIP = ((122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305))


class Preset(NamedTuple):
    arch: str
    source: str  # URL, or repository of the Hugging Face hub with a model.safetensors
    layout: str
    licence: str
    resolution: int = 224  # of the images that it was last trained on, pixels
    top1: float | None = (
        None  # ImageNet-1k accuracy as published by its authors, percent; None: none published
    )
    mean: tuple[float, float, float] = IMAGENET[0]  # RGB, 0 to 255
    std: tuple[float, float, float] = IMAGENET[1]


def _official(sizes, name, file, accuracies=(), resolution=224):
    """Rows of arXiv 2201.03545 and of its repository's README; ``{}`` is the size."""
    for size, accuracy in zip(sizes.split(), accuracies or (None,) * 5):
        url = f'https://dl.fbaipublicfiles.com/convnext/convnext_{file.format(size)}.pth'
        yield name.format(size), Preset(size, url, 'official', 'MIT', resolution, accuracy)


def _v2(sizes, name, file, accuracies=(), resolution=224):
    """Rows of arXiv 2301.00808 and of its repository's README."""
    for size, accuracy in zip(sizes.split(), accuracies or (None,) * 8):
        url = f'https://dl.fbaipublicfiles.com/convnext/convnextv2/{file.format(f"convnextv2_{size}")}.pt'
        yield (
            name.format(f'v2_{size}'),
            Preset(f'v2_{size}', url, 'official', 'CC-BY-NC-4.0', resolution, accuracy),
        )


V2_SIZES = 'atto femto pico nano tiny base large huge'
TIMM_RELEASE = (
    'https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-rsb-weights/convnext_'
)

PRESETS: dict[str, Preset] = {
    # Without weight averaging: where the official COCO and ADE20K recipes start. Their accuracy is not published.
    **dict(_official('tiny small base large', '{}_in1k', '{}_1k_224')),
    **dict(
        _official('tiny small base large', '{}_in1k_ema', '{}_1k_224_ema', (82.1, 83.1, 83.8, 84.3))
    ),
    **dict(_official('base large', '{}_in1k_384', '{}_1k_384', (85.1, 85.5), 384)),
    **dict(_official('tiny small base large xlarge', '{}_in22k', '{}_22k_224')),
    **dict(
        _official(
            'tiny small base large', '{}_in22k_in1k', '{}_22k_1k_224', (82.9, 84.6, 85.8, 86.6)
        )
    ),
    **dict(_official('xlarge', '{}_in22k_in1k', '{}_22k_1k_224_ema', (87.0,))),
    **dict(
        _official(
            'tiny small base large',
            '{}_in22k_in1k_384',
            '{}_22k_1k_384',
            (84.1, 85.8, 86.8, 87.5),
            384,
        )
    ),
    **dict(_official('xlarge', '{}_in22k_in1k_384', '{}_22k_1k_384_ema', (87.8,), 384)),
    **dict(_v2(V2_SIZES, '{}_fcmae', 'pt_only/{}_1k_224_fcmae')),
    **dict(
        _v2(
            V2_SIZES,
            '{}_fcmae_in1k',
            'im1k/{}_1k_224_ema',
            (76.7, 78.5, 80.3, 81.9, 83.0, 84.9, 85.8, 86.3),
        )
    ),
    **dict(
        _v2(
            'nano tiny base large',
            '{}_fcmae_in22k_in1k',
            'im22k/{}_22k_224_ema',
            (82.1, 83.9, 86.8, 87.3),
        )
    ),
    **dict(
        _v2(
            'nano tiny base large huge',
            '{}_fcmae_in22k_in1k_384',
            'im22k/{}_22k_384_ema',
            (83.4, 85.1, 87.7, 88.2, 88.7),
            384,
        )
    ),
    **dict(_v2('huge', '{}_fcmae_in22k_in1k_512', 'im22k/{}_22k_512_ema', (88.9,), 512)),
    'atto_in1k': Preset('atto', f'{TIMM_RELEASE}atto_d2-01bb0f51.pth', 'timm', 'Apache-2.0'),
    'femto_in1k': Preset('femto', f'{TIMM_RELEASE}femto_d1-d71d5b4c.pth', 'timm', 'Apache-2.0'),
    'pico_in1k': Preset('pico', f'{TIMM_RELEASE}pico_d1-10ad7f0d.pth', 'timm', 'Apache-2.0'),
    'nano_in1k': Preset('nano', f'{TIMM_RELEASE}nano_d1h-7eb4bdea.pth', 'timm', 'Apache-2.0'),
    'nano_in12k': Preset('nano', 'timm/convnext_nano.in12k', 'timm', 'Apache-2.0'),
    'tiny_in12k': Preset('tiny', 'timm/convnext_tiny.in12k', 'timm', 'Apache-2.0'),
    'small_in12k': Preset('small', 'timm/convnext_small.in12k', 'timm', 'Apache-2.0'),
    **{
        f'{size}_dinov3': Preset(
            size, f'timm/convnext_{size}.dinov3_lvd1689m', 'timm', 'DINOv3 License'
        )
        for size in ('tiny', 'small', 'base', 'large')
    },
    'base_clip': Preset(
        'base', 'timm/convnext_base.clip_laion2b_augreg', 'timm', 'Apache-2.0', 256, None, *CLIP
    ),
    'large_clip': Preset(
        'large',
        'timm/convnext_large_mlp.clip_laion2b_ft_soup_320',
        'timm',
        'Apache-2.0',
        320,
        None,
        *CLIP,
    ),
    'xxlarge_clip': Preset(
        'xxlarge', 'timm/convnext_xxlarge.clip_laion2b_soup', 'timm', 'Apache-2.0', 256, None, *CLIP
    ),
    **{
        f'{size}_torchvision': Preset(
            size,
            f'https://download.pytorch.org/models/convnext_{size}-{sha256}.pth',
            'torchvision',
            'BSD-3-Clause',
            224,
            accuracy,
        )
        for size, sha256, accuracy in (
            ('tiny', '983f1562', 82.52),
            ('small', '0c510722', 83.62),
            ('base', '6075fbad', 84.06),
            ('large', 'ea097f82', 84.41),
        )
    },
}


def find(source) -> str | None:
    """The preset that ``source`` names or is the URL of; None for anything else."""
    return next((name for name, preset in PRESETS.items() if source in (name, preset.source)), None)


def published_sha256(source: str) -> str:
    """The first digits of the file's SHA-256, where its name carries them as torch.hub's convention has it; or ''."""
    match = re.search(
        r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$', source.partition('?')[0]
    )  # not a date
    return match[1] if match else ''


def fetch(source: str) -> Path:
    """URL or hub repository -> the file, kept in torch.hub's folder and checked against a published SHA-256.

    Raises:
        WeightsError: it cannot be fetched, with where to put it by hand; or it is not the published file.
    """
    is_url = re.match(r'https?://', source)
    # The name holds the whole source: many hosts serve a file of the same name.
    basename = source.partition('?')[0].rpartition('/')[2][-100:]
    name = f'{hashlib.sha256(source.encode()).hexdigest()[:8]}-{basename}' + (
        '' if is_url else '.safetensors'
    )
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    if not path.is_file():
        cached = None if is_url else _in_hub_cache(source)
        if cached:
            return cached
        url = (
            source if is_url else f'https://huggingface.co/{source}/resolve/main/model.safetensors'
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f'{path}.lock'):  # the processes of a distributed run share one download
                if not path.is_file():
                    print_log(f'fetching {url}', logger='current')
                    if not is_url:
                        return _from_hub(source)
                    _download(url, path)
        except Exception as error:  # of urllib, requests or the hub; a wrong hash is a RuntimeError
            raise WeightsError(
                f'could not fetch {url}: {error or type(error).__name__}\nFetch it elsewhere and put it at {path}, or '
                'name a local file as checkpoint; init_cfg=None trains from random weights.'
            ) from None
    sha256 = published_sha256(source)
    if sha256:
        digest = hashlib.sha256()
        with open(path, 'rb') as file:
            for chunk in iter(lambda: file.read(1 << 20), b''):
                digest.update(chunk)
        if not digest.hexdigest().startswith(sha256):
            raise WeightsError(
                f'{path} is damaged: its SHA-256 starts {digest.hexdigest()[: len(sha256)]}, published is '
                f'{sha256}. Delete it to fetch it again'
            )
    return path


def _download(url: str, path: Path) -> None:
    """Whole, readable and of the published SHA-256, or not at all. torch.hub does not notice a connection cut short."""
    unfinished = path.with_name(f'{path.name}.unfinished')
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # seconds without a byte
    try:
        torch.hub.download_url_to_file(url, str(unfinished), published_sha256(url) or None)
        read(unfinished)
        os.replace(unfinished, path)
    finally:
        socket.setdefaulttimeout(timeout)
        unfinished.unlink(missing_ok=True)


def _in_hub_cache(repository: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:
        return None
    cached = try_to_load_from_cache(repository, 'model.safetensors')
    return Path(cached) if isinstance(cached, str) else None


def _from_hub(repository: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError:
        raise WeightsError(
            'the package huggingface_hub is missing: pip install huggingface_hub'
        ) from None
    return Path(
        hf_hub_download(repository, 'model.safetensors')
    )  # resumes; keeps the file in the hub's own cache
