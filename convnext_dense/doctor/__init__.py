"""What is wrong with an installation, its data and its machine, and the command that mends it.

``probing.facts()`` looks at the machine and judges nothing; ``checks.diagnose()`` judges the facts
and looks at nothing. This room imports neither torch nor MMEngine, which may be what is broken.
"""
