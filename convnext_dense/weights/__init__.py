"""Weights: a file is read without executing it (reading), its layout recognised and its names
translated by a table (layouts), and every tensor accounted for (loading).

The catalogue of published files is in presets, fetching them in downloading, the way back to other
libraries' names in converting."""

from .converting import TARGETS, convert, save
from .loading import LoadReport, load_weights
from .presets import PRESETS

__all__ = ['PRESETS', 'TARGETS', 'LoadReport', 'convert', 'load_weights', 'save']
