"""The catalogue of published weights: each preset is a row of ``ROWS``."""

from typing import NamedTuple

# Mean and standard deviation of the images that a network was trained on, RGB, 0 to 255.
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
OPENAI = ((122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305))


class Preset(NamedTuple):
    arch: str
    source: str  # URL, or repository of the Hugging Face hub with a model.safetensors
    layout: str
    licence: str
    resolution: int = 224  # of the images that it was last trained on, pixels
    top1: float | None = None  # ImageNet-1k accuracy that its authors publish, percent
    sha256: str = ''  # first digits of the file's, where they are published
    mean: tuple[float, float, float] = IMAGENET[0]  # RGB, 0 to 255
    std: tuple[float, float, float] = IMAGENET[1]


class Publisher(NamedTuple):
    """The columns that all files of one folder share."""

    url: str  # before the file's name; '' for repositories of the Hugging Face hub
    layout: str
    licence: str
    images: tuple[tuple[float, float, float], tuple[float, float, float]] = IMAGENET  # mean, std


META = 'https://dl.fbaipublicfiles.com/convnext/'
# V1: arXiv 2201.03545 and its repository's README. V2: arXiv 2301.00808 and its repository's.
V1 = Publisher(META, 'official', 'MIT')
FCMAE = Publisher(f'{META}convnextv2/pt_only/', 'official', 'CC-BY-NC-4.0')
IM1K = Publisher(f'{META}convnextv2/im1k/', 'official', 'CC-BY-NC-4.0')
IM22K = Publisher(f'{META}convnextv2/im22k/', 'official', 'CC-BY-NC-4.0')
TIMM_RELEASE = Publisher(
    'https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-rsb-weights/',
    'timm',
    'Apache-2.0',
)
TIMM_HUB = Publisher('', 'timm', 'Apache-2.0')
DINOV3 = Publisher('', 'timm', 'DINOv3 License')
CLIP = Publisher('', 'timm', 'Apache-2.0', OPENAI)
PYTORCH = Publisher('https://download.pytorch.org/models/', 'torchvision', 'BSD-3-Clause')

