"""make storm: trainings that are killed and resumed, broken inputs; writes docs/reliability.md.

    python -m tests.storm --seed 1

About ten minutes on two idle cores. Ends with status 1 where anything was lost or went unnoticed.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from convnext_dense.evaluation.census import versions

from . import inputs, kills

PAGE = kills.ROOT / 'docs/reliability.md'
INPUTS = 500


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seed', type=int, default=0, help='of all that is drawn')
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix='storm-'))
    print(f'trainings and their logs: {folder}')
    outcomes = kills.storm(folder, args.seed)
    halfway = time.monotonic()
    results = inputs.storm(INPUTS, args.seed)
    minutes = [(halfway - started) / 60, (time.monotonic() - halfway) / 60]
    text = page(outcomes, results, args.seed, minutes)
    PAGE.write_text(text, encoding='utf-8')
    print(f'{text}\nwrote {PAGE}')
    for result in results:
        if result.outcome not in inputs.GOOD:
            print(f'\n{result.kind}, input {result.number}: {result.outcome}\n{result.printed}')
    sys.exit(any(outcome.wrong for outcome in outcomes) or any(
        result.outcome not in inputs.GOOD for result in results
    ))
