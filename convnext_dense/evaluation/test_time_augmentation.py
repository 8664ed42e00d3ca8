"""Test-time augmentation: each image predicted at several scales and flipped, and merged."""

import copy

from mmengine.config import Config

from ..errors import ConfigError


def with_test_time_augmentation(cfg: Config) -> Config:
    """A copy of ``cfg`` that is tested with the augmentation that it describes.

    ``tta_model`` is wrapped around the model (``model.module``), ``tta_pipeline`` takes the place
    of the test pipeline, and ``tta_test_cfg``, where there is one, of the model's ``test_cfg``.

    Raises:
        ConfigError: the config describes none, or its model predicts masks.
    """
    if 'mask_head' in cfg.model or 'mask_head' in cfg.model.get('roi_head', {}):
        raise ConfigError(
            "mmdet's test-time augmentation cannot merge masks. Test a model with masks without "
            'it, at one scale, as the published figures on COCO were measured'
        )
    if 'tta_pipeline' not in cfg or 'tta_model' not in cfg:
        raise ConfigError(
            'no test-time augmentation: this config has no tta_pipeline and tta_model'
        )
    cfg = copy.deepcopy(cfg)
    if 'tta_test_cfg' in cfg:
        cfg.model.test_cfg = cfg.tta_test_cfg
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)
    return cfg
