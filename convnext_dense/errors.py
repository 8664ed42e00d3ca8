"""The errors that this package raises on purpose.

Commands print them as one message, without a traceback.
"""


class ConfigError(ValueError):
    """An argument, a recipe or an image that would not do what it says."""


class DataError(ValueError):
    """Images or annotations that would be trained on wrongly, or that cannot be read.

    A dataloader's worker hands its errors on as the text of their tracebacks. Of that text only the
    message is kept.
    """

    def __init__(self, message: str):
        super().__init__(str(message).rpartition('DataError: ')[2].rstrip())


class WeightsError(RuntimeError):
    """Weights that cannot be read, or that do not explain every tensor of the network."""
