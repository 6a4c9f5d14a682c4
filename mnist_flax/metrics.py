"""How good answers are, from logits and labels alone.

Several networks answer together: by their mean probability.
"""

from typing import Any

import numpy as np
from scipy import optimize, stats
from sklearn import metrics as sk

from mnist_flax.inference import losses, probabilities, scores
from mnist_flax.model import NUM_CLASSES
from mnist_flax.spread import figure

BINS = 15
CLASSES = np.arange(NUM_CLASSES)


def assess(
    logits: np.ndarray, labels: np.ndarray, held_out: tuple[np.ndarray, np.ndarray] | None = None
) -> dict[str, Any]:
    """All that there is to say about answers to a split.

    `accuracy` and `loss` are those of each network, the same as the run reports; all else is
    about their common answer, which for a single network is its own.

    Args:
      logits: float32 [seeds, N, 10].
      labels: int32 [N].
      held_out: logits and labels of images to fit the temperature on, which were neither
        trained on nor are `labels`'; or None.
    """
    chance = probabilities(logits)
    answers = chance.argmax(axis=-1)
    right = int((answers == labels).sum())
    never: Any = 0.0  # what a class that is never answered scores; scikit-learn's stubs want str
    of_class: Any = sk.precision_recall_fscore_support(
        labels, answers, labels=CLASSES, zero_division=never
    )
    precision, recall, f1, support = of_class
    confusion = sk.confusion_matrix(labels, answers, labels=CLASSES)
    wilson = stats.binomtest(right, len(labels)).proportion_ci(0.95, method="wilson")
    return {
        "examples": len(labels),
        **{name: figure(values) for name, values in scores(logits, labels).items()},
        "right": right,
        "wilson95": [float(wilson.low), float(wilson.high)],
        "per_class": [
            {
                "class": int(label),
                "precision": float(precision[label]),
                "recall": float(recall[label]),
                "f1": float(f1[label]),
                "examples": int(support[label]),
            }
            for label in CLASSES
        ],
        "confusion": confusion.tolist(),
        "top_confusions": top_confusions(confusion),
        "calibration": calibration(logits, labels, held_out),
        "mistakes": mistakes(chance, labels),
    }


def right_share(logits: np.ndarray, labels: np.ndarray) -> float:
    """The accuracy of the common answer: logits [seeds, N, 10], labels [N]."""
    return float((probabilities(logits).argmax(axis=-1) == labels).mean())


def top_confusions(confusion: np.ndarray, count: int = 10) -> list[dict[str, int]]:
    """The most frequent mistakes: `label` taken for `answer`, `count` times."""
    wrong = confusion * (1 - np.eye(len(confusion), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        {"label": int(label), "answer": int(answer), "count": int(wrong[label, answer])}
        for label, answer in pairs
        if wrong[label, answer]
    ]


def mistakes(chance: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Every wrong answer, the most certainly wrong first: `loss` in nats, of the true label."""
    answers = chance.argmax(axis=-1)
    true = chance[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(answers != labels)
    return [
        {
            "index": int(index),
            "label": int(labels[index]),
            "answer": int(answers[index]),
            "probability": float(chance[index, answers[index]]),
            "loss": float(-np.log(max(true[index], 1e-300))),
        }
        for index in wrong[np.argsort(true[wrong], kind="stable")]
    ]


def calibration(
    logits: np.ndarray, labels: np.ndarray, held_out: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, Any]:
    """Whether the networks are right as often as they are sure.

    The expected calibration error (https://arxiv.org/abs/1706.04599) over `BINS` bins of equal
    width; and, where there are held-out images, the temperature that makes their loss least,
    with what it makes of the error and the loss.
    """
    result: dict[str, Any] = reliability(probabilities(logits), labels)
    result["temperature"] = None
    if held_out is not None:
        temperature = fit_temperature(*held_out)
        cooled = probabilities(logits / temperature)
        true = cooled[np.arange(len(labels)), labels]
        result["temperature"] = temperature
        result["loss_at_temperature"] = float(-np.log(np.maximum(true, 1e-300)).mean())
        result["ece_at_temperature"] = reliability(cooled, labels)["ece"]
    return result


def reliability(chance: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The expected calibration error `ece`, and each bin that is not empty."""
    sure = chance.max(axis=-1)
    right = chance.argmax(axis=-1) == labels
    which = np.minimum((sure * BINS).astype(int), BINS - 1)
    bins, ece = [], 0.0
    for index in np.unique(which):
        inside = which == index
        row = {
            "low": index / BINS,
            "high": (index + 1) / BINS,
            "examples": int(inside.sum()),
            "confidence": float(sure[inside].mean()),
            "accuracy": float(right[inside].mean()),
        }
        ece += row["examples"] / len(labels) * abs(row["accuracy"] - row["confidence"])
        bins.append(row)
    return {"ece": float(ece), "bins": bins}


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What to divide logits [seeds, N, 10] by, so that their mean loss is least."""
    exact = np.asarray(logits, np.float64)
    found = optimize.minimize_scalar(
        lambda power: float(losses(exact * np.exp(-power), labels).mean()),
        bounds=(-3, 3),
        method="bounded",
    )
    return float(np.exp(found.x))