# fmt: off
ROWS: tuple[tuple, ...] = (
    # name, arch, publisher, file, resolution (default: 224), top-1 (None), SHA-256 ('')
    # Without weight averaging: where the official COCO and ADE20K recipes start.
    # Their accuracy is not published.
    ('tiny_in1k', 'tiny', V1, 'convnext_tiny_1k_224.pth'),
    ('small_in1k', 'small', V1, 'convnext_small_1k_224.pth'),
    ('base_in1k', 'base', V1, 'convnext_base_1k_224.pth'),
    ('large_in1k', 'large', V1, 'convnext_large_1k_224.pth'),
    # With weight averaging (EMA).
    ('tiny_in1k_ema', 'tiny', V1, 'convnext_tiny_1k_224_ema.pth', 224, 82.1),
    ('small_in1k_ema', 'small', V1, 'convnext_small_1k_224_ema.pth', 224, 83.1),
    ('base_in1k_ema', 'base', V1, 'convnext_base_1k_224_ema.pth', 224, 83.8),
    ('large_in1k_ema', 'large', V1, 'convnext_large_1k_224_ema.pth', 224, 84.3),
    # Fine-tuned on larger images.
    ('base_in1k_384', 'base', V1, 'convnext_base_1k_384.pth', 384, 85.1),
    ('large_in1k_384', 'large', V1, 'convnext_large_1k_384.pth', 384, 85.5),
    # Trained on ImageNet-22k; below, fine-tuned on ImageNet-1k.
    ('tiny_in22k', 'tiny', V1, 'convnext_tiny_22k_224.pth'),
    ('small_in22k', 'small', V1, 'convnext_small_22k_224.pth'),
    ('base_in22k', 'base', V1, 'convnext_base_22k_224.pth'),
    ('large_in22k', 'large', V1, 'convnext_large_22k_224.pth'),
    ('xlarge_in22k', 'xlarge', V1, 'convnext_xlarge_22k_224.pth'),
    ('tiny_in22k_in1k', 'tiny', V1, 'convnext_tiny_22k_1k_224.pth', 224, 82.9),
    ('small_in22k_in1k', 'small', V1, 'convnext_small_22k_1k_224.pth', 224, 84.6),
    ('base_in22k_in1k', 'base', V1, 'convnext_base_22k_1k_224.pth', 224, 85.8),
    ('large_in22k_in1k', 'large', V1, 'convnext_large_22k_1k_224.pth', 224, 86.6),
    ('xlarge_in22k_in1k', 'xlarge', V1, 'convnext_xlarge_22k_1k_224_ema.pth', 224, 87.0),
    ('tiny_in22k_in1k_384', 'tiny', V1, 'convnext_tiny_22k_1k_384.pth', 384, 84.1),
    ('small_in22k_in1k_384', 'small', V1, 'convnext_small_22k_1k_384.pth', 384, 85.8),
    ('base_in22k_in1k_384', 'base', V1, 'convnext_base_22k_1k_384.pth', 384, 86.8),
    ('large_in22k_in1k_384', 'large', V1, 'convnext_large_22k_1k_384.pth', 384, 87.5),
    ('xlarge_in22k_in1k_384', 'xlarge', V1, 'convnext_xlarge_22k_1k_384_ema.pth', 384, 87.8),
    # Trained without labels (FCMAE); below, fine-tuned with them.
    ('v2_atto_fcmae', 'v2_atto', FCMAE, 'convnextv2_atto_1k_224_fcmae.pt'),
    ('v2_femto_fcmae', 'v2_femto', FCMAE, 'convnextv2_femto_1k_224_fcmae.pt'),
    ('v2_pico_fcmae', 'v2_pico', FCMAE, 'convnextv2_pico_1k_224_fcmae.pt'),
    ('v2_nano_fcmae', 'v2_nano', FCMAE, 'convnextv2_nano_1k_224_fcmae.pt'),
    ('v2_tiny_fcmae', 'v2_tiny', FCMAE, 'convnextv2_tiny_1k_224_fcmae.pt'),
    ('v2_base_fcmae', 'v2_base', FCMAE, 'convnextv2_base_1k_224_fcmae.pt'),
    ('v2_large_fcmae', 'v2_large', FCMAE, 'convnextv2_large_1k_224_fcmae.pt'),
    ('v2_huge_fcmae', 'v2_huge', FCMAE, 'convnextv2_huge_1k_224_fcmae.pt'),
    ('v2_atto_fcmae_in1k', 'v2_atto', IM1K, 'convnextv2_atto_1k_224_ema.pt', 224, 76.7),
    ('v2_femto_fcmae_in1k', 'v2_femto', IM1K, 'convnextv2_femto_1k_224_ema.pt', 224, 78.5),
    ('v2_pico_fcmae_in1k', 'v2_pico', IM1K, 'convnextv2_pico_1k_224_ema.pt', 224, 80.3),
    ('v2_nano_fcmae_in1k', 'v2_nano', IM1K, 'convnextv2_nano_1k_224_ema.pt', 224, 81.9),
    ('v2_tiny_fcmae_in1k', 'v2_tiny', IM1K, 'convnextv2_tiny_1k_224_ema.pt', 224, 83.0),
    ('v2_base_fcmae_in1k', 'v2_base', IM1K, 'convnextv2_base_1k_224_ema.pt', 224, 84.9),
    ('v2_large_fcmae_in1k', 'v2_large', IM1K, 'convnextv2_large_1k_224_ema.pt', 224, 85.8),
    ('v2_huge_fcmae_in1k', 'v2_huge', IM1K, 'convnextv2_huge_1k_224_ema.pt', 224, 86.3),
    ('v2_nano_fcmae_in22k_in1k', 'v2_nano', IM22K, 'convnextv2_nano_22k_224_ema.pt', 224, 82.1),
    ('v2_tiny_fcmae_in22k_in1k', 'v2_tiny', IM22K, 'convnextv2_tiny_22k_224_ema.pt', 224, 83.9),
    ('v2_base_fcmae_in22k_in1k', 'v2_base', IM22K, 'convnextv2_base_22k_224_ema.pt', 224, 86.8),
    ('v2_large_fcmae_in22k_in1k', 'v2_large', IM22K, 'convnextv2_large_22k_224_ema.pt', 224, 87.3),
    ('v2_nano_fcmae_in22k_in1k_384', 'v2_nano', IM22K, 'convnextv2_nano_22k_384_ema.pt', 384, 83.4),
    ('v2_tiny_fcmae_in22k_in1k_384', 'v2_tiny', IM22K, 'convnextv2_tiny_22k_384_ema.pt', 384, 85.1),
    ('v2_base_fcmae_in22k_in1k_384', 'v2_base', IM22K, 'convnextv2_base_22k_384_ema.pt', 384, 87.7),
    ('v2_large_fcmae_in22k_in1k_384', 'v2_large',
     IM22K, 'convnextv2_large_22k_384_ema.pt', 384, 88.2),
    ('v2_huge_fcmae_in22k_in1k_384', 'v2_huge', IM22K, 'convnextv2_huge_22k_384_ema.pt', 384, 88.7),
    ('v2_huge_fcmae_in22k_in1k_512', 'v2_huge', IM22K, 'convnextv2_huge_22k_512_ema.pt', 512, 88.9),
    # Sizes that only timm has, and other data than ImageNet.
    ('atto_in1k', 'atto', TIMM_RELEASE, 'convnext_atto_d2-01bb0f51.pth', 224, None, '01bb0f51'),
    ('femto_in1k', 'femto', TIMM_RELEASE, 'convnext_femto_d1-d71d5b4c.pth', 224, None, 'd71d5b4c'),
    ('pico_in1k', 'pico', TIMM_RELEASE, 'convnext_pico_d1-10ad7f0d.pth', 224, None, '10ad7f0d'),
    ('nano_in1k', 'nano', TIMM_RELEASE, 'convnext_nano_d1h-7eb4bdea.pth', 224, None, '7eb4bdea'),
    ('nano_in12k', 'nano', TIMM_HUB, 'timm/convnext_nano.in12k'),
    ('tiny_in12k', 'tiny', TIMM_HUB, 'timm/convnext_tiny.in12k'),
    ('small_in12k', 'small', TIMM_HUB, 'timm/convnext_small.in12k'),
    ('tiny_dinov3', 'tiny', DINOV3, 'timm/convnext_tiny.dinov3_lvd1689m'),
    ('small_dinov3', 'small', DINOV3, 'timm/convnext_small.dinov3_lvd1689m'),
    ('base_dinov3', 'base', DINOV3, 'timm/convnext_base.dinov3_lvd1689m'),
    ('large_dinov3', 'large', DINOV3, 'timm/convnext_large.dinov3_lvd1689m'),
    ('base_clip', 'base', CLIP, 'timm/convnext_base.clip_laion2b_augreg', 256),
    ('large_clip', 'large', CLIP, 'timm/convnext_large_mlp.clip_laion2b_ft_soup_320', 320),
    ('xxlarge_clip', 'xxlarge', CLIP, 'timm/convnext_xxlarge.clip_laion2b_soup', 256),
    # Trained by torchvision's own recipe.
    ('tiny_torchvision', 'tiny', PYTORCH, 'convnext_tiny-983f1562.pth', 224, 82.52, '983f1562'),
    ('small_torchvision', 'small', PYTORCH, 'convnext_small-0c510722.pth', 224, 83.62, '0c510722'),
    ('base_torchvision', 'base', PYTORCH, 'convnext_base-6075fbad.pth', 224, 84.06, '6075fbad'),
    ('large_torchvision', 'large', PYTORCH, 'convnext_large-ea097f82.pth', 224, 84.41, 'ea097f82'),
)
# fmt: on

PRESETS = {
    name: Preset(arch, url + file, layout, licence, *columns)._replace(mean=mean, std=std)
    for name, arch, (url, layout, licence, (mean, std)), file, *columns in ROWS
}


def find(source: object) -> str | None:
    """The preset that ``source`` names or is the URL of; None for anything else."""
    return next((name for name, preset in PRESETS.items() if source in (name, preset.source)), None)
