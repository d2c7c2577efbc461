"""The plan of a recipe: one row per stage, estimated without running it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from haystack_distill import DistilError, Reader
from haystack_distill.data.squad.load import load_examples
from haystack_distill.recipes.plan import _sample_of, plan_recipe
from haystack_distill.recipes.runner import run_recipe
from haystack_distill.recipes.schema import load_recipe
from tests.conftest import squad_content

QUICK = {"batch_size": 4, "learning_rate": 1e-3}


@pytest.fixture
def write(tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe of these stages and returns its path."""
    tiny_reader().save(tmp_path / "teacher")

    def recipe(*stages: dict[str, Any], **more: Any) -> Path:
        content = {
            "teacher": str(tmp_path / "teacher"),
            "data": str(squad_file),
            "output_dir": str(tmp_path / "out"),
            "cache_dir": str(tmp_path / "cache"),
            "device": "cpu",
            "precision": "fp32",
            "max_seq_len": 48,
            "max_query_length": 16,
            "student": {"layers": 1},
            "stages": [QUICK | stage for stage in stages],
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content | more))
        return path

    return recipe


@pytest.mark.slow
def test_the_plan_is_what_the_run_does(write: Callable[..., Path], squad_file: Path, tmp_path: Path) -> None:
    corpus = {"max_seq_len": 24, "buffer_windows": 16}
    augment = {"multiplication_factor": 3, "tagger": "textblob"}
    path = write(
        {"name": "general", "method": "intermediate_layers", "corpus": corpus, "max_steps": 5},
        {"name": "layers", "method": "intermediate_layers", "augment": augment, "n_epochs": 1},
        {"name": "answers", "method": "prediction_layer", "n_epochs": 2, "keep_best": "true"},
        dev_data=str(squad_file),
        labels_only="true",
    )
    recipe = load_recipe(path)
    plan = {stage.name: stage for stage in plan_recipe(recipe)}
    assert not (tmp_path / "out").exists()
    result = run_recipe(recipe, progress=False)
    assert list(plan) == list(result.steps) == ["1-general", "2-layers", "3-answers", "labels-only"]
    assert plan["1-general"].steps == result.steps["1-general"] == 5
    assert plan["1-general"].windows == 20
    assert plan["3-answers"].steps == result.steps["3-answers"]
    assert plan["2-layers"].steps >= result.steps["2-layers"]  # some questions have too few variants
    assert plan["2-layers"].examples == 24
    assert plan["labels-only"].steps == sum(stage.steps for stage in plan.values()) / 2
    assert all(stage.seconds >= 0 for stage in plan.values())
    assert plan["3-answers"].cache_megabytes > 0
    json.dumps([vars(stage) for stage in plan.values()])


def test_a_stage_whose_phases_end_by_evaluations(write: Callable[..., Path], squad_file: Path) -> None:
    adaptation = {"name": "gradual_unfreezing", "phase_patience": 1}
    path = write(
        {"name": "a", "method": "labels", "adaptation": adaptation, "evaluate_every": 1, "n_epochs": 1},
        dev_data=str(squad_file),
    )
    assert [stage.name for stage in plan_recipe(load_recipe(path))] == ["1-a"]


def test_a_stage_that_would_end_before_its_first_evaluation(write: Callable[..., Path], squad_file: Path) -> None:
    best = {"name": "a", "method": "labels", "keep_best": True, "evaluate_every": 900, "n_epochs": 1}
    with pytest.raises(DistilError, match=r"stage a: evaluate_every=900 comes after the last of the \d+ steps"):
        plan_recipe(load_recipe(write(best, dev_data=str(squad_file))))


def test_the_sample_has_both_kinds_of_rows(tmp_path: Path) -> None:
    content = squad_content(repeat=60)
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                question["labelled"] = question["id"] != "q3-1"
    path = tmp_path / "nearly-all.json"
    path.write_text(json.dumps(content))
    examples = load_examples(path)
    labelled = examples.select(_sample_of(examples))["labelled"]
    assert labelled.count(False) == 1
    assert len(labelled) == 201


def test_teachers_that_are_not_made_yet(write: Callable[..., Path], tmp_path: Path) -> None:
    """A stage that learns from an earlier one is timed with a stand-in of its shape; several teachers are added up."""
    answers = {"name": "answers", "method": "prediction_layer", "max_steps": 2}
    again = {"name": "again", "method": "intermediate_layers", "teacher": "answers", "max_steps": 3}
    both = {"name": "both", "method": "prediction_layer", "teacher": ["again", str(tmp_path / "teacher")]}
    plan = plan_recipe(load_recipe(write(answers, again, both | {"max_steps": 4})))
    assert [(stage.name, stage.steps) for stage in plan] == [("1-answers", 2), ("2-again", 3), ("3-both", 4)]
    assert plan[2].cache_megabytes > plan[0].cache_megabytes > plan[1].cache_megabytes


def test_what_is_wrong_with_a_later_stage_is_known_before_the_first_is_timed(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haystack_distill.recipes.plan._on_data", None)
    answers = {"name": "answers", "method": "prediction_layer", "max_steps": 2}
    mapping = {"name": "layers", "method": {"name": "intermediate_layers", "layer_mapping": [9]}}
    with pytest.raises(DistilError, match="stage layers: layer_mapping contains 9"):
        plan_recipe(load_recipe(write(answers, mapping)))
