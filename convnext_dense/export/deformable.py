"""Detectors with queries and deformable attention: DINO and Deformable DETR."""

from types import SimpleNamespace
from typing import Any

import torch
from mmdet.models.dense_heads import DeformableDETRHead
from mmdet.models.detectors import DINO, DeformableDETR

from ..errors import ConfigError
from .common import refuse_overridden
from .detections import Detector

TRANSFORMER = (
    *('forward_transformer', 'pre_transformer', 'forward_encoder', 'pre_decoder'),
    *('forward_decoder', 'gen_encoder_output_proposals'),
)
HEAD = 'predict', 'predict_by_feat', '_predict_by_feat_single', 'forward'


class Deformable(Detector):
    """``DetectionTransformer.predict`` of mmdet with deformable attention.

    Raises:
        ConfigError: the detector or its head predicts in another way, or pictures are padded.
    """

    def __init__(self, model: Any):
        base = DINO if isinstance(model, DINO) else DeformableDETR
        super().__init__(model, base)
        refuse_overridden(model, base, TRANSFORMER)
        refuse_overridden(model.bbox_head, DeformableDETRHead, HEAD)
        if (self.preprocessing.divisor or 1) > 1:
            raise ConfigError(
                f'{base.__name__} cannot be exported with padding, of which it makes masks: '
                '--cfg-options model.data_preprocessor.pad_size_divisor=1'
            )
        if not model.bbox_head.loss_cls.use_sigmoid:
            raise ConfigError(f'{base.__name__} cannot be exported: its scores are by softmax')
        cfg = model.bbox_head.test_cfg or {}
        self.most = int(cfg.get('max_per_img', model.num_queries))
        self.thresholds = {}

    def detect(self, maps, size):
        model, head = self.model, self.model.bbox_head
        # of the whole batch: without padding all pictures are of one size
        samples = [SimpleNamespace(img_shape=size, batch_input_shape=size)]
        encoder, decoder = model.pre_transformer(maps, samples)
        encoded = model.forward_encoder(**encoder)
        is_dino = isinstance(model, DINO)
        more = dict(batch_data_samples=samples) if is_dino else {}
        decoder.update(model.pre_decoder(**encoded, **more)[0])
        if is_dino:  # its forward_decoder compares the size of the batch with the queries
            decoder['value'] = decoder.pop('memory')
            decoder['key_padding_mask'] = decoder.pop('memory_mask')
            decoder['self_attn_mask'] = decoder.pop('dn_mask')
            states, references = model.decoder(reg_branches=head.reg_branches, **decoder)
        else:
            decoded = model.forward_decoder(**decoder)
            states, references = decoded['hidden_states'], decoded['references']
        logits, boxes = (outputs[-1] for outputs in head(states, list(references)))
        classes = logits.shape[2]
        scores, places = logits.sigmoid().flatten(1).topk(self.most)
        boxes = boxes.gather(1, (places // classes)[..., None].expand(-1, -1, 4))
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        boxes = torch.cat([centre - half, centre + half], -1)
        sides = torch.stack([torch.scalar_tensor(side) for side in (size[1], size[0]) * 2])
        boxes = torch.minimum((boxes * sides).clamp(min=0), sides)
        return boxes, scores, places % classes

    def operators(self) -> dict:
        return {}
