"""Train a detector or segmentor from a config.

    python tools/train.py configs/coco/mask-rcnn_convnext-t-in1k_fpn_amp-ms-crop-3x_coco.py --work-dir work_dirs/t
    torchrun --nproc_per_node 8 tools/train.py CONFIG --launcher pytorch

Reads data, model, schedule, hooks and default_scope from the config; it knows nothing of the task.
"""

from pathlib import Path

from mmengine.runner import find_latest_checkpoint

from ..training.running import add_common_arguments, execute, fit_to_machine, load_config
from .shared import make_parser


def main(argv=None):
    parser = make_parser(__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from CHECKPOINT, or from the last one in the work directory',
    )
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision, if the recipe has it off'
    )
    args = parser.parse_args(argv)

    cfg = load_config(args, ('train', 'val'))
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    fit_to_machine(cfg)
    if args.resume or cfg.get('resume'):
        args.resume = args.resume or cfg.get('load_from') or 'auto'
        checkpoint = find_latest_checkpoint(cfg.work_dir) if args.resume == 'auto' else args.resume
        if checkpoint is None:
            print(f'--resume: no checkpoint in {cfg.work_dir} yet, starting from the beginning')
        elif not Path(checkpoint).is_file():
            parser.error(f'--resume: no checkpoint at {checkpoint}')
        else:
            cfg.load_from, cfg.resume = checkpoint, True
            cfg.model = without_pretrained(cfg.model)
    execute(cfg, 'train')


def without_pretrained(model):
    """The checkpoint replaces every weight, so nothing needs to be fetched."""
    if isinstance(model, dict):
        init = model.get('init_cfg')
        if isinstance(init, dict) and init.get('type') == 'Pretrained':
            model['init_cfg'] = None
        for value in model.values():
            without_pretrained(value)
    elif isinstance(model, (list, tuple)):
        for value in model:
            without_pretrained(value)
    return model
