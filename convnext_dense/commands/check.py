"""Check the data of a config before it is trained: every image, label map and annotation is read.

    convnext-dense check CONFIG
    convnext-dense check CONFIG --data-root FOLDER --out report

Prints what would be trained on wrongly, end the training, or be left out, and writes a page with
pictures of it (index.html) and all of it as a table (problems.csv). The status is 1 if the config
would be refused. Training and testing do a quick form of this by themselves.
"""

import os
import sys
from pathlib import Path

from ..data.checking import check_all
from ..data.label_folder import UNKNOWN, unknown
from ..data.problems import REFUSED, describe
from ..evaluation.data_page import head_report, summary, write
from ..printing import console
from ..training.running import load_config
from .shared import add_data_arguments, errors_as_messages, make_parser


@errors_as_messages()
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add_data_arguments(parser)
    parser.add_argument('--out', type=Path, help='default: work_dirs/NAME_OF_CONFIG/check')
    cores = os.cpu_count() or 1
    parser.add_argument(
        '--jobs', type=int, default=cores, help='processes that read (default: all cores)'
    )
    args = parser.parse_args(argv)

    cfg = load_config(args.config, (), None, args.data_root, args.cfg_options)
    ignored = {UNKNOWN} | unknown(cfg.get('model')) | unknown(cfg.get('test_evaluator'))
    reports = check_all(cfg, args.jobs, ignored)
    reports += head_report(cfg)
    problems = [problem for report in reports for problem in report.problems]
    page = write(reports, args.out or Path(cfg.work_dir, 'check'), args.config)
    console().print(summary(reports))
    if problems:
        print(describe(problems))
    print(f'\n{page} shows it')
    if any(problem.kind in REFUSED for problem in problems):
        sys.exit(1)
