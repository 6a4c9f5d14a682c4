"""The command `python -m mnist_flax.run`."""

from mnist_flax.run.command import Options, main

__all__ = ["Options", "main"]
