"""Evaluate a checkpoint on the test split of its config.

    convnext-dense test CONFIG CHECKPOINT
    convnext-dense test CONFIG CHECKPOINT --show-dir pictures
    convnext-dense test CONFIG CHECKPOINT --tta    # multi-scale and flip, as published for ADE20K

Metrics are printed and written to WORK_DIR/TIMESTAMP/*.json.
"""

from pathlib import Path

from mmengine.device import get_device

from ..evaluation.test_time_augmentation import with_test_time_augmentation
from ..inference.precision import to_bf16
from ..training.running import annotations_explained, build_runner, fit_to_machine, load_config
from .shared import add_dtype, add_run_arguments, errors_as_messages, make_parser


@errors_as_messages()
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add_run_arguments(parser)
    add = parser.add_argument
    add('checkpoint', help='path or URL of the trained model')
    add('--show-dir', help='draw predictions beside the truth into this folder')
    add('--tta', action='store_true', help='test-time augmentation: multi-scale and flip')
    add_dtype(parser, 'bf16: convolutions and products in bfloat16, if that is faster here')
    args = parser.parse_args(argv)
    if '://' not in args.checkpoint and not Path(args.checkpoint).exists():
        parser.error(f'no checkpoint at {args.checkpoint}')

    cfg = load_config(
        args.config, ['test'], args.work_dir, args.data_root, args.cfg_options, args.launcher
    )
    fit_to_machine(cfg)
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.show_dir:
        cfg.visualizer.save_dir = args.show_dir
        if not cfg.get('default_hooks', {}).get('visualization'):
            parser.error('--show-dir: this config has no default_hooks.visualization')
        cfg.default_hooks.visualization.update(draw=True, interval=1)
    with annotations_explained(cfg):
        runner = build_runner(with_test_time_augmentation(cfg) if args.tta else cfg)
        if args.dtype == 'bf16':
            to_bf16(runner.model, get_device())
        runner.test()
