"""A convolutional network on handwritten digits, in JAX and Flax.

`load` returns trained networks; `mnist_flax.run` trains them.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnist_flax.engine.trained_model import TrainedModel

__version__ = "0.1.0"


def load(
    workdir: str | os.PathLike[str] | None = None,
    checkpoint: str | int = "latest",
    seed_index: int | None = None,
) -> "TrainedModel":
    """Trained networks: `load().predict(images)`, or `load("runs/exp1")` for a run of your own.

    Without a workdir it is the pretrained network that comes with the package
    (`pretrained/README.md` is its model card). `checkpoint` is `latest`, `best` (by the validation
    accuracy) or a step. `seed_index` chooses one of several networks; if it is None, their mean
    probability counts. Raises a `mnist_flax.core.config.UserError` if there is no such run, or it
    cannot be read.
    """
    from mnist_flax.engine.trained_model import load_trained

    return load_trained(workdir, checkpoint, seed_index)
