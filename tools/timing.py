"""What the tools measure with: convnext_dense/evaluation/timing.py under its former name."""

from convnext_dense.evaluation.timing import (
    Candidate,
    Process,
    cpu_name,
    interleaved,
    machine,
    peak_memory,
    product_rate,
    shares,
    synchronize,
)

__all__ = [
    'Candidate',
    'Process',
    'cpu_name',
    'interleaved',
    'machine',
    'peak_memory',
    'product_rate',
    'shares',
    'synchronize',
]
