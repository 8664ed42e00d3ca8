# As for V1, but for the scales of multi-scale testing: those of the ConvNeXt V2 paper's appendix
# A.4.
_base_ = 'ade20k_512x512.py'
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(2048 * ratio), int(512 * ratio)), keep_ratio=True)
    for ratio in (0.75, 0.875, 1.0, 1.125, 1.25)
]
