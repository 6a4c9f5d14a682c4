"""The notebook for Colab: as a whole, its installation, its pad, and what is stored of it."""

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

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "experiments" / "mnist_colab.ipynb"
SMALL = 'DATASET, EPOCHS, SEEDS, DRIVE = "digits", 2, 3, False'


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def tagged(notebook, tag):
    """The places of the cells with a tag, of which there are some."""
    cells = enumerate(notebook.cells)
    places = [place for place, cell in cells if tag in cell.metadata.get("tags", ())]
    assert places
    return places


def run_cells(notebook, tag, names):
    """Runs the cells with a tag in this process, as if those before had left these names."""
    for place in tagged(notebook, tag):
        exec(compile(notebook.cells[place].source, tag, "exec"), names)
    return names


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, clean, tmp_path, monkeypatch):
    """Outside Colab and the checkout, with other settings in the way that papermill gives them."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    argv = [str(clean / "bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"display_name": "clean", "language": "python", "argv": argv}
    (tmp_path / "jupyter/kernels/clean").mkdir(parents=True)
    (tmp_path / "jupyter/kernels/clean/kernel.json").write_text(json.dumps(kernel))
    where_from = "import mnist_flax; print(mnist_flax.__file__)"
    notebook.cells.append(nbformat.v4.new_code_cell(where_from))
    (place,) = tagged(notebook, "parameters")
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SMALL))
    where = {"metadata": {"path": str(tmp_path)}}
    settings = {"timeout": 600, "kernel_name": "clean", "resources": where}
    nbclient.NotebookClient(notebook, **settings).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "mnist_flax is installed already" in said
    assert said.splitlines()[-1].startswith(str(clean))
    assert said.count("epoch 1/2") == said.count("epoch 2/2") == 2
    assert "stopped by SIGINT, saved at step 23\ngoing on from step 23 of 46" in said
    assert said.count("finished already") == 1
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(shown) == 4
    runs = tmp_path / "mnist_flax_runs"
    assert read_summary(runs / "digits_2_epochs")["epochs"] == 2
    assert len(read_summary(runs / "digits_3_seeds")["test_accuracy"]["per_seed"]) == 3
    assert read_summary(runs / "digits_stopped")["steps"] == 46
    assert (runs / "model.onnx").is_file()


GPU = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt")
TPU = ("jax", "jaxlib", "libtpu")


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (dict.fromkeys(GPU, "0.10.1"), [f"{name}==0.10.1" for name in GPU]),
        (dict.fromkeys(TPU, "0.11.3"), [f"{name}==0.11.3" for name in TPU]),
        (dict.fromkeys(GPU, "0.7.2"), ["jax[cuda12]>=0.10.0,<0.12"]),
        (dict.fromkeys(TPU, "0.12.0"), ["jax[tpu]>=0.10.0,<0.12"]),
        ({"jax": "0.9.2"}, ["jax[]>=0.10.0,<0.12"]),
        ({}, ["jax[]>=0.10.0,<0.12"]),
    ],
)
def test_a_jax_that_can_be_used_stays(notebook, monkeypatch, there, wanted):
    commands = install(notebook, monkeypatch, there, there, "git+https://host/name")
    assert [command[1:] for command in commands] == [
        ["-m", "pip", "install", "-q", "mnist-flax[export] @ git+https://host/name", *wanted]
    ]
    for requirement in commands[0][5:]:
        Requirement(requirement)


def test_a_restart_is_asked_for_only_where_it_is_needed(notebook, monkeypatch):
    before = {"jax": "0.10.1", "numpy": "2.0.2", "unloaded": "1"}
    install(notebook, monkeypatch, before, before | {"unloaded": "2", "new": "1"}, "git+file:///x")
    with pytest.raises(SystemExit, match=r"Restart session.*\['numpy'\] changed"):
        install(notebook, monkeypatch, before, before | {"numpy": "2.4.6"}, "git+file:///x")


def test_the_repository_has_to_be_named(notebook, monkeypatch):
    (place,) = tagged(notebook, "repository")
    names: dict[str, str] = {}
    exec(notebook.cells[place].source, names)
    with pytest.raises(SystemExit, match="REPOSITORY"):
        install(notebook, monkeypatch, {"jax": "0.10.1"}, {}, names["REPOSITORY"])


def install(notebook, monkeypatch, before, after, repository):
    """The commands by which the cells install, where pip turns one set of versions into another."""
    commands = []

    def versions():
        found = after if commands else before
        return [SimpleNamespace(name=name, version=found[name]) for name in found]

    def pip(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("importlib.metadata.distributions", versions)
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"numpy": ["numpy"]})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", pip)
    names = run_cells(notebook, "install", {"REPOSITORY": repository})
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = [Requirement(text) for text in project["dependencies"]]
    assert {r.name: r.specifier for r in ours}["jax"] == SpecifierSet(names["JAX"])
    return commands


@pytest.mark.slow
def test_what_is_drawn_on_the_pad_is_read(notebook, browser, reader, monkeypatch):
    """In a browser that has of Colab what the cells use."""
    functions, pages = {}, []
    colab: Any = ModuleType("google.colab")
    colab.output = SimpleNamespace(register_callback=functions.__setitem__)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    names = {"answer": demo.answerer(load(reader)), "PIL": PIL, "sys": sys}
    run_cells(notebook, "pad", names | {"display": pages.append})
    page = browser.new_page()
    page.expose_function(
        "ask", lambda name, given: {"application/json": functions[name](*given).data}
    )
    page.evaluate(
        "google = {colab: {kernel: {invokeFunction:"
        " async (name, given, named) => ({data: await ask(name, given)})}}}"
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


def test_what_is_stored_is_small_and_tells_nothing_of_a_machine(notebook):
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
