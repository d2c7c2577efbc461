"""The command `compare`."""

from pathlib import Path

import pytest

from haystack_distill.recipes import compare
from haystack_distill.recipes.arm import run_job
from tests.cli.command_line import WINDOWS, refusal, run, run_json


@pytest.fixture
def options(teacher_dir: Path, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A comparison of a few steps, its jobs done in this process."""

    def here(directory: Path, *_: object) -> int:
        run_job(directory)
        return 0

    monkeypatch.setattr(compare, "run_in_own_process", here)
    data = ["--data", squad_file, "--dev-data", squad_file, "--output-dir", tmp_path / "out"]
    how = ["--max-steps", "2", "--batch-size", "4", "--device", "cpu", "--precision", "fp32", "--no-progress"]
    return ["compare", "--teacher", teacher_dir, "--layers", "2", "--no-int8", *data, *how, *WINDOWS]


def test_compare(options: list[object], tmp_path: Path) -> None:
    arms = tmp_path / "arms.yaml"
    arms.write_text("two: [{method: intermediate_layers}, {method: prediction_layer}]\n")
    given = [*options, "--methods", "labels", "--arms", arms, "--seeds", "2"]
    plan = run_json(*given, "--dry-run")["plan"]
    assert [arm["stages"] for arm in plan] == [{"train": 2}, {"stage-1": 1, "stage-2": 1}]
    printed = run(*given, "--dry-run").stdout
    assert "stage-1 1, stage-2 1" in printed
    assert not (tmp_path / "out").exists()
    found = run_json(*given)
    assert found["failed"] == []
    assert [row["name"] for row in found["rows"]] == ["teacher", "labels", "two"]
    assert found["rows"][2]["seeds"] == [42, 43]
    printed = run(*given).stdout  # nothing is trained again
    assert "Difference to labels" in printed
    assert "paired bootstrap" in printed
    (tmp_path / "out" / "arms" / "two" / "seed-42" / "arm.json").write_text("{")
    assert "remove" in refusal(*given)


def test_a_grid_and_settings(options: list[object]) -> None:
    grid = ["--grid", "temperature=1,2", "--grid", "learning-rate=1e-4,3e-4"]
    plan = run_json(*options, "--methods", "labels,prediction_layer", *grid, "--dry-run")["plan"]
    assert [len(arm["candidates"]) for arm in plan] == [2, 4]
    assert plan[1]["candidates"][0] == {"temperature": "1", "learning_rate": "1e-4"}


def test_grids_of_a_file(options: list[object], tmp_path: Path) -> None:
    config = tmp_path / "compare.yaml"
    config.write_text("grid:\n  - temperature=1,2\n  - learning_rate=1e-4,3e-4\n")
    given = [*options, "--methods", "prediction_layer", "--dry-run", "--config", config]
    assert len(run_json(*given)["plan"][0]["candidates"]) == 4


def test_refusals(options: list[object]) -> None:
    assert "give --methods" in refusal(*options)
    labels = [*options, "--methods", "labels"]
    assert "did you mean 'labels'" in refusal(*options, "--methods", "labls")
    assert "--n-epochs has no effect with --max-steps" in refusal(*labels, "--n-epochs", "3")
    assert "held_out has an effect with a grid only" in refusal(*labels, "--held-out", "0.5")
    assert "write OPTION=VALUE" in refusal(*labels, "--grid", "learning_rate")
    assert "is given twice" in refusal(*labels, "--grid", "batch_size=1", "--grid", "batch_size=2")
    assert "no arm takes temperature" in refusal(*labels, "--grid", "temperature=1,2")


def test_a_failed_arm_is_an_error_after_the_table(options: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    here = compare.run_in_own_process
    monkeypatch.setattr(
        compare, "run_in_own_process", lambda path, *rest: 1 if "prediction" in str(path) else here(path, *rest)
    )
    result = run(*options, "--methods", "labels,prediction_layer")
    assert result.exit_code == 2
    assert "labels" in result.stdout
    assert "prediction_layer, seed 42 failed" in " ".join(result.stderr.split())


def test_an_interruption_ends_in_how_to_resume(options: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "run_in_own_process", interrupt)
    result = run(*options, "--methods", "labels")
    assert result.exit_code == 130
    assert "The same command resumes the comparison." in " ".join(result.stderr.split())
