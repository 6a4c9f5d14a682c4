"""Comparisons: a planted difference is found, and none is found where there is none."""

import json

import numpy as np
import pytest
from scipy import stats

from mnist_flax import compare, run
from mnist_flax.compare import LEVEL, describe
from tests.conftest import SMALL

IMAGES = 2000
LABELS = np.random.default_rng(0).integers(0, 10, IMAGES).astype(np.int32)


def answers(error_rates, seed):
    """Logits [seeds, N, 10] of networks that are wrong that often.

    Which images are hard is the same for all; each network adds its own luck.
    """
    rng = np.random.default_rng(seed)
    hardness = np.random.default_rng(1).permutation(IMAGES) / IMAGES
    logits = np.zeros((len(error_rates), IMAGES, 10), np.float32)
    for network, rate in zip(logits, error_rates, strict=True):
        wrong = hardness + 0.01 * rng.standard_normal(IMAGES) > 1 - rate
        network[np.arange(IMAGES), (LABELS + wrong) % 10] = 5.0
    return logits


def test_a_planted_difference_is_found():
    spread = np.random.default_rng(3).normal(0, 0.001, 8)
    a, b = answers(0.06 + spread, 10), answers(0.04 + spread, 11)
    for paired in (True, False):
        result = compare.compare(a, b, LABELS, paired)
        assert result["difference"] == pytest.approx(0.02, abs=0.003)
        assert result["verdict"].startswith("B is better by 1.9")
        assert result["mcnemar_p"] < 1e-6
        for interval in ("interval95_over_seeds", "interval95_over_images"):
            low, high = result[interval]
            assert 0 < low < result["difference"] < high < 0.04
        back = compare.compare(b, a, LABELS, paired)
        assert back["difference"] == -result["difference"]
        assert back["verdict"].startswith("A is better by 1.9")


def test_halves_of_the_same_seeds_are_within_noise():
    """At the 95 % level one comparison in twenty may err; twice that is the limit here."""
    trials, found = 60, 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        rates = 0.05 + rng.normal(0, 0.003, 10)
        logits = answers(rates, 100 + trial)
        result = compare.compare(logits[:5], logits[5:], LABELS, paired=False)
        found += "Within noise" not in result["verdict"]
    assert found <= trials / 10


def test_the_statistics_are_the_textbooks():
    a, b = answers([0.06, 0.05, 0.07], 1), answers([0.05, 0.05, 0.06], 2)
    result = compare.compare(a, b, LABELS, paired=True)
    right = [(logits.argmax(-1) == LABELS).mean(axis=1) for logits in (a, b)]
    difference = right[1] - right[0]
    half = stats.t.ppf((1 + LEVEL) / 2, 2) * difference.std(ddof=1) / 3**0.5
    expected = [difference.mean() - half, difference.mean() + half]
    assert result["interval95_over_seeds"] == pytest.approx(expected)
    only_a, only_b = (len(result[f"only_{side}_right"]) for side in "ab")
    assert result["mcnemar_p"] == stats.binomtest(only_a, only_a + only_b).pvalue
    assert result["accuracy_a"]["per_seed"] == pytest.approx(right[0])
    for image in result["only_a_right"]:
        assert image["label"] == LABELS[image["index"]] == image["answer_a"] != image["answer_b"]


def test_single_networks_have_no_spread_to_speak_of():
    a, b = answers([0.06], 1), answers([0.03], 2)
    result = compare.compare(a, b, LABELS, paired=False)
    assert result["interval95_over_seeds"] is None
    assert "only more seeds can tell" in result["verdict"]
    alike = compare.compare(a, answers([0.06], 5), LABELS, paired=False)
    assert alike["verdict"].startswith("Within noise")
    against_many = compare.compare(answers([0.06, 0.061, 0.062], 4), b, LABELS, paired=False)
    assert against_many["verdict"].startswith("B is better by")


def test_the_same_run_is_no_different_from_itself(small_run, capsys):
    assert compare.main([str(small_run), str(small_run)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("No difference at all.")


def test_the_command_agrees_with_the_runs_own_summary(small_run, tmp_path, capsys):
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--num-seeds", "2", "--seed", "4"]) == 0
    capsys.readouterr()
    assert compare.main([str(small_run), str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for side, folder in (("a", small_run), ("b", tmp_path)):
        summary = json.loads((folder / "summary.json").read_text())
        assert result[f"accuracy_{side}"] == summary["test_accuracy"]
    assert (result["a"]["seeds"], result["b"]["seeds"]) == ([0], [4, 5])
    text = describe(result)
    assert result["verdict"] in text
    assert f"2 seeds  {tmp_path}" in text


@pytest.mark.slow
def test_only_the_seeds_that_both_have_are_compared(tmp_path):
    workdirs = []
    for name, seed, count in (("a", 0, 3), ("b", 1, 4), ("c", 3, 2)):
        workdirs.append(tmp_path / name)
        flags = ("--num-seeds", str(count), "--seed", str(seed), "--epochs", "1", "--no-report")
        assert run.main(["--workdir", str(workdirs[-1]), *SMALL[:2], *flags]) == 0
    result = compare.compare_runs(*workdirs[:2])
    assert result["paired"]
    assert result["a"]["seeds"] == result["b"]["seeds"] == [1, 2]
    assert result["difference"] == 0  # the same config and the same seeds
    others = compare.compare_runs(workdirs[0], workdirs[2])
    assert not others["paired"]
    assert (others["a"]["seeds"], others["b"]["seeds"]) == ([0, 1, 2], [3, 4])


def test_what_cannot_be_compared_is_refused_in_one_line(small_run, tmp_path, capsys):
    begun, other = tmp_path / "begun", tmp_path / "other"
    stored = json.loads((small_run / "config.json").read_text())
    for folder, dataset in ((begun, "digits"), (other, "mnist")):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(stored | {"dataset": dataset}))
    (other / "checkpoints").symlink_to(small_run / "checkpoints")
    cases = {
        (str(small_run), str(tmp_path / "nowhere")): "holds no run",
        (str(small_run), str(begun)): "nothing has been trained",
        (str(small_run), str(other)): "nothing to compare",
        (str(small_run),): "--help",
    }
    for arguments, complaint in cases.items():
        assert compare.main(arguments) == 2
        errors = capsys.readouterr().err
        assert complaint in errors
        assert errors.count("\n") == 1
