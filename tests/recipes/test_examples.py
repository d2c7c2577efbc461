"""The files of examples/recipes run; so does what `recipe init` writes, which looks at data and teacher."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

from haystack_distill import Reader
from haystack_distill.data.sample import sample_path
from haystack_distill.data.squad.load import load_examples, write_squad
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.recipes.runner import run_recipe
from haystack_distill.recipes.schema import load_recipe
from haystack_distill.recipes.template import template

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "recipes").glob("*.yaml"))


def small(content: dict[str, Any], models: dict[str, Path], squad_file: Path, directory: Path) -> dict[str, Any]:
    """A recipe with a tiny teacher and student, little data and text, and two optimiser steps a stage.

    JSON lines stay what their comments say: columns question and context.

    Args:
        content: The recipe.
        models: A tiny "reader" and "language model".
        squad_file: The data.
        directory: Where its output and cache go.
    """
    teacher = models["reader"]
    names = [stage["name"] for stage in content["stages"]]
    unlabelled = directory / "unlabelled.jsonl"
    rows = load_examples(squad_file).select_columns(["question", "context"]).to_list()
    unlabelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = []
    for stage in content["stages"]:
        stage = {key: value for key, value in stage.items() if key != "n_epochs"}
        stage |= {"max_steps": 2, "batch_size": 2}
        if "corpus" in stage:
            stage["corpus"] = {"max_seq_len": 24, "buffer_windows": 8}
        for key in {"data", "transfer"} & stage.keys():
            stage[key] = str(unlabelled if stage[key] == unlabelled.name else squad_file)
        if "sources" in stage:
            stage["sources"] = [
                source | {"data": str(squad_file), "teacher": "none" if source["teacher"] == "none" else str(teacher)}
                for source in stage["sources"]
            ]
        if isinstance(stage.get("student"), dict) and "layers" in stage["student"]:
            stage["student"] = stage["student"] | {"layers": 1}
        if "augment" in stage:
            stage["augment"] = {
                "multiplication_factor": stage["augment"]["multiplication_factor"],
                "tagger": "textblob",
            }
        teachers = stage.get("teacher", [])
        if "corpus" in stage and teachers:
            teachers = []
            stage["teacher"] = str(models["language model"])
        if isinstance(teachers, list) and teachers:
            stage["teacher"] = [str(teacher)] * len(teachers)
        elif isinstance(teachers, str) and teachers not in names:
            stage["teacher"] = str(teacher)
        stages.append(stage)
    student = content["student"]
    if isinstance(student, str):
        student = str(models["language model"])
    elif "bilstm" in student:
        student = {"bilstm": student["bilstm"] | {"units": 8}}
    elif "early_exit" in student:
        student = {"early_exit": True, "branch_size": 4}
    else:
        layers = 3 if student.get("layers") == 3 else 2  # where each layer has a stage, all of them
        student = {"layers": layers} if "layers" in student else {"num_hidden_layers": 2, "hidden_size": 16}
    return content | {
        "teacher": str(teacher),
        "data": str(squad_file),
        "dev_data": str(squad_file),
        "output_dir": str(directory / "out"),
        "cache_dir": str(directory / "cache"),
        "max_seq_len": 48,
        "max_query_length": 16,
        "precision": "fp32",
        "device": "cpu",
        "student": student,
        "stages": stages,
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_loads(path: Path) -> None:
    assert load_recipe(path).output_dir == path.stem


@pytest.fixture
def models(tiny_reader: Callable[..., Reader], tokenizer: BertTokenizerFast, tmp_path: Path) -> dict[str, Path]:
    """A tiny reader, and a language model of its shape."""
    reader = tiny_reader(num_hidden_layers=3)
    torch.manual_seed(0)
    language_model = LanguageModel(BertForMaskedLM(BertConfig(**reader.model.config.to_diff_dict())), tokenizer)
    return {
        "reader": reader.save(tmp_path / "teacher"),
        "language model": language_model.save(tmp_path / "language-model"),
    }


# What a recipe does depends on no Haystack, so every second one runs in each environment; the template in both.
HALVES = [
    pytest.param(path, marks=pytest.mark.only_in(("farm", "haystack")[number % 2]))
    for number, path in enumerate(EXAMPLES)
]


@pytest.mark.slow
@pytest.mark.parametrize("path", [*HALVES, None], ids=lambda path: path.stem if path else "template")
def test_an_example_runs(path: Path | None, models: dict[str, Path], squad_file: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(template() if path is None else path.read_text())
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(small(content, models, squad_file, tmp_path)))
    result = run_recipe(load_recipe(file), progress=False, measure=path is None)  # figures take longer than the steps
    stages = [f"{number}-{stage['name']}" for number, stage in enumerate(content["stages"], start=1)]
    assert [name for name in result.steps if name != "labels-only"] == stages
    assert min(result.steps.values()) == 2
    assert (result.directory / "model.safetensors").exists()
    heads = [source["head"] for source in content["stages"][-1].get("sources", ()) if "head" in source]
    assert all((result.directory / "heads" / head / "model.safetensors").exists() for head in heads)


def test_the_three_stages_of_haystack() -> None:
    general, layers, answers = load_recipe(next(path for path in EXAMPLES if "three" in path.stem)).stages
    assert general.corpus is not None
    assert layers.augment is not None
    assert layers.augment.multiplication_factor == 20
    assert answers.data is answers.augment is None


# --- what `recipe init` writes ---------------------------------------------------------------------------------------


def written(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert all(len(line) <= 120 for line in text.splitlines()[:4])
    return load_recipe(path)


def test_the_plain_template(tmp_path: Path) -> None:
    recipe = written(tmp_path, template())
    assert [stage.name for stage in recipe.stages] == ["general", "layers", "answers"]
    assert (recipe.data, recipe.dev_data) == (["train.json"], ["dev.json"])
    # What is commented out can be used as it stands.
    own = [line.removeprefix("# ") for line in template().splitlines() if line.startswith("# ") and ":  " in line]
    changed = template() + "\n".join(line for line in own if line.split(":")[0].isidentifier())
    defaults = written(tmp_path, changed)
    assert (defaults.seed, defaults.windows, defaults.labels_only) == (recipe.seed, recipe.windows, False)


def test_a_template_for_data_and_teacher(tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path) -> None:
    teacher = tiny_reader().save(tmp_path / "teacher")
    text = template(str(squad_file), str(teacher))
    assert "8 questions, 100% labelled, 12% unanswerable" in text
    assert "a teacher that was trained on such questions" in text
    assert "bert, 4 layers, 2 heads" in text
    assert "the teacher has no more positions" in text
    recipe = written(tmp_path, text)
    assert (recipe.teacher, recipe.data, recipe.dev_data) == (str(teacher), [str(squad_file)], None)
    assert (recipe.student.pruned.layers, recipe.student.pruned.intermediate_size) == (3, 12)
    assert recipe.windows.max_seq_len == 128
    assert recipe.stages[1].augment.multiplication_factor == 20
    assert recipe.stages[0].settings.max_steps == 100
    assert recipe.stages[1].method.attention_loss_weight == 0
    assert [stage.settings.learning_rate for stage in recipe.stages] == [3e-4, 1e-3, 3e-4]
    wide = tiny_reader(hidden_size=768, num_hidden_layers=1).save(tmp_path / "wide")
    assert written(tmp_path, template(teacher=str(wide))).stages[2].settings.learning_rate == 2e-4


def test_a_template_for_a_teacher_that_cannot_be_pruned(
    tiny_reader: Callable[..., Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haystack_distill.students.pruning.half_shape", lambda reader: None)
    text = template(teacher=str(tiny_reader().save(tmp_path / "teacher")))
    assert "half of the teacher's 4" in text
    student = written(tmp_path, text).student
    assert (student.layers, student.pruned) == (2, None)


def test_a_template_for_unlabelled_data_and_an_unusual_teacher(
    tiny_reader: Callable[..., Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without attention scores, mask token and labels; many questions for a CPU; only some of it given."""
    from haystack_distill.errors import DistilError
    from haystack_distill.models import outputs

    def refuse(config: Any) -> None:
        raise DistilError("not available")

    examples = load_examples(sample_path("train")).select(range(20))
    unlabelled = examples.map(
        lambda row: row | {"labelled": False, "is_impossible": False, "answers": {"text": [], "answer_start": []}}
    )
    write_squad(unlabelled, tmp_path / "it's mine.json")
    teacher = tiny_reader(num_hidden_layers=1)
    teacher.tokenizer.mask_token = None
    directory = teacher.save(tmp_path / "teacher")
    teacher.tokenizer.mask_token = "[MASK]"
    monkeypatch.setattr(outputs, "require_attention_scores", refuse)
    monkeypatch.setattr("haystack_distill.recipes.template._AUGMENTED", {"cpu": 60, "gpu": 60})
    recipe = written(tmp_path, template(str(tmp_path / "it's mine.json"), str(directory)))
    general, layers, answers = recipe.stages
    assert recipe.student.pruned.layers == 1
    assert general.method.attention_loss_weight == layers.method.attention_loss_weight == 0
    assert layers.augment.p_mask == 0
    assert layers.augment.multiplication_factor == 3
    assert answers.method.distillation_loss_weight == 1
    only_data = written(tmp_path, template(str(tmp_path / "it's mine.json")))
    assert only_data.teacher == "deepset/roberta-base-squad2"
    assert only_data.windows.max_seq_len == 384
    assert written(tmp_path, template(teacher=str(directory))).data == ["train.json"]
