"""A convolutional network on handwritten digits, in JAX and Flax.

`load` returns the networks of a trained run; `mnist_flax.run` trains one.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnist_flax.engine.trained_model import TrainedModel

__version__ = "0.1.0"


def load(
    workdir: str | os.PathLike[str], checkpoint: str = "latest", seed_index: int | None = None
) -> "TrainedModel":
    """The networks of a trained run: `load("runs/exp1").predict(images)`.

    Args:
      workdir: the folder of the run.
      checkpoint: `latest`, `best` (by the validation accuracy) or a step.
      seed_index: which of several networks; all of them, by their mean probability, if None.

    Raises:
      mnist_flax.core.config.UserError: there is no such run, or it cannot be read.
    """
    from mnist_flax.engine.trained_model import load_trained

    return load_trained(workdir, checkpoint, seed_index)
