"""The notebooks run from top to bottom, offline, on a little of the sample, each in an environment that it is for.

In IPython, but without a kernel: kernels that start at the same time take each other's ports.
"""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from haystack_distill.recipes.template import template
from tests.conftest import IS_FARM

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = ROOT / "tutorials"
RUN = """
import sys
import nbformat
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in nbformat.read(sys.argv[1], as_version=4).cells:
    if cell.cell_type == "code":
        shell.run_cell(cell.source).raise_error()
"""
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
# The pipelines' notebook runs with both Haystacks; the others need none, and run in one of the environments.
RUN_HERE = [path for path in NOTEBOOKS if path.name[0] in ("23" if IS_FARM else "013")]


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN_HERE, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells), "store the notebook with its outputs"
    own = {"TUTORIAL_QUESTIONS": "12", "TMPDIR": temporary, "IPYTHONDIR": tmp_path / "ipython", "PYTHONPATH": ROOT}
    done = subprocess.run(
        [sys.executable, "-c", RUN, path],
        cwd=here,
        env=os.environ | {"MPLBACKEND": "agg"} | {name: str(value) for name, value in own.items()},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
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


def test_the_stored_recipe_is_what_init_writes() -> None:
    notebook = nbformat.read(TUTORIALS / "2_the_three_step_recipe.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if cell.source.endswith("print(template())")]
    assert cell.outputs[0].text == template() + "\n"
