#!/usr/bin/env python3
"""The command is in convnext_dense/commands/convert_weights.py; --help describes it."""

from convnext_dense.commands.convert_weights import main

if __name__ == '__main__':
    main()
