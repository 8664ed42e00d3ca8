"""Evaluate a checkpoint on the test split of its config.

    python tools/test.py CONFIG CHECKPOINT
    python tools/test.py CONFIG CHECKPOINT --show-dir pictures
    python tools/test.py CONFIG CHECKPOINT --tta          # segmentation: multi-scale and flip, as published

Metrics are printed and written to WORK_DIR/TIMESTAMP/*.json.
"""

from pathlib import Path

from mmengine.runner import Runner

from ..training.running import load_config
from .shared import add_run_arguments, errors_as_messages, make_parser


def main(argv=None):
    parser = make_parser(__doc__)
    add_run_arguments(parser)
    parser.add_argument('checkpoint', help='path or URL of the trained model')
    parser.add_argument('--show-dir', help='draw predictions beside the truth into this folder')
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation: multi-scale and flip'
    )
    args = parser.parse_args(argv)
    if '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
        parser.error(f'no checkpoint at {args.checkpoint}')

    with errors_as_messages():
        cfg = load_config(
            args.config, ['test'], args.work_dir, args.data_root, args.cfg_options, args.launcher
        )
        cfg.load_from, cfg.resume = args.checkpoint, False
        if args.show_dir:
            cfg.visualizer.save_dir = args.show_dir
            if not cfg.get('default_hooks', {}).get('visualization'):
                parser.error('--show-dir: this config has no default_hooks.visualization')
            cfg.default_hooks.visualization.update(draw=True, interval=1)
        if args.tta:
            if 'mask_head' in cfg.model or 'mask_head' in cfg.model.get('roi_head', {}):
                parser.error(
                    "--tta: mmdet's test-time augmentation cannot merge masks, so a model with masks is tested at "
                    'one scale, as the published numbers on COCO were'
                )
            if 'tta_pipeline' not in cfg or 'tta_model' not in cfg:
                parser.error('--tta: this config has no tta_pipeline and tta_model')
            cfg.model.test_cfg = cfg.get('tta_test_cfg', cfg.model.test_cfg)
            cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
            cfg.model = dict(cfg.tta_model, module=cfg.model)
        Runner.from_cfg(cfg).test()
