"""What is wrong with this installation, its data and its machine, and the command that mends it.

    python tools/doctor.py
    python tools/doctor.py --offline

Says nothing and exits with 0 where all is sound; else with 1. Looked at are the OpenMMLab packages
and torch, the compiled ops of mmcv, the GPU, data/coco and data/ade in the current folder, the room
on the disk, and the hosts of the pretrained weights. Not checked: configs, the contents of images
and labels, files of weights, other GPUs than the first one, drivers of several machines.
"""

import argparse
import sys

from ..doctor.checks import diagnose
from ..doctor.probing import facts


def main(argv=None):
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
