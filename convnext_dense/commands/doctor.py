"""What is wrong with this installation, its data and its machine, and the command that mends it.

    convnext-dense doctor
    # on a machine that has no network on purpose
    convnext-dense doctor --offline

Prints nothing and exits with 0 where all is sound; else it exits with 1. It looks at torch and the
OpenMMLab packages, the compiled ops of mmcv, the GPU, data/coco and data/ade in the current folder,
the room on the disk, and the hosts of the pretrained weights. It does not look into configs, images
or files of weights, at other GPUs than the first one, nor at what connects several machines.
"""

import argparse
import sys

from ..doctor.checks import diagnose
from ..doctor.probing import facts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--offline', action='store_true', help='ask no host for its files')
    findings = diagnose(facts(parser.parse_args(argv).offline))
    for finding in findings:
        print(f'{finding.wrong}\n  mend: {finding.mend}')
    if findings:
        print('Run this again afterwards: a fault may hide another.')
        sys.exit(1)
