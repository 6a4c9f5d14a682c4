"""The notebook for Colab: run as a whole, its installation, its stored outputs."""

import ast
import html
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mnist_flax import load
from mnist_flax.data.dataset import load_dataset
from tests.conftest import read_summary

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "experiments" / "mnist_colab.ipynb"
SMALL = 'DATASET, EPOCHS, SEEDS, DRIVE = "digits", 2, 3, False'
PROBE = "import mnist_flax; print(mnist_flax.__file__)"


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def tagged(notebook, tag):
    """The indices of the cells with a tag; there must be some."""
    cells = enumerate(notebook.cells)
    indices = [index for index, cell in cells if tag in cell.metadata.get("tags", ())]
    assert indices
    return indices


def run_cells(notebook, tag, names):
    """Runs the cells with a tag in this process, after earlier cells defined some names."""
    for index in tagged(notebook, tag):
        exec(compile(notebook.cells[index].source, tag, "exec"), names)
    return names


def insert_edited_step(notebook):
    """Adds a copy of the cell to be edited, with the changes that the text above it suggests."""
    (index,) = tagged(notebook, "own-step")
    source, how = notebook.cells[index].source, notebook.cells[index - 1].source
    for old, new in {
        "make_optimizer(config)": "optax.lion(3e-4)",
        'augment(key, batch["images"], config)': 'batch["images"][:, 3:25, 3:25]',
    }.items():
        assert old in source
        assert f"`{new}`" in how
        source = source.replace(old, new)
    metadata = {"tags": ["edited-step"]}
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(source, metadata=metadata))


