"""Which pixels can the reference network not see, and how much does a centered crop gain?

python -m experiments.unseen_border

Valid convolutions, and pools that drop an odd last row, leave pixels without any path to the
output. Finds them by the gradient and by replacing them, then trains the recipe of `reference`
on the whole image and on its centered 22x22 crop, with the same seeds.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.common.provenance import make_parser, provenance, store
from experiments.common.runs import compare, load_result, train
from mnist_flax.core import model
from mnist_flax.core.augment import to_float
from mnist_flax.data.dataset import load_dataset
from mnist_flax.engine.trained_model import load_trained

CROP = 22


def main() -> None:
    """Measures, stores and draws."""
    options = make_parser(__doc__, seeds=10).parse_args()
    flags = ("--preset", "reference", "--num-seeds", str(options.seeds))
    whole = train(options, *flags)
    crop = train(options, *flags, "--input-size", str(CROP))

    dataset = load_dataset(options.dataset)
    params = load_trained(whole).first_params()
    influence, change = measure_influence(params, jnp.asarray(dataset.test[0][:500]))
    unseen = influence == 0
    ink = dataset.train[0][..., 0].astype(np.float64)
    cropped = np.pad(np.zeros((CROP, CROP), bool), (28 - CROP) // 2, constant_values=True)
    comparison = compare(whole, crop)
    result = {
        "environment": load_result(whole)["environment"],
        "n": options.seeds,
        "unseen_rows": np.flatnonzero(unseen.all(axis=1)).tolist(),
        "unseen_columns": np.flatnonzero(unseen.all(axis=0)).tolist(),
        "largest_logit_change_when_replaced": change,
        "ink_lost": {
            "reference": float(ink[:, unseen].sum() / ink.sum()),
            "center_crop": float(ink[:, cropped].sum() / ink.sum()),
        },
        "training_images_with_unseen_ink": float((ink[:, unseen] > 0).any(axis=1).mean()),
        "crop_against_whole": comparison,
    }
    store("unseen_border", provenance() | result, options.output)
    draw(influence, ink.mean(axis=0), comparison, options.output)
    print(f"{100 * comparison['difference']:+.2f} points. {comparison['verdict']}")


def measure_influence(params: model.Params, images: jax.Array) -> tuple[np.ndarray, float]:
    """The largest gradient of a logit by each pixel, [28, 28]; the effect of replacing unseen ones.

    Uses the network without the crop by which `model.apply` saves work, and besides the images,
    uint8 [N, 28, 28, 1], noise: on digits alone some units are never active.
    """

    def logits(images: jax.Array) -> jax.Array:
        return model.CNN().apply({"params": params}, images)  # pyright: ignore

    digits = to_float(images)
    noise = jax.random.uniform(jax.random.key(0), digits.shape, jnp.float32)
    gradients = jax.jit(jax.vmap(jax.jacrev(lambda image: logits(image[None])[0])))
    largest = [jnp.abs(gradients(x)).max(axis=(0, 1, 4)) for x in (digits, noise)]
    influence = np.maximum(*map(np.asarray, largest))
    replaced = jnp.where(jnp.asarray(influence == 0)[None, :, :, None], noise, digits)
    forward = jax.jit(logits)
    return influence, float(jnp.abs(forward(replaced) - forward(digits)).max())


def draw(influence: np.ndarray, ink: np.ndarray, comparison: Any, folder: Path) -> None:
    """Draws what is seen, where the ink is, and the accuracy of the seeds in both variants."""
    figure = Figure(figsize=(11, 3.6), dpi=150, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.imshow(np.where(influence == 0, np.nan, influence), cmap="viridis", vmin=0)
    left.set_title("largest gradient of a logit\n(blank: zero)", fontsize=10)
    middle.imshow(ink, cmap="gray_r")
    middle.axhline(21.5, color="C1")
    middle.axvline(21.5, color="C1")
    title = "mean training image: the reference\nsees the part above and left of the lines"
    middle.set_title(title, fontsize=10)
    for axes in (left, middle):
        axes.set(xlabel="column", ylabel="row")
    pairs = 100 * np.array([comparison[f"accuracy_{side}"]["per_seed"] for side in "ab"])
    right.plot(["28x28 image", "22x22 crop"], pairs, "o-", color="C0", alpha=0.5)
    right.set(ylabel="test accuracy (%)")
    right.set_title("the reference recipe,\none line per seed", fontsize=10)
    right.margins(x=0.25)
    right.grid(axis="y", alpha=0.3)
    figure.savefig(folder / "unseen_border.png")


if __name__ == "__main__":
    main()
