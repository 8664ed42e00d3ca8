"""Show what layer-wise decay makes of a config: a table of the learning rates, and a picture.

    convnext-dense groups upernet_convnext-atto_shapes

Needs no weights and no data. The picture is NAME_param_groups.png in the current folder, or --out.
"""

from pathlib import Path

from ..config_names import read_config
from ..data.pictures import save_figure
from ..training.learning_rates import draw_learning_rates, parameter_groups
from .shared import errors_as_messages, make_parser


@errors_as_messages()
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument('config', help='path of a config, or name of a recipe')
    parser.add_argument('--out', help='PNG to write')
    args = parser.parse_args(argv)

    name = Path(args.config).stem
    out = args.out or f'{name}_param_groups.png'
    model, groups = parameter_groups(read_config(args.config))
    save_figure(draw_learning_rates(model, groups, name), out, 100)
    print(f'drew {out}')
