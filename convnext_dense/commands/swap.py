"""Put ConvNeXt under any mmdet 3 or mmseg 1 config, in a config that inherits it.

    convnext-dense swap my_config.py --arch tiny --checkpoint tiny_in1k -o convnext-t.py
    convnext-dense swap dino-4scale_r50_8xb2-12e_coco --arch base \\
        --checkpoint base_in22k --layer-decay -o dino_convnext-b.py

CONFIG is a path, mmdet::FOLDER/NAME.py, mmseg::FOLDER/NAME.py or the name of a config of theirs.
The old backbone is run without weights to see what it emits. Neck and heads get the new widths,
images the normalisation of the weights. The result is trained for a step on noise, with one block a
stage, before it is written.
"""

import re
import shlex
import sys
from pathlib import Path

from ..config_names import find_config
from ..errors import ConfigError
from ..printing import console
from ..roadmap import ROADMAP
from ..swap import Absent, Swap, allow_unused, dotted, plan, prove, write_config
from ..swap.config_files import import_modules, is_new_style
from ..swap.writing import exported
from ..weights import PRESETS
from .shared import errors_as_messages, make_parser

STEPS = dict(
    loss='one training step',
    forward='forward and backward of the raw outputs (the loss needs data of its own kind)',
)
# What torch and mmcv say where an operator runs on GPUs only.
NEEDS_GPU = re.compile(r'CUDA|cuda|not implemented (on|for) (the )?.?CPU|\bGPU\b')


@errors_as_messages()
def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument('config', metavar='CONFIG')
    backbone = parser.add_mutually_exclusive_group(required=True)
    backbone.add_argument('--arch', help='atto ... xxlarge, or v2_atto ... v2_huge')
    steps = f'a step from ResNet-50 to ConvNeXt-T instead, random weights: {", ".join(ROADMAP)}'
    backbone.add_argument('--roadmap', metavar='STEP', help=steps)
    parser.add_argument(
        '--checkpoint',
        help='preset (convnext-dense convert --list), path or URL of pretrained weights; '
        'none: random weights',
    )
    stride = 'of the deepest map: 32 is fastest, 8 finest; default: as the old backbone has it'
    parser.add_argument('--output-stride', type=int, choices=(8, 16, 32), help=stride)
    decay = 'train with AdamW and layer-wise learning-rate decay'
    parser.add_argument('--layer-decay', action='store_true', help=decay)
    no_proof = 'do not train a step, for instance where the model needs a GPU'
    parser.add_argument('--no-proof', action='store_true', help=no_proof)
    imports = 'import this first, as your training script does: it registers modules of yours'
    parser.add_argument('--import', dest='modules', metavar='MODULE', action='append', help=imports)
    parser.add_argument('-o', '--out', required=True, help='config to write')
    parser.add_argument('--force', action='store_true', help='overwrite OUT')
    arguments = sys.argv[1:] if argv is None else list(map(str, argv))
    args = parser.parse_args(arguments)
    out, terminal = Path(args.out), console()
    if out.suffix != '.py':
        parser.error(f'{out}: a config is a .py file')
    source, name = find_config(args.config)
    if out.resolve() == source.resolve():
        parser.error(f'{out} is CONFIG itself, which is inherited: name another file')
    if out.exists() and not args.force:
        parser.error(f'{out} is there already: name another file, or overwrite it with --force')
    base = exported(out) if is_new_style(source) else None
    if base and base.exists() and not args.force:
        parser.error(f'{base}, to which CONFIG is exported, is there already: see --force')
    import_modules(args.modules or [], source)
    with terminal.status('running the old backbone without weights'):
        settings = args.checkpoint, args.output_stride, args.layer_decay, args.roadmap
        swap = plan(source, args.arch, *settings)
    if not swap.changes:
        print(f'{args.config} has this backbone: nothing to change, {out} is not written')
        return
    step = None
    if not args.no_proof:
        try:
            with terminal.status('training a step on noise'):
                step, _, unused = prove(swap)
        except ConfigError as error:
            show(swap)
            needs = ', which needs a GPU' if NEEDS_GPU.search(str(error)) else ''
            raise ConfigError(
                f'{error}\nNothing is written. --no-proof writes the config without this step'
                f'{needs}'
            ) from error
        swap = allow_unused(swap, unused)
    show(swap)
    if step:
        print(f'Proof: {STEPS[step]} on noise, gradients reach the stem.')
    command = shlex.join(['convnext-dense', 'swap', *arguments])
    write_config(swap, source, name, out, command)
    print(
        f'wrote {out}'
        + (f', and {base}: CONFIG as a text config, which it inherits' if base else '')
    )
    if args.modules:
        print(f'What trains {out} has to import {", ".join(args.modules)} as well.')
    if args.checkpoint in PRESETS:
        print(f'The weights of {args.checkpoint} are under {PRESETS[args.checkpoint].licence}.')


def show(swap: Swap) -> None:
    """Print what was, what is and why, a block for each change."""
    printer = console()
    for path, old, new, why in swap.changes:
        printer.print(dotted(path), style='bold', markup=False)
        for sign, style, value in (('-', 'red', old), ('+', 'green', new)):
            lines = [] if isinstance(value, Absent) else [repr(value)]
            if isinstance(value, dict):
                lines = [f'{key}={inner!r}' for key, inner in value.items()]
            for line in lines:
                printer.print(f'  {sign} {line}', style=style, markup=False, soft_wrap=True)
        printer.print(f'  {why}', style='dim', markup=False)
    for warning in swap.warnings:
        printer.print(f'Note: {warning}', style='yellow', markup=False)
