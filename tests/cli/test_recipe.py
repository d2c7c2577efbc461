"""The commands `recipe`, `report` and `push`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from haystack_distill import Reader, WindowSettings
from tests.cli.command_line import refusal, run, run_json


@pytest.fixture
def recipe_file(teacher_dir: Path, squad_file: Path, tmp_path: Path) -> Path:
    """A recipe of one short stage."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"teacher: {teacher_dir}\ndata: {squad_file}\ndev_data: {squad_file}\noutput_dir: {tmp_path / 'out'}\n"
        "device: cpu\nprecision: fp32\nmax_seq_len: 48\ndoc_stride: 16\nmax_query_length: 16\n"
        "student: {layers: 2}\nstages: [{name: answers, method: prediction_layer, max_steps: 2, batch_size: 4}]\n"
    )
    return path


@pytest.mark.slow
def test_recipe(recipe_file: Path, tmp_path: Path) -> None:
    plan = run_json("recipe", "--config", recipe_file, "--dry-run")
    assert [stage["name"] for stage in plan["plan"]] == ["1-answers"]
    assert plan["plan"][0]["steps"] == 2
    assert not (tmp_path / "out").exists()
    shown = run("recipe", "--config", recipe_file, "--dry-run").stdout
    assert "1-answers" in shown
    assert "optimiser steps" in shown
    told = run_json("recipe", "--config", recipe_file, "--no-progress")
    assert told["steps"] == {"1-answers": 2}
    assert Path(told["directory"]) == tmp_path / "out" / "reader"
    assert "student" in told["metrics"]
    shutil.copytree(told["directory"], tmp_path / "again")
    page = run_json("report", told["directory"], tmp_path / "again", "--output", tmp_path / "both")
    assert Path(page["page"]) == tmp_path / "both" / "report.html"


def test_recipe_init_writes_what_recipe_reads(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    assert run("recipe", "init", "--output", path).exit_code == 0
    assert "train.json: no such file" in refusal("recipe", "--config", path)  # it is the user's to give
    assert "exists" in refusal("recipe", "init", "--output", path)
    path.write_text("mine")
    assert run("recipe", "init", "--output", path, "--overwrite").exit_code == 0
    assert "mine" not in path.read_text()


def test_recipe_init_looks_at_data_and_teacher(
    squad_file: Path, tiny_reader: Callable[..., Reader], tmp_path: Path
) -> None:
    teacher = tiny_reader().save(tmp_path / "looked-at")
    path = tmp_path / "recipe.yaml"
    assert run("recipe", "init", "--data", squad_file, "--teacher", teacher, "--output", path).exit_code == 0
    written = path.read_text()
    assert "8 questions" in written
    assert "4 layers, 2 heads" in written
    read = yaml.safe_load(written.replace("# doc_stride", "doc_stride"))
    assert read["doc_stride"] == WindowSettings(read["max_seq_len"]).doc_stride != 128
    assert "no such file" in refusal("recipe", "init", "--data", "absent.json", "--output", tmp_path / "other.yaml")
    assert not (tmp_path / "other.yaml").exists()


def test_recipe_refusals(recipe_file: Path, tmp_path: Path) -> None:
    assert "recipe init" in refusal("recipe")
    assert "--push-to-hub" in refusal("recipe", "--config", recipe_file, "--private")
    init = ["init", "--output", tmp_path / "new.yaml"]
    assert "--dry-run has no effect before init" in refusal("recipe", "--dry-run", *init)
    assert "--config has no effect before init" in refusal("recipe", "--config", recipe_file, *init)
    assert not (tmp_path / "new.yaml").exists()
    assert "leave out one" in refusal("recipe", "--config", recipe_file, "--dry-run", "--push-to-hub", "me/it")
    recipe_file.write_text(recipe_file.read_text().replace("teacher:", "techer:"))
    assert "did you mean 'teacher'" in refusal("recipe", "--config", recipe_file)
    assert "report.json" in refusal("report", tmp_path, recipe_file.parent / "other")
    assert "not the directory of a reader" in refusal("push", tmp_path, "me/it")


def test_a_finished_recipe_is_uploaded(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from haystack_distill.reporting import model_card as card

    sent = []
    monkeypatch.setattr(card, "push_to_hub", lambda *given, **named: sent.append((given, named)) or "https://hub/me/it")
    told = run_json("recipe", "--config", recipe_file, "--no-progress", "--push-to-hub", "me/it", "--private")
    assert told["repository"] == "https://hub/me/it"
    assert sent == [((tmp_path / "out" / "reader", "me/it"), {"private": True})]
    assert run("push", tmp_path / "out" / "reader", "me/it").stdout == "https://hub/me/it\n"
    assert sent[1][1] == {"private": None}


@pytest.mark.parametrize("adaptation", ["adapters", "{name: lora, save_only_trained: true}"])
def test_a_recipe_whose_reader_cannot_be_uploaded_does_not_begin(
    recipe_file: Path, tmp_path: Path, adaptation: str
) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("max_steps: 2", f"max_steps: 2, adaptation: {adaptation}"))
    asked = refusal("recipe", "--config", recipe_file, "--no-progress", "--push-to-hub", "me/it")
    assert "a reader on the hub needs all weights" in asked
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["teacher", "student.start_from", "stages.teacher"])
def test_a_recipe_names_a_broken_model(
    recipe_file: Path, tiny_reader: Callable[..., Reader], tmp_path: Path, place: str
) -> None:
    broken = tiny_reader().save(tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": {"AutoModel": "own.M"}}))
    recipe = yaml.safe_load(recipe_file.read_text())
    (tmp_path / "corpus.txt").write_text("Ada wrote it.\n" * 9)
    changed: dict[str, Any] = {"teacher": str(broken)}
    if place == "student.start_from":
        changed = {"student": {"start_from": str(broken)}}
    elif place == "stages.teacher":
        general = {"name": "general", "method": "intermediate_layers", "corpus": str(tmp_path / "corpus.txt")}
        changed = {"stages": [general | {"max_steps": 1, "teacher": str(broken)}]}
    recipe_file.write_text(yaml.safe_dump(recipe | changed))
    for dry_run in ([], ["--dry-run"]):
        assert "code of its own" in refusal("recipe", "--config", recipe_file, *dry_run)
