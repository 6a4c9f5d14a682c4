"""What can the reference network not see, and what is it worth to let it see the centre?

python experiments/blind_border.py

Valid convolutions and pools that drop an odd last row leave pixels without any way to the
output. Finds them by the gradient and by replacing them, then trains the reference's recipe
on the whole image and on its centred 22x22 window, with the same seeds.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import training
from matplotlib.figure import Figure
from provenance import provenance, store

from mnist_flax import model
from mnist_flax.augment import to_unit
from mnist_flax.data import load_dataset
from mnist_flax.trained import load_trained

SIZE = 28


def main() -> None:
    """Measures, stores and draws."""
    options = training.arguments(__doc__, seeds=10).parse_args()
    trainer = training.Runs(options)
    flags = ("--preset", "reference", "--num-seeds", str(options.seeds))
    whole = trainer.train(*flags)
    centre = trainer.train(*flags, "--input-size", "22")

    dataset = load_dataset(options.dataset)
    params = jax.tree.map(lambda leaf: leaf[0], load_trained(whole).params)
    seen, replaced = visible(params, jnp.asarray(dataset.test[0][:500]))
    blind = seen == 0
    ink = dataset.train[0][..., 0].astype(np.float64)
    margin = (SIZE - 22) // 2
    outside = np.pad(np.zeros((22, 22), bool), margin, constant_values=True)
    worth = training.difference(whole, centre)
    result = {
        "environment": json.loads((whole / "summary.json").read_text())["environment"],
        "n": options.seeds,
        "blind_rows": np.flatnonzero(blind.all(axis=1)).tolist(),
        "blind_columns": np.flatnonzero(blind.all(axis=0)).tolist(),
        "largest_change_of_a_logit_when_they_are_replaced": replaced,
        "ink_lost": {
            "reference": float(ink[:, blind].sum() / ink.sum()),
            "centred_window": float(ink[:, outside].sum() / ink.sum()),
        },
        "training_images_with_ink_there": float((ink[:, blind] > 0).any(axis=1).mean()),
        "window_against_whole": worth,
    }
    store("blind_border", provenance() | result, options.output)
    draw(seen, ink.mean(axis=0), worth, options.output)
    print(f"{100 * worth['difference']:+.2f} points. {worth['verdict']}")


def visible(params: model.Params, images: jax.Array) -> tuple[np.ndarray, float]:
    """How much each pixel can change a logit, [28, 28]; and what replacing the blind ones does.

    Asks the network itself, without the cropping by which `model.apply` spares the work; and
    about noise too, for on the digits alone some units never fire.

    Args:
      params: of one network.
      images: uint8 [N, 28, 28, 1].
    """

    def logits(images: jax.Array) -> jax.Array:
        return model.CNN().apply({"params": params}, images)  # pyright: ignore

    real = to_unit(images)
    noise = jax.random.uniform(jax.random.key(0), real.shape, jnp.float32)
    gradients = jax.jit(jax.vmap(jax.jacrev(lambda image: logits(image[None])[0])))
    real_sees, noise_sees = (jnp.abs(gradients(x)).max(axis=(0, 1, 4)) for x in (real, noise))
    seen = np.maximum(np.asarray(real_sees), np.asarray(noise_sees))
    changed = jnp.where(jnp.asarray(seen == 0)[None, :, :, None], noise, real)
    forward = jax.jit(logits)
    return seen, float(jnp.abs(forward(changed) - forward(real)).max())


def draw(seen: np.ndarray, ink: np.ndarray, worth: dict, folder: Path) -> None:
    """What is seen, where the ink is, and the seeds of both."""
    figure = Figure(figsize=(11, 3.6), dpi=150, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.imshow(np.where(seen == 0, np.nan, seen), cmap="viridis", vmin=0)
    left.set_title("how far a pixel can move a logit\n(blank: not at all)", fontsize=10)
    middle.imshow(ink, cmap="gray_r")
    middle.axhline(21.5, color="C1")
    middle.axvline(21.5, color="C1")
    middle.set_title(
        "mean training image: the reference\nsees what is above and left of the lines", fontsize=10
    )
    for axes in (left, middle):
        axes.set(xlabel="column", ylabel="row")
    pairs = 100 * np.array([worth[f"accuracy_{side}"]["per_seed"] for side in "ab"])
    right.plot(["whole image", "centred 22x22"], pairs, "o-", color="C0", alpha=0.5)
    right.set(ylabel="test accuracy (%)")
    right.set_title("the reference's recipe,\neach seed twice", fontsize=10)
    right.margins(x=0.25)
    right.grid(axis="y", alpha=0.3)
    figure.savefig(folder / "blind_border.png")


if __name__ == "__main__":
    main()