def execute(notebook, clean, folder, monkeypatch):
    """Runs the notebook as a user's Jupyter would, with the Python of the environment `clean`."""
    # A user has JAX's defaults, and not the stricter settings of the tests.
    for name in ("PYTHONPATH", "JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUMPY_RANK_PROMOTION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(folder / "jupyter"))
    argv = [str(clean / "bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"display_name": "clean", "language": "python", "argv": argv}
    (folder / "jupyter/kernels/clean").mkdir(parents=True)
    (folder / "jupyter/kernels/clean/kernel.json").write_text(json.dumps(kernel))
    resources = {"metadata": {"path": str(folder)}}
    settings = {"timeout": 600, "kernel_name": "clean", "resources": resources}
    nbclient.NotebookClient(notebook, **settings).execute()


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(notebook, clean, tmp_path, monkeypatch):
    """Outside Colab and the checkout, with settings injected as papermill injects them."""
    insert_edited_step(notebook)
    metadata = {"tags": ["probe"]}
    notebook.cells.append(nbformat.v4.new_code_cell(PROBE, metadata=metadata))
    (index,) = tagged(notebook, "parameters")
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(SMALL))
    execute(notebook, clean, tmp_path, monkeypatch)

    def printed(tag):
        """What the cells with a tag printed."""
        outputs = [x for index in tagged(notebook, tag) for x in notebook.cells[index].outputs]
        return "".join(output.text for output in outputs if output.output_type == "stream")

    def epochs(tag):
        """The epochs whose lines a cell printed."""
        return re.findall(r"^epoch (\d+)/2", printed(tag), flags=re.MULTILINE)

    runs = tmp_path / "mnist_flax_runs"
    assert "mnist_flax is installed already" in printed("install")
    assert epochs("train") == ["1", "2"]
    assert read_summary(runs / "digits_2_epochs")["epochs"] == 2

    accuracy = read_summary(runs / "digits_3_seeds")["test_accuracy"]
    for seed, value in enumerate(accuracy["per_seed"]):
        assert re.search(rf"^seed {seed} alone: +{value:.2%}$", printed("ensemble"), re.MULTILINE)
    assert re.search(rf"^mean of the 3: +{accuracy['mean']:.2%}$", printed("ensemble"), re.M)
    images, labels = load_dataset("digits").test
    ensemble = (load(runs / "digits_3_seeds").predict(images) == labels).mean()
    assert re.search(rf"^ensemble of the 3: +{ensemble:.2%}$", printed("ensemble"), re.MULTILINE)

    for tag in ("own-step", "edited-step"):
        lines = re.findall(r"^after +(\d+) steps: test accuracy (.+)%$", printed(tag), re.MULTILINE)
        assert [int(step) for step, _ in lines] == [0, 50, 100, 150, 200]
        assert float(lines[0][1]) < 40
        assert float(lines[-1][1]) > 80

    assert "stopped by SIGINT, saved at step 45; the same command resumes" in printed("stop")
    assert epochs("stop") == ["1"]
    assert "from step 45 of 90" in printed("resume")
    assert epochs("resume") == ["2"]
    assert printed("resume").count("which is finished") == 1
    assert read_summary(runs / "digits_stopped")["steps"] == 90
    assert (runs / "model.onnx").is_file()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not [output for output in outputs if "\x1b" in output.get("text", "")]  # no live lines
    texts = [output.get("data", {}).get("text/html", "") for output in outputs]
    pages = re.findall(r'<iframe srcdoc="([^"]*)"', "".join(texts))
    files = ("digits_2_epochs/report/index.html", "digits.html")
    assert [html.unescape(page) for page in pages] == [(runs / x).read_text() for x in files]
    assert printed("probe").startswith(str(clean))


GPU = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt")
TPU = ("jax", "jaxlib", "libtpu")
OTHERS = {"jaxtyping": "0.2.0", "numpy": "2.0.2"}


@pytest.mark.parametrize(
    ("installed", "requirements"),
    [
        (dict.fromkeys(GPU, "0.10.1") | OTHERS, [f"{name}==0.10.1" for name in GPU]),
        (dict.fromkeys(TPU, "0.11.3"), [f"{name}==0.11.3" for name in TPU]),
        (
            {"jax": "0.10.1", "jax_cuda13_plugin": "0.10.1"},
            ["jax==0.10.1", "jax-cuda13-plugin==0.10.1"],
        ),
        (dict.fromkeys(GPU, "0.7.2") | OTHERS, ["jax[cuda12]>=0.10.0,<0.12"]),
        (dict.fromkeys(TPU, "0.12.0"), ["jax[tpu]>=0.10.0,<0.12"]),
        ({"jax": "0.9.2"}, ["jax[]>=0.10.0,<0.12"]),
        ({}, ["jax[]>=0.10.0,<0.12"]),
    ],
)
def test_a_compatible_jax_is_kept(notebook, monkeypatch, clone, installed, requirements):
    (command,) = install(notebook, monkeypatch, installed)
    assert command[:5] == [sys.executable, "-m", "pip", "install", "--progress-bar=off"]
    assert command[5] == f"{clone}[export]"
    assert sorted(command[6:]) == sorted(requirements)
    for requirement in command[6:]:
        Requirement(requirement)


def test_the_bounds_on_jax_are_those_of_the_package(notebook, monkeypatch, clone):
    names: dict[str, Any] = {}
    install(notebook, monkeypatch, {}, names=names)
    project = tomllib.loads((clone / "pyproject.toml").read_text())["project"]
    dependencies = [Requirement(text) for text in project["dependencies"]]
    assert {r.name: r.specifier for r in dependencies}["jax"] == SpecifierSet(names["JAX"])


@pytest.mark.parametrize("place", ["..", "../..", "mnist_flax", "files/clone"])
def test_a_clone_above_or_below_the_notebook_is_found(notebook, monkeypatch, clone, place):
    here = clone.parent / "above" / "notebook"
    here.mkdir(parents=True)
    (here / place).mkdir(parents=True, exist_ok=True)
    shutil.move(clone / "pyproject.toml", here / place)
    monkeypatch.chdir(here)
    ((*_, package, _),) = install(notebook, monkeypatch, {})
    assert package == f"{(here / place).resolve()}[export]"


def test_an_uploaded_zip_file_is_unpacked(notebook, monkeypatch, clone):
    here = clone.parent
    shutil.make_archive(str(here / "mnist_flax-main"), "zip", here, clone.name)
    shutil.rmtree(clone)
    monkeypatch.chdir(here)
    ((*_, package, _),) = install(notebook, monkeypatch, {})
    assert package == f"{here / 'mnist_flax-main' / clone.name}[export]"


def test_without_a_clone_the_notebook_says_what_to_do(notebook, monkeypatch, clone):
    (clone / "pyproject.toml").write_text('[project]\nname = "a"\ndependencies = ["mnist-flax"]')
    with pytest.raises(SystemExit, match="Run `!git clone <this repository>` in a cell above"):
        install(notebook, monkeypatch, {"jax": "0.10.1"})


def test_an_installed_package_is_left_as_it_is(notebook, monkeypatch, clone, capsys):
    assert install(notebook, monkeypatch, {"mnist-flax": "0.1.0", "jax": "0.7.2"}) == []
    assert capsys.readouterr().out == "mnist_flax is installed already\n"


def test_the_lines_of_pip_are_shown_and_its_failure_stops(notebook, monkeypatch, clone, capsys):
    with pytest.raises(SystemExit, match="pip failed"):
        install(notebook, monkeypatch, {}, code=1)
    assert capsys.readouterr().out == "Collecting\nInstalling\n"


def test_a_restart_is_requested_only_if_loaded_packages_changed(notebook, monkeypatch, clone):
    before = {"jax": "0.10.1", "numpy": "2.0.2", "unloaded": "1"}
    install(notebook, monkeypatch, before, before | {"unloaded": "2", "new": "1"})
    after = before | {"numpy": "2.4.6", "mnist-flax": "0.1.0"}
    names: dict[str, Any] = {}
    with pytest.raises(SystemExit, match=r"Restart session.*\['numpy'\] changed"):
        install(notebook, monkeypatch, before, after, names=names)
    with pytest.raises(SystemExit, match="Restart session"):  # still the same session
        install(notebook, monkeypatch, after, names=names)
    assert install(notebook, monkeypatch, after) == []  # a new one


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with the package's pyproject.toml, which the notebook is in."""
    folder = tmp_path / "clone"
    folder.mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    monkeypatch.chdir(folder)
    return folder


def install(notebook, monkeypatch, before, after=None, code=0, names=None):
    """The commands that the cells run; pip changes the installed versions from before to after."""
    commands = []

    class Pip:
        returncode, stdout = code, ("Collecting\n", "Installing\n")

        def __init__(self, command, **_):
            commands.append(command)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def versions():
        current = after if commands and after else before
        return [SimpleNamespace(name=name, version=current[name]) for name in current]

    monkeypatch.setattr("importlib.metadata.distributions", versions)
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"numpy": ["numpy"]})
    monkeypatch.setattr("subprocess.Popen", Pip)
    run_cells(notebook, "install", {} if names is None else names)
    return commands


def test_only_public_modules_are_imported(notebook):
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    imported = set()
    for node in (node for source in code for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in imported if name.startswith("mnist_flax")}
    assert {name for name in ours if not name.startswith("mnist_flax.core.")} == {
        "mnist_flax.load",
        "mnist_flax.run",
        "mnist_flax.export",
        "mnist_flax.data.dataset.load_dataset",
    }
    assert not [name for name in ours if "._" in name]


def test_the_drawing_pad_comes_last(notebook):
    assert tagged(notebook, "pad")[-1] == len(notebook.cells) - 1


def test_the_stored_notebook_is_small_and_names_no_machine_paths(notebook):
    nbformat.validate(notebook)
    text = NOTEBOOK.read_text()
    assert len(text) < 300_000
    for machine in ("/tmp/", "/home/", "/root/", "/Users/", "/mnt/", "site-packages"):
        assert machine not in text
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # one whole run
    for cell in code:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) < 15
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
