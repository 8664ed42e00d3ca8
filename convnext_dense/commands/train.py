"""Train a detector or segmentor from a config.

    convnext-dense train mask-rcnn_convnext-t-in1k_fpn_amp-ms-crop-3x_coco
    torchrun --nproc_per_node 8 -m convnext_dense train CONFIG --launcher pytorch

Reads data, model, schedule, hooks and default_scope from the config; it knows nothing of the task.
"""

from pathlib import Path

from ..training.running import annotations_explained, build_runner, fit_to_machine, load_config
from ..training.work_dir import latest_checkpoint
from ..weights.pretrained import without_pretrained
from .shared import add_run_arguments, errors_as_messages, make_parser


@errors_as_messages()
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add_run_arguments(parser)
    resume = 'go on from CHECKPOINT, or from the last one in the work directory'
    amp = 'automatic mixed precision, if the recipe has it off'
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT', help=resume)
    parser.add_argument('--amp', action='store_true', help=amp)
    args = parser.parse_args(argv)

    splits = 'train', 'val'
    cfg = load_config(
        args.config, splits, args.work_dir, args.data_root, args.cfg_options, args.launcher
    )
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
    fit_to_machine(cfg)
    if args.resume or cfg.get('resume'):
        checkpoint = args.resume or cfg.get('load_from') or 'auto'
        if checkpoint == 'auto':
            checkpoint = latest_checkpoint(cfg.work_dir)
        if checkpoint is None:
            print(f'--resume: no checkpoint in {cfg.work_dir} yet, starting from the beginning')
        elif not Path(checkpoint).exists():
            parser.error(f'--resume: no checkpoint at {checkpoint}')
        else:  # which has all weights but those of a distillation's teacher
            cfg.load_from, cfg.resume = str(checkpoint), True
            cfg.model = without_pretrained(cfg.model, keep_teacher=True)
    with annotations_explained(cfg):
        build_runner(cfg).train()
