"""Swap the backbone of every config that mmdet and mmseg install, train each distinct model for a step, write the table.

    python tools/census.py --out docs/census.md        (make census; half an hour or so on two cores)

Every config is swapped. Of configs whose swapped models are equal but for weights, losses, numbers of classes, and settings
of training and test, one is built and run. Grounding DINO and GLIP get a BERT of two layers with random weights, since
the published one would have to be downloaded.
"""

import tempfile
from pathlib import Path

from ..evaluation.census import in_processes, make_bert, prepare, report, swap, train
from ..swap.finding import LIBRARIES, zoo
from .shared import make_parser


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument('--out', default='docs/census.md', help='Markdown to write')
    parser.add_argument('--arch', default='tiny')
    parser.add_argument('--only', default='', help='configs whose path contains this')
    args = parser.parse_args(argv)
    names = [
        (library, str(path.relative_to(zoo(library))))
        for library in LIBRARIES
        for path in sorted(zoo(library).rglob('*.py'))
        if '_base_' not in path.parts and args.only in str(path)
    ]
    with tempfile.TemporaryDirectory() as folder:
        prepare(make_bert(folder), args.arch)
        rows = [
            dict(library=library, config=f'{library}/{name}', family=name.split('/')[0], **result)
            for (library, name), result in zip(names, in_processes(swap, names, 'swapping'))
        ]
        rows = [row for row in rows if row['state'] != 'no model']
        first = {}
        for row in rows:
            if row.get('graph'):
                row['of'] = first.setdefault(row['graph'], row['config'])
        chosen = [row['config'].split('/', 1) for row in rows if row.get('of') == row['config']]
        proofs = dict(zip(first.values(), in_processes(train, chosen, 'training a step')))
    for row in rows:
        row.update(proofs.get(row.get('of'), {}))
        if row['state'] == 'swapped':
            row['state'] = 'adapter' if row['adapters'] else 'works'
    Path(args.out).write_text(report(rows, args.arch), encoding='utf-8')

    print(f'wrote {args.out}')
