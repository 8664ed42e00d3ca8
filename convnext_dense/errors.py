"""The errors that this package raises on purpose.

Commands print them as one message, without a traceback.
"""


class ConfigError(ValueError):
    """An argument, a recipe or an image that would not do what it says."""


class WeightsError(RuntimeError):
    """Weights that cannot be read, or that do not explain every tensor of the network."""
