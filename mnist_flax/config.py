"""What an experiment is: one frozen dataclass, its presets and its limits.

Imports nothing heavy, so that `--help` and every refusal are instant.
"""

import dataclasses
import math
from typing import Any, Literal, get_args, get_origin

# Training and test examples, known in advance so that a batch that cannot be
# filled is refused before anything is downloaded.
DATASET_SIZES = {
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "kmnist": (60_000, 10_000),
    "digits": (1_437, 360),
}


# Of every data set, as uint8.
IMAGE_SHAPE = (28, 28, 1)


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line for people."""


def flag(name: str) -> str:
    """The command-line spelling of a field: `batch_size` is `--batch-size`."""
    return "--" + name.replace("_", "-")


def _check_type(field: dataclasses.Field[Any], value: Any) -> None:
    kind: Any = field.type
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if (type(value), value) not in [(type(choice), choice) for choice in choices]:
            listed = ", ".join(map(str, choices))
            raise UserError(f"{flag(field.name)} must be one of {listed}, but is {value!r}")
        return
    allowed = (int, float) if kind is float else kind
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, allowed):
        raise UserError(f"{flag(field.name)} must be {kind.__name__}, but is {value!r}")


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is asked to do, but for where its files lie."""

    dataset: Literal["auto", "mnist", "fashion_mnist", "kmnist", "digits"] = "auto"
    """Which images. `auto` is MNIST or, only where that can neither be found nor
    downloaded, the small digits that come with scikit-learn."""

    validation_fraction: float = 0.0
    """Share of the training images, taken from their end, to hold out for validation."""

    input_size: Literal[22, 28] = 22
    """Pixels a side that the network is given: the whole image (28) or its centre (22).
    Either way it has 81,066 parameters with 64 channels."""

    channels: int = 64
    """Channels of each convolution. More make another, larger network."""

    shift: int = 1
    """Training images move by up to this many pixels in each direction, at random."""

    rotation: float = 0.0
    """Training images turn by up to this many degrees either way."""

    zoom: float = 0.0
    """Height and width of training images grow or shrink by up to this share, each for itself."""

    shear: float = 0.0
    """Rows of training images slant by up to this many pixels for each row."""

    elastic: float = 0.0
    """Training images bend: each place moves by so many pixels (standard deviation)."""

    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Arithmetic of the layers. Parameters and sums stay float32. The other two are faster
    on GPU and TPU, round more, and differ only there (`tf32`) or are slower on CPU."""

    deterministic: bool = False
    """Have a GPU give the same bits each time, as a CPU does anyhow. Slower; refused where it
    cannot be promised."""

    epochs: int = 5
    """Passes over the training images."""

    batch_size: int = 64
    """Images per optimizer step."""

    optimizer: Literal["adam", "muon"] = "adam"
    """`muon` makes the update of each kernel orthogonal and leaves the biases to Adam."""

    learning_rate: float = 6e-3
    """The optimizer's learning rate; with the triangular schedule, its peak."""

    schedule: Literal["triangular", "constant"] = "triangular"
    """`triangular` rises for `warmup_fraction` of all steps, then falls linearly to 0."""

    warmup_fraction: float = 0.2
    """Share of all steps in which the triangular schedule rises."""

    adam_b1: float = 0.9
    """Decay of Adam's mean of gradients."""

    adam_b2: float = 0.999
    """Decay of Adam's mean of squared gradients."""

    adam_epsilon: float = 1e-7
    """Adam's epsilon, added outside the square root."""

    weight_decay: float = 0.05
    """Each step takes this share, times the learning rate, off the parameters (with `muon`,
    off the kernels)."""

    seed: int = 0
    """Decides the initial parameters, the order of the images and how they are moved."""

    num_seeds: int = 1
    """How many networks to train in one program, with the seeds `seed`, `seed` + 1, ...
    Every figure then is a mean with its spread."""

    eval_every: int = 1
    """Evaluate after every so many epochs, and always after the last."""

    checkpoint_every: int = 1
    """Save a checkpoint after every so many epochs, and always after the last."""

    keep_checkpoints: int = 3
    """How many of the latest checkpoints to keep, besides the best by validation."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field, getattr(self, field.name))
        bounds = {
            "validation_fraction": (0 <= self.validation_fraction < 1, "from 0 to below 1"),
            "channels": (1 <= self.channels <= 1024, "from 1 to 1,024"),
            "shift": (0 <= self.shift <= 6, "from 0 to 6"),
            "rotation": (0 <= self.rotation <= 180, "from 0 to 180"),
            "zoom": (0 <= self.zoom <= 1, "from 0 to 1"),
            "shear": (0 <= self.shear <= 1, "from 0 to 1"),
            "elastic": (0 <= self.elastic <= 10, "from 0 to 10"),
            "epochs": (1 <= self.epochs <= 100_000, "from 1 to 100,000"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate <= 1e38, "above 0 and at most 1e38"),
            "warmup_fraction": (0 <= self.warmup_fraction <= 1, "from 0 to 1"),
            "adam_b1": (0 <= self.adam_b1 < 1, "from 0 to below 1"),
            "adam_b2": (0 <= self.adam_b2 < 1, "from 0 to below 1"),
            "weight_decay": (0 <= self.weight_decay <= 1, "from 0 to 1"),
            "adam_epsilon": (1e-37 <= self.adam_epsilon <= 1e38, "from 1e-37 to 1e38"),
            "seed": (0 <= self.seed < 2**32, "from 0 to 4,294,967,295"),
            "num_seeds": (1 <= self.num_seeds <= 10_000, "from 1 to 10,000"),
            "eval_every": (self.eval_every >= 1, "at least 1"),
            "checkpoint_every": (self.checkpoint_every >= 1, "at least 1"),
            "keep_checkpoints": (self.keep_checkpoints >= 1, "at least 1"),
        }
        for name, (holds, limit) in bounds.items():
            if not holds:
                raise UserError(f"{flag(name)} must be {limit}, but is {getattr(self, name)}")
        images = self.train_examples
        if self.batch_size > images:
            raise UserError(
                f"--batch-size {self.batch_size} is larger than the {images:,} training images"
            )
        if self.validation_fraction and images == self._examples:
            raise UserError(
                f"--validation-fraction {self.validation_fraction} holds out less than one image"
            )
        if self.seed + self.num_seeds > 2**32:
            raise UserError("--seed plus --num-seeds is more than 2**32")
        # Step counts are int32 on the device.
        if self.steps_per_epoch * self.epochs >= 2**31:
            raise UserError("--epochs and --batch-size ask for more than 2**31 - 1 steps")

    @property
    def train_examples(self) -> int:
        """How many images are trained on (for `auto`, as if it were MNIST)."""
        return self._examples - int(self._examples * self.validation_fraction)

    @property
    def _examples(self) -> int:
        """How many images there are to train on or to hold out."""
        return DATASET_SIZES["mnist" if self.dataset == "auto" else self.dataset][0]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; the last one takes what images are left."""
        return math.ceil(self.train_examples / self.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.steps_per_epoch * self.epochs

    def is_evaluated(self, epoch: int) -> bool:
        """Whether the end of an epoch, from 1, is one that has a line in the metrics."""
        return epoch == self.epochs or epoch % self.eval_every == 0


_BEST = Config(
    epochs=60,
    optimizer="muon",
    learning_rate=1e-2,
    rotation=10.0,
    zoom=0.1,
    shear=0.1,
    elastic=0.4,
)

# Chosen for the accuracy on a validation split of the training images.
PRESETS = {
    # 5 epochs, about half a minute on two CPU cores.
    "default": Config(),
    # One epoch, about ten seconds.
    "quick": Config(epochs=1, learning_rate=8e-3, weight_decay=0.0),
    # The most that the 81,066 parameters have given: about twelve minutes.
    "best": _BEST,
    # Twice as wide, 307,114 parameters, about twenty minutes.
    "large": dataclasses.replace(_BEST, channels=128, epochs=40),
    # The Keras tutorial that this project grew out of, which reports 98.38 %.
    "reference": Config(
        input_size=28,
        shift=0,
        batch_size=32,
        learning_rate=1e-3,
        schedule="constant",
        weight_decay=0.0,
    ),
}


def from_dict(values: Any) -> Config:
    """The config that `dataclasses.asdict` turned into `values`.

    Raises:
      UserError: a field is missing, unknown, of the wrong type or out of range.
    """
    names = {field.name for field in dataclasses.fields(Config)}
    if not isinstance(values, dict) or set(values) != names:
        found = set(values) if isinstance(values, dict) else set()
        wrong = ", ".join(sorted(names ^ found))
        raise UserError(f"not a config of this version (missing or unknown: {wrong})")
    return Config(**values)


def differences(old: Config, new: Config) -> list[str]:
    """One text per field that differs, naming both values."""
    return [
        f"{flag(name)} was {value}, now {getattr(new, name)}"
        for name, value in dataclasses.asdict(old).items()
        if getattr(new, name) != value
    ]
