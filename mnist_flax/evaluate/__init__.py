"""The command `python -m mnist_flax.evaluate`."""

from mnist_flax.evaluate.command import Options, main

__all__ = ["Options", "main"]
