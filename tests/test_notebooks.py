"""Every notebook in examples/ runs, from a clean kernel, on the real model, without a word on stderr; and is short and
without old outputs."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra test)")
ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def test_there_are_five():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_quick_start",
        "02_which_layer_which_strength",
        "03_two_safety_vectors",
        "04_only_when_asked",
        "05_is_it_the_vector",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_short_and_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert 8 <= len(notebook.cells) < 25
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, "strip the outputs"
            assert len(cell.source.splitlines()) <= 20
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert path.stat().st_size < 20_000


@pytest.mark.docs
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq.*", "ignore::DeprecationWarning:jupyter_client.*")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_a_clean_kernel(demo, path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    # The kernel inherits this: the other test process wants a core too.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")
    assert not said, said  # JupyterLab shows it on red
    assert any("image/png" in output.get("data", {}) for output in outputs)
    bars = [output.data["text/plain"] for output in outputs if list(output.get("data", {})) == ["text/plain"]]
    assert bars and not any(bars), "what is left of a bar on the page is empty"
