"""The notebook for Colab: run as a whole, its installation, its drawing pad, its stored outputs."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import PIL
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mnist_flax import demo, load
from tests.conftest import STROKES, read_summary

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "experiments" / "mnist_colab.ipynb"
SMALL = 'DATASET, EPOCHS, SEEDS, DRIVE = "digits", 2, 3, False'


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


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(notebook, clean, tmp_path, monkeypatch):
    """Outside Colab and the checkout, with settings injected as papermill injects them."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    argv = [str(clean / "bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"display_name": "clean", "language": "python", "argv": argv}
    (tmp_path / "jupyter/kernels/clean").mkdir(parents=True)
    (tmp_path / "jupyter/kernels/clean/kernel.json").write_text(json.dumps(kernel))
    print_location = "import mnist_flax; print(mnist_flax.__file__)"
    notebook.cells.append(nbformat.v4.new_code_cell(print_location))
    (index,) = tagged(notebook, "parameters")
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(SMALL))
    resources = {"metadata": {"path": str(tmp_path)}}
    settings = {"timeout": 600, "kernel_name": "clean", "resources": resources}
    nbclient.NotebookClient(notebook, **settings).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "mnist_flax is installed already" in text
    assert text.splitlines()[-1].startswith(str(clean))
    assert text.count("epoch 1/2") == text.count("epoch 2/2") == 2
    stopped = "stopped by SIGINT, saved at step 23; the same command resumes from there\n"
    assert f"{stopped}resuming from step 23 of 46" in text
    assert text.count("which is finished") == 1
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 4
    runs = tmp_path / "mnist_flax_runs"
    assert read_summary(runs / "digits_2_epochs")["epochs"] == 2
    assert len(read_summary(runs / "digits_3_seeds")["test_accuracy"]["per_seed"]) == 3
    assert read_summary(runs / "digits_stopped")["steps"] == 46
    assert (runs / "model.onnx").is_file()


GPU = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt")
TPU = ("jax", "jaxlib", "libtpu")


@pytest.mark.parametrize(
    ("installed", "requirements"),
    [
        (dict.fromkeys(GPU, "0.10.1"), [f"{name}==0.10.1" for name in GPU]),
        (dict.fromkeys(TPU, "0.11.3"), [f"{name}==0.11.3" for name in TPU]),
        (dict.fromkeys(GPU, "0.7.2"), ["jax[cuda12]>=0.10.0,<0.12"]),
        (dict.fromkeys(TPU, "0.12.0"), ["jax[tpu]>=0.10.0,<0.12"]),
        ({"jax": "0.9.2"}, ["jax[]>=0.10.0,<0.12"]),
        ({}, ["jax[]>=0.10.0,<0.12"]),
    ],
)
def test_a_compatible_jax_is_kept(notebook, monkeypatch, installed, requirements):
    commands = install(notebook, monkeypatch, installed, installed, "git+https://host/name")
    assert [command[1:] for command in commands] == [
        ["-m", "pip", "install", "-q", "mnist-flax[export] @ git+https://host/name", *requirements]
    ]
    for requirement in commands[0][5:]:
        Requirement(requirement)


def test_a_restart_is_requested_only_if_loaded_packages_changed(notebook, monkeypatch):
    before = {"jax": "0.10.1", "numpy": "2.0.2", "unloaded": "1"}
    install(notebook, monkeypatch, before, before | {"unloaded": "2", "new": "1"}, "git+file:///x")
    with pytest.raises(SystemExit, match=r"Restart session.*\['numpy'\] changed"):
        install(notebook, monkeypatch, before, before | {"numpy": "2.4.6"}, "git+file:///x")


def test_the_repository_must_be_set(notebook, monkeypatch):
    (index,) = tagged(notebook, "repository")
    names: dict[str, str] = {}
    exec(notebook.cells[index].source, names)
    with pytest.raises(SystemExit, match="REPOSITORY"):
        install(notebook, monkeypatch, {"jax": "0.10.1"}, {}, names["REPOSITORY"])


def install(notebook, monkeypatch, before, after, repository):
    """The commands that the cells run; pip changes the installed versions from before to after."""
    commands = []

    def versions():
        current = after if commands else before
        return [SimpleNamespace(name=name, version=current[name]) for name in current]

    def pip(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("importlib.metadata.distributions", versions)
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"numpy": ["numpy"]})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", pip)
    names = run_cells(notebook, "install", {"REPOSITORY": repository})
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies = [Requirement(text) for text in project["dependencies"]]
    assert {r.name: r.specifier for r in dependencies}["jax"] == SpecifierSet(names["JAX"])
    return commands


@pytest.mark.nightly
def test_digits_drawn_on_the_pad_are_recognized(notebook, browser, reader, monkeypatch):
    """In a browser with a substitute for the functions of Colab that the cells call."""
    functions, pages = {}, []
    colab: Any = ModuleType("google.colab")
    colab.output = SimpleNamespace(register_callback=functions.__setitem__)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    names = {"answer": demo.answerer(load(reader)), "PIL": PIL, "sys": sys}
    run_cells(notebook, "pad", names | {"display": pages.append})
    page = browser.new_page()
    page.expose_function(
        "ask", lambda name, arguments: {"application/json": functions[name](*arguments).data}
    )
    page.evaluate(
        "google = {colab: {kernel: {invokeFunction:"
        " async (name, arguments, _) => ({data: await ask(name, arguments)})}}}"
    )
    page.evaluate("html => document.write(html)", pages[0].data)
    box = page.locator("canvas").bounding_box()
    for digit, points in STROKES.items():
        for index, (x, y) in enumerate(points):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=10)
            if index == 0:
                page.mouse.down()
        page.mouse.up()
        page.wait_for_selector(f"h2:has-text('{digit}')", timeout=30_000)
        page.get_by_role("button", name="Clear").click()
    page.close()


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
