"""Swap the backbone of many configs, judge each, and write what came of it.

    convnext-dense census --out census.md
    convnext-dense census my_project/configs --import my_project --out census.md
    convnext-dense census --export --out census-export.md

Without CONFIG every config that mmdet and mmseg install is swapped. Of configs whose swapped models
are equal but for weights, losses, numbers of classes, and settings of training and test, one is
built and trained for a step, beside the original. Three things are judged from outside: images
reach the network as the weights expect, maps are read at the strides that heads were told, and what
was trained before still is. Grounding DINO and GLIP get a BERT of two layers with random weights,
since the published one would have to be downloaded. All of mmdet and mmseg takes two hours on two
cores. What is done is kept in work_dirs/census, and the same command goes on after an interruption;
after a change of the code it does again what that may have changed.

With --export, of each family of mmdet and mmseg a model on ConvNeXt-atto with random weights is
exported, and it is said how dynamic its file is, or what refuses it. What is done is kept, and the
same command goes on after an interruption. It takes an hour on two cores.
"""

from pathlib import Path

from ..evaluation import export_census
from ..evaluation.census import census, configs_in, configs_of_libraries, report, report_of_each
from .shared import errors_as_messages, make_parser

KEPT = Path('work_dirs/census_export')


@errors_as_messages()
def main(argv=None):
    parser = make_parser(__doc__)
    configs = 'configs, or folders of them; default: those that mmdet and mmseg install'
    parser.add_argument('configs', metavar='CONFIG', nargs='*', help=configs)
    out = 'Markdown to write; default: docs/census.md, of exports docs/census-export.md'
    parser.add_argument('--out', type=Path, metavar='FILE', help=out)
    parser.add_argument('--arch', default='tiny')
    parser.add_argument('--only', default='', help='of mmdet and mmseg those with this in the path')
    imports = 'import this first, as the training script of the configs does'
    parser.add_argument('--import', dest='modules', metavar='MODULE', action='append', help=imports)
    exports = 'export a model of each family instead'
    parser.add_argument('--export', action='store_true', help=exports)
    args = parser.parse_args(argv)
    if args.export and (args.configs or args.modules):
        parser.error('--export is of the families of mmdet and mmseg: leave CONFIG out')
    args.out = args.out or Path(f'docs/census{"-export" * args.export}.md')
    args.out.parent.mkdir(parents=True, exist_ok=True)  # before an hour of work
    if args.export:
        page = export_census.report(export_census.export_census(args.only, KEPT))
    else:
        rows = configs_in(args.configs) if args.configs else configs_of_libraries(args.only)
        rows = census(rows, args.arch, args.modules or [])
        page = (report_of_each if args.configs else report)(rows, args.arch)
    args.out.write_text(page, encoding='utf-8')
    print(f'wrote {args.out}')
