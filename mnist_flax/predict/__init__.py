"""The command `python -m mnist_flax.predict`."""

from mnist_flax.predict.command import Options, main

__all__ = ["Options", "main"]
