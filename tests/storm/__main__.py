"""Trainings that are killed and resumed, and broken inputs; writes docs/reliability.md.

    make storm
    PYTHONPATH=tests .venv/bin/python -m storm --seed 1

Ends with status 1 where anything was lost or went unnoticed.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from convnext_dense.evaluation.census import versions
from convnext_dense.printing import paragraph

from . import inputs, kills

PAGE = kills.ROOT / 'docs/reliability.md'
INPUTS = 500


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seed', type=int, default=0, help='of all that is drawn')
    args = parser.parse_args()
    folder, started = Path(tempfile.mkdtemp(prefix='storm-')), time.monotonic()
    print(f'trainings and their logs: {folder}')
    outcomes = kills.storm(folder, args.seed)
    halfway = time.monotonic()
    results = inputs.storm(INPUTS, args.seed)
    times = [halfway - started, time.monotonic() - halfway]
    text = page(outcomes, results, args.seed, times)
    PAGE.write_text(text, encoding='utf-8')
    print(f'{text}\nwrote {PAGE}')
    bad = [result for result in results if result.outcome not in inputs.GOOD]
    for result in bad:
        print(f'\n{result.kind}, input {result.number}: {result.outcome}\n{result.printed}')
    sys.exit(bool(bad) or any(outcome.wrong for outcome in outcomes))


def page(
    outcomes: Sequence[kills.Outcome],
    results: Sequence[inputs.Result],
    seed: int,
    seconds: Sequence[float],
) -> str:
    """The page in Markdown; ``seconds`` of each half."""
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    counts = Counter(result.outcome for result in results)
    bad = len(results) - sum(counts[outcome] for outcome in inputs.GOOD)
    resumed = 'ended bit-equal to' if not wrong else 'did not all end as'
    parts = [
        '# What it withstands',
        paragraph(
            f'Made by `make storm`, seed {seed}, on {os.cpu_count()} cores: '
            f'{seconds[0] / 60:.0f} minutes of trainings, {seconds[1] / 60:.0f} of broken inputs. '
            f'{versions()}'
        ),
        '## Trainings that are killed',
        paragraph(
            f'A training in one process and one in two (torchrun, gloo) of {kills.ITERATIONS} '
            f'iterations each, UperNet on generated scenes with random crops, flips, colours, '
            f'dropout and drop path. A checkpoint is written every {kills.INTERVAL} iterations, '
            'and one is kept. Each run is killed at a moment that is drawn from the seed, and the '
            'next goes on with `--resume`. '
            f'{len(outcomes)} kills, {len(wrong)} with something wrong; the trainings {resumed} '
            'the undisturbed ones: weights, optimiser, schedules and random states.'
        ),
        kills.table(outcomes),
        KILLS_HOLD.strip(),
        '## Broken inputs',
        paragraph(
            f'{len(results)} data sets and configs of {len(inputs.KINDS)} kinds, each broken in '
            'a way that is drawn from the seed, given to `convnext-dense check`. '
            f'{counts["refused"]} were refused with the name of the file or key, '
            f'{counts["counted"]} passed with a line that names or counts them, {bad} neither.'
        ),
        inputs.table(results),
        INPUTS_HOLD.strip(),
    ]
    return '\n\n'.join(parts) + '\n'


KILLS_HOLD = """
**Holds.** Where a process ends, however it ends, the checkpoint before is whole, and `--resume`
goes on from it. At most the iterations since that checkpoint are computed again. A disk that is
full ends the training with an error, and loses none.

**Bit-equal only with `num_workers=0`**: dataloader workers start from their seed again after a
resume, so random augmentation draws other numbers there. The order of the images, dropout and drop
path are the same with workers, too.

**Does not hold.** Checkpoints in storage other than local disks are written by MMEngine as before.
On GPUs, kernels that are not deterministic make any two trainings differ. A machine that loses
power was not tried: files are synced to the disk before they get their names, folders are not.
"""
INPUTS_HOLD = """
**Holds.** Each input is refused with the name of what is wrong, or passes and is named or counted.

**Does not hold.** A label that is wrong but possible is not noticed: a box around another thing, a
dog that is called a cat. Data sets other than mmdet's of COCO and mmseg's of label maps are left
alone.
"""

if __name__ == '__main__':
    main()
