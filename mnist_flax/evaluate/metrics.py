"""How good predictions are, from logits and labels.

Several networks are an ensemble, which predicts by their mean probability.
"""

from typing import NotRequired, TypedDict

import numpy as np
from scipy import optimize

from mnist_flax.core.inference import loss_and_accuracy, probabilities
from mnist_flax.core.model import NUM_CLASSES
from mnist_flax.engine.seed_stats import SeedValue, aggregate, wilson_interval
from mnist_flax.engine.trained_model import TrainedModel

BINS = 15

ClassScores = TypedDict(
    "ClassScores", {"class": int, "precision": float, "recall": float, "f1": float, "examples": int}
)


class Confusion(TypedDict):
    """How many images of a class were predicted to be of another."""

    label: int
    prediction: int
    count: int


class CalibrationBin(TypedDict):
    """The predictions whose confidence lies between `low` and `high`."""

    low: float
    high: float
    examples: int
    confidence: float
    accuracy: float


class Calibration(TypedDict):
    """Whether the confidence equals the accuracy, before and after temperature scaling."""

    ece: float
    bins: list[CalibrationBin]
    temperature: float | None
    loss_at_temperature: NotRequired[float]
    ece_at_temperature: NotRequired[float]


class Misclassified(TypedDict):
    """One misclassified image."""

    index: int
    label: int
    prediction: int
    confidence: float
    """Probability of the prediction."""
    loss: float
    """Of the label, in nats."""


class Evaluation(TypedDict):
    """The content of `evaluation.json`: a checkpoint evaluated on one split of a dataset.

    `loss` and `accuracy` are those of each network, all else is about the ensemble.
    """

    step: int
    epochs: float
    seeds: list[int]
    dataset: str
    split: str
    examples: int
    loss: SeedValue
    accuracy: SeedValue
    correct: int
    accuracy_ci95: list[float]
    per_class: list[ClassScores]
    confusion: list[list[int]]
    top_confusions: list[Confusion]
    calibration: Calibration
    misclassified: list[Misclassified]
    robustness: NotRequired[dict[str, list[float]]]
    """The accuracy at severities 0 to 5 of each corruption."""
    mnist_c: NotRequired[dict[str, float]]
    """The accuracy on each corruption of MNIST-C."""


def evaluate_logits(
    trained: TrainedModel,
    dataset: str,
    split: str,
    logits: np.ndarray,
    labels: np.ndarray,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
) -> Evaluation:
    """The evaluation of networks by their logits, float32 [seeds, N, 10], and labels, int32 [N].

    The temperature is fitted on `held_out`: the logits and labels of other images, which were
    not trained on.
    """
    ensemble = probabilities(logits)
    predictions = ensemble.argmax(axis=-1)
    correct = int((predictions == labels).sum())
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    np.add.at(confusion, (labels, predictions), 1)
    scores = loss_and_accuracy(logits, labels)
    return {
        "step": trained.step,
        "epochs": trained.epochs,
        "seeds": trained.seeds,
        "dataset": dataset,
        "split": split,
        "examples": len(labels),
        "loss": aggregate(scores["loss"]),
        "accuracy": aggregate(scores["accuracy"]),
        "correct": correct,
        "accuracy_ci95": wilson_interval(correct, len(labels)),
        "per_class": class_scores(confusion),
        "confusion": confusion.tolist(),
        "top_confusions": top_confusions(confusion),
        "calibration": calibration(logits, labels, held_out),
        "misclassified": misclassified(ensemble, labels),
    }


def ensemble_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The accuracy of the mean probability: logits [seeds, N, 10], labels [N]."""
    return float((probabilities(logits).argmax(axis=-1) == labels).mean())


def class_scores(confusion: np.ndarray) -> list[ClassScores]:
    """Precision, recall and F1 of each class; 0 where there is nothing to divide by."""
    correct = confusion.diagonal()
    examples, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    precision = correct / np.maximum(predicted, 1)
    recall = correct / np.maximum(examples, 1)
    f1 = 2 * correct / np.maximum(examples + predicted, 1)
    scores = np.column_stack((precision, recall, f1, examples)).tolist()
    return [
        {"class": label, "precision": p, "recall": r, "f1": f, "examples": int(count)}
        for label, (p, r, f, count) in enumerate(scores)
    ]


def top_confusions(confusion: np.ndarray) -> list[Confusion]:
    """The most frequent confusions, at most ten."""
    rows: list[Confusion] = [
        {"label": label, "prediction": prediction, "count": int(count)}
        for (label, prediction), count in np.ndenumerate(confusion)
        if label != prediction and count
    ]
    return sorted(rows, key=lambda row: -row["count"])[:10]


def misclassified(probability: np.ndarray, labels: np.ndarray) -> list[Misclassified]:
    """The misclassified images, those with the largest loss first; probability [N, 10]."""
    predictions = probability.argmax(axis=-1)
    losses = _label_losses(probability, labels)
    wrong = np.flatnonzero(predictions != labels)
    return [
        {
            "index": int(index),
            "label": int(labels[index]),
            "prediction": int(predictions[index]),
            "confidence": float(probability[index, predictions[index]]),
            "loss": float(losses[index]),
        }
        for index in wrong[np.argsort(-losses[wrong], kind="stable")]
    ]


def calibration(
    logits: np.ndarray, labels: np.ndarray, held_out: tuple[np.ndarray, np.ndarray] | None
) -> Calibration:
    """The expected calibration error, and with held-out images that at the best temperature.

    Source: https://arxiv.org/abs/1706.04599.
    """
    bins = reliability(probabilities(logits), labels)
    result: Calibration = {"ece": calibration_error(bins), "bins": bins, "temperature": None}
    if held_out is not None:
        temperature = fit_temperature(*held_out)
        scaled = probabilities(logits / temperature)
        result["temperature"] = temperature
        result["loss_at_temperature"] = float(_label_losses(scaled, labels).mean())
        result["ece_at_temperature"] = calibration_error(reliability(scaled, labels))
    return result


def reliability(probability: np.ndarray, labels: np.ndarray) -> list[CalibrationBin]:
    """Confidence and accuracy in `BINS` bins of equal width, without the empty ones."""
    confidence = probability.max(axis=-1)
    correct = probability.argmax(axis=-1) == labels
    indices = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "low": int(index) / BINS,
            "high": int(index + 1) / BINS,
            "examples": int((indices == index).sum()),
            "confidence": float(confidence[indices == index].mean()),
            "accuracy": float(correct[indices == index].mean()),
        }
        for index in np.unique(indices)
    ]


def calibration_error(bins: list[CalibrationBin]) -> float:
    """The mean gap between confidence and accuracy, over all examples."""
    examples = sum(x["examples"] for x in bins)
    return sum(x["examples"] / examples * abs(x["accuracy"] - x["confidence"]) for x in bins)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The divisor of logits [seeds, N, 10] that minimizes the loss of their mean probability."""
    exact = np.asarray(logits, np.float64)

    def loss(log_temperature: float) -> float:
        scaled = probabilities(exact * np.exp(-log_temperature))
        return float(_label_losses(scaled, labels).mean())

    return float(np.exp(optimize.fminbound(loss, -3, 3)))


def _label_losses(probability: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The loss of each example in nats, float64 [N], of probability [N, 10]."""
    return -np.log(np.maximum(probability[np.arange(len(labels)), labels], 1e-300))
