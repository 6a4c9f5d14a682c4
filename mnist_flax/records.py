"""Whether what stands in a run's JSON files is what a run writes there."""

from typing import Any

from mnist_flax.spread import seeds_of


def is_summary(value: Any) -> bool:
    """Whether it has all that others tell from the summary of a run."""
    try:
        return (
            isinstance(value["dataset"], str)
            and all(map(is_figure, (value["test_accuracy"], value["test_loss"])))
            and all(map(_is_number, (value["parameters"], value["epochs"])))
            and _is_number(value["seconds"]["total"])
        )
    except (KeyError, TypeError):
        return False


def is_line(value: Any, like: Any) -> bool:
    """Whether it is a line of the metrics, with the same names and seeds as another one."""
    return (
        isinstance(value, dict)
        and value.keys() == like.keys() >= {"step", "epoch"}
        and all(type(value[name]) is int for name in ("step", "epoch"))
        and isinstance(value.get("dataset", ""), str)
        and all(
            is_figure(number) and len(seeds_of(number)) == len(seeds_of(like[name]))
            for name, number in value.items()
            if name != "dataset"
        )
    )


def is_figure(value: Any) -> bool:
    """Whether it is a number, or the spread of one over several seeds."""
    if isinstance(value, dict):
        seeds = value.get("per_seed")
        numbers = (value.get("mean"), value.get("std"))
        return isinstance(seeds, list) and all(map(_is_number, (*numbers, *seeds)))
    return _is_number(value)


def _is_number(value: Any) -> bool:
    """Whether it is one, finite, and no larger than TensorBoard's widest integer."""
    return type(value) in {int, float} and abs(value) < 2**63


def refuse_unshowable(value: Any, levels: int = 8) -> None:
    """Refuses text that is no UTF-8, and what is nested so deeply as to exhaust a stack.

    Raises:
      ValueError: there is such text, or so many levels; a run's files have three.
    """
    if not levels:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str):
        value.encode()
    inner = (*value, *value.values()) if isinstance(value, dict) else value
    for part in inner if isinstance(inner, tuple | list) else ():
        refuse_unshowable(part, levels - 1)
