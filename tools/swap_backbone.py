#!/usr/bin/env python3
"""The command is in convnext_dense/commands/swap_backbone.py; --help describes it."""

from convnext_dense.commands.swap_backbone import main

if __name__ == '__main__':
    main()
