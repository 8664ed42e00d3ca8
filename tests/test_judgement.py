"""What judges a swap from outside: silent on right ones, and each kind of fault is seen."""

import pytest
import torch
from mmseg.models import FCNHead

from convnext_dense.evaluation.judgement import judge_images, judge_model
from convnext_dense.swap import plan
from convnext_dense.swap.proof import part
from convnext_dense.weights.presets import IMAGENET

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
FASTER = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
PSPNET = 'mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py'


def swap(name: str):
    return plan(name, 'tiny', 'tiny_in1k')


@pytest.mark.parametrize('name', [RETINANET, FASTER, PSPNET])
def test_a_right_swap_has_no_fault(name):
    swapped = swap(name)
    assert judge_images(swapped, *IMAGENET) == ([], [])
    assert judge_model(swapped) == ([], [])


def test_colours_in_the_wrong_order():
    swapped = swap(RETINANET)
    swapped.cfg.model.data_preprocessor.bgr_to_rgb = False
    faults = judge_images(swapped, *IMAGENET).faults
    assert [fault.partition(':')[0] for fault in faults] == [
        'train_dataloader',
        'val_dataloader',
        'test_dataloader',
    ]


def test_images_of_one_loader_that_are_normalised_twice():
    swapped = swap(PSPNET)
    normalise = dict(type='Normalize', mean=[1.0] * 3, std=[2.0] * 3, to_rgb=False)
    swapped.cfg.test_dataloader.dataset.pipeline.insert(1, normalise)
    (fault,) = judge_images(swapped, *IMAGENET).faults
    assert fault.startswith('test_dataloader: images have the means')


def test_a_pipeline_that_packs_nothing_is_not_judged():
    swapped = swap(RETINANET)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        swapped.cfg[loader].dataset.pipeline.pop()
    verdict = judge_images(swapped, *IMAGENET)
    assert not verdict.faults and len(verdict.not_judged) == 3


def test_the_preprocessor_of_the_config_itself_is_the_models():
    """Runner gives it to the model. One without a type is known to the model alone."""
    swapped = swap(RETINANET)
    swapped.cfg.data_preprocessor = swapped.cfg.model.pop('data_preprocessor')
    assert judge_images(swapped, *IMAGENET) == ([], [])
    del swapped.cfg.data_preprocessor['type']
    faults, not_judged = judge_images(swapped, *IMAGENET)
    assert not faults and len(not_judged) == 3 and 'must contain the key "type"' in not_judged[0]


def test_a_proof_does_not_pad_to_the_size_of_training():
    name = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
    assert swap(name).cfg.model.data_preprocessor.batch_augments
    assert part(swap(name).cfg, ('model',)).data_preprocessor.batch_augments is None


def test_images_of_another_kind_are_told_by_the_swap():
    """In units that the weights do not know; the swap leaves them, and says it."""
    from mmengine.config import Config

    from convnext_dense.config_names import find_config

    cfg = Config.fromfile(find_config(RETINANET)[0])
    cfg.model.data_preprocessor.update(mean=[0.5] * 3, std=[0.2] * 3)
    verdict = judge_images(plan(cfg, 'tiny', 'tiny_in1k'), *IMAGENET)
    assert not verdict.faults and 'left as it is' in verdict.not_judged[0]


@pytest.mark.parametrize(
    'name, path, strides, module',
    [
        (RETINANET, 'bbox_head.anchor_generator.strides', [4, 8, 16, 32, 64], 'bbox_head'),
        (
            FASTER,
            'roi_head.bbox_roi_extractor.featmap_strides',
            [8, 16, 32, 64],
            'roi_head.bbox_roi_extractor',
        ),
    ],
)
def test_maps_at_other_strides_than_were_told(name, path, strides, module):
    swapped = swap(name)
    swapped.cfg.merge_from_dict({f'model.{path}': strides})
    (fault,) = judge_model(swapped).faults
    assert fault.startswith(f'{module} was told the strides {strides} and reads maps at ')


def test_what_is_frozen():
    swapped = swap(PSPNET)
    swapped.cfg.model.backbone.frozen_stages = 1
    (fault,) = judge_model(swapped).faults
    assert fault.startswith('frozen, which were trained before: backbone.')


def test_what_gets_no_gradient_any_more():
    swapped = swap(PSPNET)
    swapped.cfg.model.auxiliary_head.type = HeadThatLearnsScoresOnly
    (fault,) = judge_model(swapped).faults
    assert fault.startswith('without a gradient, which they had before: auxiliary_head.convs.0.')


class HeadThatLearnsScoresOnly(FCNHead):
    def _forward_feature(self, inputs):
        with torch.no_grad():
            return super()._forward_feature(inputs)


def test_an_original_that_does_not_run_is_said():
    swapped = swap(RETINANET)
    swapped.original.model.neck.in_channels = [1, 2, 3, 4]
    verdict = judge_model(swapped)
    assert not verdict.faults
    assert verdict.not_judged[0].startswith('The original fails the same step: ')
