"""The config of a run: one frozen dataclass with its limits, and the presets.

Imports nothing heavy, so that `--help` and every refusal are instant.
"""

import dataclasses
import math
from typing import Any, Literal, TypeVar, get_args, get_origin

Number = TypeVar("Number", int, float)

# Training and test images, known in advance so that a batch size that is too large is refused
# before anything is downloaded.
DATASET_SIZES = {
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "kmnist": (60_000, 10_000),
    "digits": (1_437, 360),
}

BELOW_1 = math.nextafter(1, 0)

IMAGE_SHAPE = (28, 28, 1)  # of every dataset, as uint8


class ExpectedError(Exception):
    """An end of a command that needs no traceback. Its text is one line for people."""

    exit_code = 1
    prefix = "error: "
    raised_everywhere = False
    """Whether each of several processes raises it, so that the primary one alone prints it."""


class UserError(ExpectedError):
    """A mistake that the user can correct."""

    exit_code = 2


def flag_name(field: str) -> str:
    """The command-line flag of a field: `--batch-size` for `batch_size`."""
    return "--" + field.replace("_", "-")


def limited(default: Number, low: float, high: float, limits: str) -> Number:
    """A field with a smallest and a largest value, and how to say it."""
    return dataclasses.field(default=default, metadata={"limits": (low, high, limits)})


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the result of a run, and how often it is evaluated and saved."""

    dataset: Literal["auto", "mnist", "fashion_mnist", "kmnist", "digits"] = "auto"
    """The images. `auto` is MNIST or, only if it is neither on this machine nor can be
    downloaded, the small digits that come with scikit-learn."""
    validation_fraction: float = limited(0.0, 0, BELOW_1, "from 0 to below 1")
    """Share of the training images, from their end, to hold out for validation."""
    input_size: Literal[22, 28, 30] = 22
    """Side in pixels of the network's input: the center of the image (22), the image (28), or the
    image in a black border (30). With 22 the network sees the 22x22 pixels in the middle, with 28
    those at the top left, and with 30 the whole image. The number of parameters is the same."""
    channels: int = limited(64, 1, 1024, "from 1 to 1,024")
    """Channels of each convolution. Other values make a smaller or larger network."""
    shift_pixels: int = limited(1, 0, 6, "from 0 to 6")
    """Largest random shift of the training images in each direction, in whole pixels."""
    rotation_degrees: float = limited(0.0, 0, 180, "from 0 to 180")
    """Largest random rotation of the training images, in degrees."""
    zoom: float = limited(0.0, 0, 1, "from 0 to 1")
    """Largest random change of height and of width of the training images, as a share."""
    shear: float = limited(0.0, 0, 1, "from 0 to 1")
    """Largest random shear of the training images, in pixels per row."""
    elastic_pixels: float = limited(0.0, 0, 10, "from 0 to 10")
    """Strength of the random elastic distortion of the training images: the standard deviation
    of each pixel's displacement, in pixels."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """How the factors of the layers' products are rounded; all else is float32. `tf32` and
    `bfloat16` are meant for GPU and TPU. On CPU `tf32` changes nothing, and `bfloat16` concerns
    the convolutions, which are then faster with AVX512-BF16 or AMX."""
    deterministic: bool = False
    """Make a GPU give the same bits in each run, as a CPU does in any case. Slower; refused
    where it is not supported."""
    epochs: int = limited(5, 1, 100_000, "from 1 to 100,000")
    """Passes over the training images."""
    batch_size: int = limited(64, 1, math.inf, "at least 1")
    """Images per optimizer step."""
    optimizer: Literal["adam", "muon"] = "adam"
    """`muon` orthogonalizes the updates of the kernels and uses Adam for the biases."""
    learning_rate: float = limited(6e-3, math.ulp(0), 1e38, "above 0 and at most 1e38")
    """The learning rate; with the triangular schedule, its peak."""
    schedule: Literal["triangular", "constant"] = "triangular"
    """`triangular` rises linearly for `warmup_fraction` of all steps, then falls to 0."""
    warmup_fraction: float = limited(0.2, 0, 1, "from 0 to 1")
    """Share of all steps in which the triangular schedule rises."""
    adam_b1: float = limited(0.9, 0, BELOW_1, "from 0 to below 1")
    """Decay rate of Adam's mean of gradients."""
    adam_b2: float = limited(0.999, 0, BELOW_1, "from 0 to below 1")
    """Decay rate of Adam's mean of squared gradients."""
    adam_epsilon: float = limited(1e-7, 1e-37, 1e38, "from 1e-37 to 1e38")
    """Adam's epsilon, added outside the square root."""
    weight_decay: float = limited(0.05, 0, 1, "from 0 to 1")
    """Decoupled weight decay: each step subtracts this share of the parameters (with `muon`, of
    the kernels), times the learning rate."""
    ema_fraction: float = limited(0.0, 0, 1, "from 0 to 1")
    """With a share of all steps, the network is the exponential moving average of the parameters
    with that time constant. With 0, it is the parameters after the last step."""
    seed: int = limited(0, 0, 2**32 - 1, "from 0 to 4,294,967,295")
    """Decides the initial parameters, the order of the images and their augmentation."""
    num_seeds: int = limited(1, 1, 10_000, "from 1 to 10,000")
    """How many networks to train in one program, with the seeds `seed`, `seed` + 1, ...
    Results are then means with their spread."""
    eval_every_epochs: int = limited(1, 1, math.inf, "at least 1")
    """Evaluate after every N epochs, and always after the last one."""
    checkpoint_every_epochs: int = limited(1, 1, math.inf, "at least 1")
    """Save a checkpoint after every N epochs, and always after the last one."""
    max_to_keep: int = limited(3, 1, math.inf, "at least 1")
    """How many of the latest checkpoints to keep, besides the best one by validation."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _check_type(field, value)
            if "limits" in field.metadata:
                low, high, limits = field.metadata["limits"]
                if not low <= value <= high:
                    raise UserError(f"{flag_name(field.name)} must be {limits}, but is {value}")
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
        if self.total_steps >= 2**31:
            raise UserError("--epochs and --batch-size make more than 2**31 - 1 steps")

    @property
    def train_examples(self) -> int:
        """How many images are trained on (for `auto`, as for MNIST)."""
        return self._examples - int(self._examples * self.validation_fraction)

    @property
    def _examples(self) -> int:
        """How many images are trained on or held out."""
        return DATASET_SIZES["mnist" if self.dataset == "auto" else self.dataset][0]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; the last one may have a smaller batch."""
        return math.ceil(self.train_examples / self.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.steps_per_epoch * self.epochs

    def is_evaluated(self, epoch: int) -> bool:
        """Whether the network is evaluated after an epoch, counted from 1."""
        return epoch == self.epochs or epoch % self.eval_every_epochs == 0

    def is_checkpointed(self, epoch: int) -> bool:
        """Whether a checkpoint is saved after an epoch, counted from 1."""
        return epoch == self.epochs or epoch % self.checkpoint_every_epochs == 0


def _check_type(field: dataclasses.Field[Any], value: object) -> None:
    kind: Any = field.type
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if (type(value), value) not in [(type(choice), choice) for choice in choices]:
            names = ", ".join(map(str, choices))
            raise UserError(f"{flag_name(field.name)} must be one of {names}, but is {value!r}")
        return
    allowed = (int, float) if kind is float else kind
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, allowed):
        raise UserError(f"{flag_name(field.name)} must be {kind.__name__}, but is {value!r}")


