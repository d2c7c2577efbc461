"""The notebooks run from top to bottom, offline, on a little of the sample, each in an environment that it is for."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import IS_FARM

TUTORIALS = Path(__file__).resolve().parent.parent / "tutorials"


NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
# The pipelines' notebook runs with both Haystacks; the others need none, and run in one of the environments.
RUN_HERE = [path for path in NOTEBOOKS if path.name[0] in ("23" if IS_FARM else "013")]


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN_HERE, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("TUTORIAL_QUESTIONS", "12")
    monkeypatch.setenv("TMPDIR", str(temporary))
    notebook = nbformat.read(path, as_version=4)
    stored = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in stored), "store the notebook with its outputs"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(here)}}).execute()
    assert not list(here.iterdir()), "a notebook writes to its temporary directory only"
    assert list(temporary.glob("tutorial-*/**/model.safetensors"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not [cell.source for cell in notebook.cells if cell.source.isupper()], "a placeholder"
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    printed = "\n".join(str(output.get("text", output.get("data", {}).get("text/plain"))) for output in outputs)
    for unwanted in (str(TUTORIALS.parent), "/tmp/", "{'loss':", "Warning"):
        assert unwanted not in printed
