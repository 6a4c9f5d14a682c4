"""A convolutional network on handwritten digits, in JAX and Flax, done carefully.

`load` gives a trained run's networks to ask; training one is `mnist_flax.run`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnist_flax.trained import Trained

__version__ = "0.1.0"


def load(
    workdir: str | os.PathLike[str], checkpoint: str = "latest", seed_index: int | None = None
) -> Trained:
    """The networks of a trained run: `load("runs/exp1").predict(images)`.

    Args:
      workdir: the run's folder.
      checkpoint: `latest`, `best` (by the validation accuracy) or a step.
      seed_index: which of several networks; all, answering together, where None.

    Raises:
      mnist_flax.config.UserError: there is no such thing, or it cannot be read.
    """
    from pathlib import Path

    from mnist_flax.trained import load_trained

    trained = load_trained(Path(workdir).expanduser().absolute(), checkpoint)
    return trained if seed_index is None else trained.only(seed_index)