_BEST = Config(
    input_size=30,
    epochs=40,
    optimizer="muon",
    learning_rate=1e-2,
    rotation_degrees=5.0,
    zoom=0.05,
    shear=0.05,
    elastic_pixels=0.4,
    ema_fraction=0.2,
)

# Chosen by the accuracy on a validation split of the training images.
PRESETS = {
    "default": Config(),  # 5 epochs, about half a minute on two CPU cores
    # About ten seconds.
    "quick": Config(
        epochs=1, batch_size=32, optimizer="muon", learning_rate=8e-3, warmup_fraction=0.1
    ),
    "best": _BEST,  # the highest accuracy with 81,066 parameters, about fifteen minutes
    # Four networks, which predict together by their mean probability; about an hour.
    "large": dataclasses.replace(_BEST, num_seeds=4),
    # The Keras tutorial that this project grew out of, which reports 98.38 %.
    "reference": Config(
        input_size=28,
        shift_pixels=0,
        batch_size=32,
        learning_rate=1e-3,
        schedule="constant",
        weight_decay=0.0,
    ),
    # For the 1,437 training images of scikit-learn's digits; chosen by the loss, as accuracies tie.
    "digits": Config(
        dataset="digits",
        epochs=80,
        rotation_degrees=5.0,
        zoom=0.1,
        shear=0.1,
        elastic_pixels=0.4,
    ),
}
