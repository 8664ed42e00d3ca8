"""What train.py and test.py share: arguments, the config, and messages for what is missing before a run starts."""
import os
import sys
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.device import get_device


def add_common_arguments(parser):
    parser.add_argument('config', help='path of a config')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override the config, for instance train_dataloader.batch_size=4')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')


def load_config(args, splits) -> Config:
    """The config with the command line's overrides; exits if the data of one of its ``splits`` are missing."""
    if not Path(args.config).is_file():
        sys.exit(f'no config at {args.config}')
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    splits = [f'{split}_dataloader' for split in splits]
    missing = [path for split in splits for path in dataset_paths(cfg.get(split) or {}) if not path.exists()]
    if missing:
        sys.exit('The data of this config are not there:\n' + '\n'.join(f'  {path}' for path in missing) +
                 '\nPut or link them there (README, "Train on COCO or ADE20K"), or name their folder:\n'
                 '  --cfg-options ' + ' '.join(f'{split}.dataset.data_root=FOLDER' for split in splits))
    return cfg


def dataset_paths(dataloader):
    """Local annotation file and folders that a plain dataset config reads."""
    dataset = dataloader.get('dataset', {})
    root = dataset.get('data_root') or ''
    names = [dataset.get('ann_file'), *dict(dataset.get('data_prefix') or {}).values()]
    return [Path(root, name) for name in names if name and '://' not in root + name]


def fit_to_machine(cfg):
    """AMP needs an accelerator: without one the recipe is trained in fp32, and that is said."""
    if cfg.optim_wrapper.type == 'AmpOptimWrapper' and get_device() in ('cpu', 'mps'):
        if int(os.environ.get('RANK', 0)) == 0:
            print('No GPU here: automatic mixed precision is off, training in fp32.')
        cfg.optim_wrapper.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            cfg.optim_wrapper.pop(key, None)
