"""Put ConvNeXt under any mmdet 3 or mmseg 1 config: writes a config that inherits it and states what changes.

    python tools/swap_backbone.py my_config.py --arch tiny --checkpoint tiny_in1k -o my_config_convnext-t.py
    python tools/swap_backbone.py dino-4scale_r50_8xb2-12e_coco --arch base --checkpoint base_in22k --layer-decay -o dino.py

CONFIG is a path, mmdet::FOLDER/NAME.py, mmseg::FOLDER/NAME.py or the name of a config of theirs. The old backbone is run
without weights to see what it emits, neck and heads get the new widths, images the normalisation of the weights. The
result is then trained for a step on noise, with one block a stage, before it is written.
"""

import shlex
import sys
from pathlib import Path

from rich.console import Console

from ..errors import ConfigError, WeightsError
from ..swap import Absent, allow_unused, dotted, find_config, plan, prove, write_config
from ..weights import PRESETS

STEPS = dict(
    loss='one training step',
    forward='forward and backward of the raw outputs (the loss needs data of its own kind)',
)
from .shared import make_parser


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument('--arch', required=True, help='atto ... xxlarge, or v2_atto ... v2_huge')
    parser.add_argument(
        '--checkpoint',
        help='preset (tools/convert_weights.py --list), path or URL of pretrained weights; '
        'none: random weights',
    )
    parser.add_argument(
        '--output-stride',
        type=int,
        choices=(8, 16, 32),
        help='of the deepest map; default: as the old backbone has it. 32 is the fastest, 8 the finest',
    )
    parser.add_argument(
        '--layer-decay',
        action='store_true',
        help='train with AdamW and layer-wise learning-rate decay',
    )
    parser.add_argument(
        '--no-proof', action='store_true', help='do not train a step: for models that need a GPU'
    )
    parser.add_argument('-o', '--out', required=True, help='config to write')
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.suffix != '.py':
        parser.error(f'{out}: a config is a .py file')
    console = Console()
    try:
        source, name = find_config(args.config)
        if out.resolve() == source.resolve():
            parser.error(
                f'{out} is CONFIG itself, from which the new config inherits: name another file'
            )
        with console.status('running the old backbone without weights'):
            swap = plan(source, args.arch, args.checkpoint, args.output_stride, args.layer_decay)
        if not swap.changes:
            return print(
                f'{args.config} has this backbone: nothing to change, {out} is not written'
            )
        if not args.no_proof:
            try:
                with console.status('training a step on noise'):
                    proof = prove(swap)
            except ConfigError as error:
                show(console, swap)
                sys.exit(
                    f'ConfigError: {error}\nNothing is written. --no-proof writes the config all the same, for instance for a '
                    'model that needs a GPU'
                )
            swap = allow_unused(swap, proof.without_gradient)
        show(console, swap)
        if not args.no_proof:
            print('Proof: ' + STEPS[proof.step] + ' on noise, gradients reach the stem.')
        out.parent.mkdir(parents=True, exist_ok=True)
        base = write_config(
            swap, source, name, out, shlex.join(['tools/swap_backbone.py', *sys.argv[1:]])
        )
    except (ConfigError, WeightsError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
    except OSError as error:
        sys.exit(f'{out} cannot be written: {error}')
    if Path(base).is_absolute():
        print(
            f'Note: it inherits {base}, a path of this machine: MMEngine here cannot follow {name}'
        )
    print(f'wrote {out}')
    if args.checkpoint in PRESETS:
        print(f'The weights of {args.checkpoint} are under {PRESETS[args.checkpoint].licence}.')


def show(console, swap):
    """What was, what is, and why, in blocks that any terminal has room for."""
    for path, old, new, why in swap.changes:
        console.print(dotted(path), style='bold', highlight=False, markup=False)
        for sign, style, value in (('-', 'red', old), ('+', 'green', new)):
            lines = (
                [f'{key}={inner!r}' for key, inner in value.items()]
                if isinstance(value, dict)
                else [repr(value)]
            )
            for line in [] if isinstance(value, Absent) else lines:
                console.print(
                    f'  {sign} {line}', style=style, highlight=False, markup=False, soft_wrap=True
                )
        console.print(f'  {why}', style='dim', highlight=False, markup=False)
    for warning in swap.warnings:
        console.print(f'Note: {warning}', style='yellow', highlight=False, markup=False)
