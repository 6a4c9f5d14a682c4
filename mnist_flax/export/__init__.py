"""The command `python -m mnist_flax.export`."""

from mnist_flax.export.command import Options, main

__all__ = ["Options", "main"]
