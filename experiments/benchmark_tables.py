"""The benchmark's results as tables and a picture."""

from pathlib import Path
from typing import Any

TARGETS = (0.9838, 0.99)
EPOCH = 60_000

LABELS = {
    "ours": "mnist_flax, reference recipe",
    "ours_default": "mnist_flax, default preset",
    "ours_quick": "mnist_flax, quick preset",
    "ours_quick_again": "mnist_flax, quick preset, compiled by an earlier run",
    "keras_tensorflow": "Keras on TensorFlow",
    "torch": "PyTorch",
    "torch_channels_last": "PyTorch, channels last",
    "torch_compiled": "PyTorch, `torch.compile`",
    "keras_jax": "Keras on JAX",
    "flax_plain": "Flax, plain",
}


def markdown(result: dict[str, Any]) -> str:
    """The results as tables."""
    machine = result["machine"]
    lines = [
        "# Benchmark",
        "",
        f"`{result['command']}`, {result['date']}, "
        f"{machine['cores']} cores of {machine['processor']}, "
        f"{result['dataset']}, float32. Commit `{result['commit'][:12]}`.",
    ]
    for name, missing in result["missing"].items():
        lines.append(f"Not installed, so not measured: {LABELS[name]} ({missing}).")
    if "speed" in result:
        lines += speed_table(result["speed"], "The reference's 28x28 input")
    if "own_window" in result:
        lines += speed_table(
            result["own_window"], "The same with every peer given our 22x22 window"
        )
    for part, table in (
        ("accuracy", accuracy_table),
        ("start", start_table),
        ("growth", growth_tables),
    ):
        if part in result:
            lines += table(result[part])
    return "\n".join(lines) + "\n"


def speed_table(part: dict[str, Any], title: str) -> list[str]:
    """Steady speed, compile time and memory of each implementation."""
    rows = sorted(part["peers"].items(), key=lambda item: item[1]["epoch_seconds"])
    lines = ["", f"## {title}, batch {part['batch_size']}", ""]
    lines += [
        "| | images/s: median (range) | an epoch | to the fastest peer's | start to first step "
        "| peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows:
        ratio = row.get("epoch_against_fastest_peer")
        cells = [
            LABELS[name],
            f"{row['images_per_second']:,.0f} ({row['slowest']:,.0f} to {row['fastest']:,.0f})",
            f"{row['epoch_seconds']:.1f} s",
            f"{ratio['median']:.2f}" if ratio else "",
            f"{row['compile_seconds']:.1f} s",
            mebibytes(row),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def accuracy_table(part: dict[str, Any]) -> list[str]:
    """How soon each implementation is accurate."""
    targets = [f"{target:.2%}" for target in TARGETS]
    lines = ["", "## Seconds from the start of the process, compiling included", ""]
    lines += ["| | " + " | ".join(f"to {t} (median, reached)" for t in targets) + " |"]
    lines += ["|---" * (len(targets) + 1) + "|"]
    for name, row in part.items():
        cells = [
            (f"{row[t]['median']:.1f} s" if row[t]["median"] else "-")
            + f", {row[t]['reached']} of {len(row['seeds'])}"
            for t in targets
        ]
        lines.append(f"| {LABELS[name]} | " + " | ".join(cells) + " |")
    return lines


def start_table(part: dict[str, Any]) -> list[str]:
    """Where the seconds of a short run go."""
    laps = list(part["cold"])
    lines = ["", "## Where the seconds of `--preset quick` go (mean)", ""]
    lines += ["| compiled programs | " + " | ".join(laps) + " |", "|---" * (len(laps) + 1) + "|"]
    for kind, label in (("cold", "none from before"), ("warm", "from an earlier run")):
        cells = [f"{part[kind][lap]['mean']:.2f} s" for lap in laps]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def growth_tables(part: dict[str, Any]) -> list[str]:
    """How time and memory grow."""
    lines = ["", "## How the default preset's cost grows", ""]
    lines += ["| batch size | images/s | peak memory |", "|---|---|---|"]
    for row in part["batch_size"]:
        lines.append(
            f"| {row['batch_size']:,} | {row['images_per_second']:,.0f} | {mebibytes(row)} |"
        )
    lines += [
        "",
        "| training images | seconds | microseconds an image | peak memory |",
        "|---" * 4 + "|",
    ]
    for row in part["images"]:
        lines.append(
            f"| {row['images']:,} | {row['seconds']:.2f} "
            f"| {row['seconds'] / row['images'] * 1e6:.0f} | {mebibytes(row)} |"
        )
    first, last = part["epochs"][0], part["epochs"][-1]
    lines += [
        "",
        f"Peak memory after epoch {first['epoch']}: {mebibytes(first)}; "
        f"after epoch {last['epoch']}: {mebibytes(last)}.",
    ]
    return lines


def mebibytes(row: dict[str, Any]) -> str:
    """The peak memory of a row."""
    return f"{row['peak_bytes'] / 2**20:,.0f} MiB"


def draw(result: dict[str, Any], path: Path) -> None:
    """Seconds per epoch, and accuracy against seconds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    rows = sorted(result["speed"]["peers"].items(), key=lambda item: -item[1]["epoch_seconds"])
    names = [LABELS[name].replace("`", "") for name, _ in rows]
    seconds = [row["epoch_seconds"] for _, row in rows]
    errors = [
        [row["epoch_seconds"] - EPOCH / row["fastest"] for _, row in rows],
        [EPOCH / row["slowest"] - row["epoch_seconds"] for _, row in rows],
    ]
    colors = ["#0072B2" if name.startswith("ours") else "#999999" for name, _ in rows]
    bars = left.barh(names, seconds, xerr=errors, color=colors, error_kw={"elinewidth": 1})
    left.bar_label(bars, [f"{value:.1f} s" for value in seconds], padding=8)
    left.set_xlim(right=1.25 * max(seconds))
    left.set_xlabel("seconds for 60,000 images (median and range)")
    left.set_title("An epoch, batch 128, float32")
    colors_of = dict(
        zip(LABELS, ["#56B4E9", "#0072B2", "#CC79A7", "#D55E00", "#E69F00"], strict=False)
    )
    for name, row in result.get("accuracy", {}).items():
        for index, curve in enumerate(row["curves"]):
            right.plot(
                [point["seconds"] for point in curve],
                [100 * point["test_accuracy"] for point in curve],
                marker="o",
                markersize=4,
                color=colors_of.get(name, "#009E73"),
                label=LABELS[name].replace("`", "") if index == 0 else None,
            )
    if "accuracy" in result:
        right.axhline(100 * TARGETS[0], color="#666666", linestyle="--", linewidth=1)
        right.annotate(
            "98.38 %", (1, 100 * TARGETS[0]), (4, 0), va="center", fontsize="small",
            xycoords=("axes fraction", "data"), textcoords="offset points",
        )  # fmt: skip
        right.set_xscale("log")
        right.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        right.xaxis.set_major_formatter("{x:g}")
        right.xaxis.set_minor_formatter(ticker.NullFormatter())
        right.set_xlabel("seconds from the start of the process")
        right.set_ylabel("test accuracy, %")
        right.set_title("To the accuracy, a line for each seed")
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)
