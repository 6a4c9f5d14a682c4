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

    `checkpoint` is `latest`, `best` (by the validation accuracy) or a step; `seed_index` chooses
    one of several networks, whose mean probability counts if it is None. Raises a
    `mnist_flax.core.config.UserError` if there is no such run, or it cannot be read.
    """
    from mnist_flax.engine.trained_model import load_trained

    return load_trained(workdir, checkpoint, seed_index)
