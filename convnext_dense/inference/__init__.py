"""Models that are looked at or predict, none of which is trained."""

from .prediction import inferencer

__all__ = ['inferencer']
