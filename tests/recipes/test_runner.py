"""Recipes: each stage runs once; stopped anywhere, a recipe ends where an unstopped one does."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import BertForMaskedLM

from haystack_distill import DistilError, Reader, ReaderTrainer, WindowSettings, students
from haystack_distill.models.adapters import adapters_of
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.objectives import TaskAwareLayers
from haystack_distill.recipes.inputs import Inputs
from haystack_distill.recipes.plan import plan_recipe
from haystack_distill.recipes.runner import run_recipe
from haystack_distill.recipes.schema import load_recipe
from haystack_distill.training.checkpoints import directory_lock
from haystack_distill.training.language_model_trainer import LanguageModelTrainer
from haystack_distill.utils.hashing import hash_file
from haystack_distill.utils.model_fingerprint import model_fingerprint, student_record
from haystack_distill.utils.transformers_compat import save_model
from tests.training.helpers import Killed, kill_at_loss

TEXT = [
    "Ada Lovelace wrote the first program in 1843, long before there was a machine to run it on.",
    "The harbour of Lindow was built in 1702 by Cornelis Baak, who came from Delft with forty masons.",
]
ROOT = Path(__file__).parents[2]


QUICK = {"max_steps": 1, "batch_size": 4, "checkpoint_every": "none"}
STAGES: dict[str, dict[str, Any]] = {
    "general": {"method": "intermediate_layers"},
    "layers": {"method": "intermediate_layers"},
    "answers": {"method": {"name": "prediction_layer", "temperature": 2, "distillation_loss_weight": 0.8}},
}


@pytest.fixture
def write(tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe of three small stages, changed as asked, and returns its path.

    A stage of `STAGES` is given as its keys besides the method, or as None to leave it out; `stages` gives all.
    """
    tiny_reader(num_attention_heads=2).save(tmp_path / "teacher")
    (tmp_path / "corpus.txt").write_text("\n\n".join(TEXT * 20))
    quick = {"batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 2}
    corpus = {"files": str(tmp_path / "corpus.txt"), "max_seq_len": 24, "buffer_windows": 16}
    usual: dict[str, Any] = {
        "general": {"corpus": corpus, "max_steps": 5, **quick},
        "layers": {"n_epochs": 1, "augment": {"multiplication_factor": 3, "tagger": "textblob"}, **quick},
        "answers": {"n_epochs": 2, **quick},
    }

    def recipe(name: str = "out", **changed: Any) -> Path:
        wanted = {stage: changed.pop(stage, usual[stage]) for stage in STAGES}
        content = {
            "teacher": str(tmp_path / "teacher"),
            "data": str(squad_file),
            "dev_data": str(squad_file),
            "output_dir": str(tmp_path / name),
            "cache_dir": str(tmp_path / f"{name}-cache"),
            "device": "cpu",
            "precision": "fp32",
            "max_seq_len": 48,
            "doc_stride": 16,
            "max_query_length": 16,
            "student": {"layers": 2},
            "stages": [{"name": stage, **STAGES[stage], **keys} for stage, keys in wanted.items() if keys is not None],
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content | changed))
        return path

    return recipe


def run(path: Path) -> Any:
    return run_recipe(load_recipe(path), progress=False)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_students_by_importance(write: Callable[..., Path], squad_file: Path, tmp_path: Path) -> None:
    """They are made once, of the recipe's data and with its seed, also before a stage on a corpus."""
    one = {"answers": QUICK, "general": None, "layers": None, "dev_data": "none"}
    kinds = {
        "cut": {"layers": 2, "which": "importance"},
        "pruned": {"pruned": {"layers": 3, "intermediate_size": 6, "importance_sample": 3}},
    }
    for name, student in kinds.items():
        inputs = Inputs(load_recipe(write(name, student=student, seed=5, **one)))
        first = inputs.first_student().reader()
        assert model_fingerprint(inputs.first_reader().model) == model_fingerprint(first.model)
        teacher, examples = inputs.teacher, inputs.examples
        if name == "cut":
            expected = students.from_teacher(teacher, 2, "importance", data=examples, seed=5)
        else:
            expected = students.pruned(teacher, examples, layers=3, intermediate_size=6, importance_sample=3, seed=5)
        assert model_fingerprint(first.model) == model_fingerprint(expected.model)
    run(tmp_path / "pruned.yaml")
    loaded = Reader.load(tmp_path / "pruned" / "reader", window_settings=WindowSettings(48, 16, 16), device="cpu")
    assert (loaded.model.config.num_hidden_layers, loaded.model.config.intermediate_size) == (3, 6)
    general = {"corpus": {"files": str(tmp_path / "corpus.txt"), "max_seq_len": 24, "buffer_windows": 16}, **QUICK}
    own = {"pruned": {"intermediate_size": 6, "data": str(squad_file)}}
    for teacher in (None, inputs.teacher.save(tmp_path / "encoder")):  # an encoder answers no questions
        general |= {} if teacher is None else {"teacher": str(teacher)}
        inputs = Inputs(load_recipe(write("corpus", student=own, **one | {"general": general})))
        model = inputs.first_student().model
        assert isinstance(model, LanguageModel)
        assert model.model.config.intermediate_size == 6
    assert inputs.first_student().model.model.config.intermediate_size == 6
    wrong = Inputs(load_recipe(write("wrong", student={"pruned": {"heads": 1}}, **one)))
    with pytest.raises(DistilError, match="student: a 'bert' model cannot have fewer heads"):
        wrong.first_student()


def test_a_recipe_holds_out_articles(write: Callable[..., Path], squad_file: Path, tmp_path: Path) -> None:
    """What is held out is measured on, and is in the data of no stage; the card says what it was."""
    content = json.loads(squad_file.read_text())
    articles = [
        {"title": f"{number}", "paragraphs": [paragraph]}
        for number, paragraph in enumerate(content["data"][0]["paragraphs"])
    ]
    squad_file.write_text(json.dumps({"version": "v2.0", "data": articles}))
    quick = {"max_steps": 1, "batch_size": 4, "evaluate_every": 1, "checkpoint_every": "none"}
    path = write(
        dev_data="none",
        dev_split=0.5,
        general=None,
        layers=None,
        answers={"data": str(squad_file), "transfer": str(squad_file), **quick},
    )
    recipe = load_recipe(path)
    inputs = Inputs(recipe)
    assert (len(set(inputs.examples["title"])), len(set(inputs.dev_examples["title"]))) == (2, 2)
    assert set(inputs.original(recipe.stages[0])["title"]) == set(inputs.examples["title"])
    transfer = inputs.transfer(recipe.stages[0])
    assert set(transfer.data["title"]) == set(inputs.examples["title"])
    result = run(path)
    assert result.metrics["student"]["total"] == len(inputs.dev_examples)
    assert "split held-out articles" in (result.directory / "README.md").read_text()


@pytest.mark.slow
def test_all_stages(
    write: Callable[..., Path], tmp_path: Path, squad_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = run(write(labels_only=True))
    assert "4 of the 4 contexts of the dev data are in the training data too" in caplog.text
    assert result.directory == tmp_path / "out" / "reader"
    # 8 questions times 3 in batches of 4, then 8 questions twice; labels only as often as all of them.
    windows = dict(result.steps)
    assert list(windows) == ["1-general", "2-layers", "3-answers", "labels-only"]
    assert windows["1-general"] == 5
    assert windows["labels-only"] == sum(windows.values()) / 2
    student = Reader.load(result.directory, window_settings=WindowSettings(48, 16, 16), device="cpu")
    assert student.model.config.num_hidden_layers == 2
    assert set(result.metrics) == {"teacher", "student", "labels only"}
    assert result.metrics["student"]["total"] == 8
    files = {path.name for path in result.directory.iterdir()}
    assert {"README.md", "report.html", "report.json", "model.safetensors", "tokenizer.json"} <= files
    card = (result.directory / "README.md").read_text()
    assert "distilled from" in card
    assert str(tmp_path) not in card
    assert not list((tmp_path / "out").rglob("checkpoints"))
    assert same(weights(result.directory), weights(tmp_path / "out" / "3-answers"))
    augmented = json.loads((tmp_path / "out" / "2-layers" / "haystack_distill.json").read_text())["data"]["examples"]
    assert 8 < augmented <= 24


def test_one_recipe_at_a_time(write: Callable[..., Path], tmp_path: Path) -> None:
    with directory_lock(tmp_path / "out"), pytest.raises(DistilError, match="another run is using"):
        run(write())


def test_a_folder_of_the_users_is_not_written_over(write: Callable[..., Path], tmp_path: Path) -> None:
    theirs = tmp_path / "out" / "reader" / "README.md"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(DistilError, match="out/reader, where the finished reader would go, is not of this recipe"):
        run(write())
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [theirs]


@pytest.mark.slow
def test_a_finished_recipe_is_not_done_again(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write()
    first = run(path)
    for trainer in (ReaderTrainer, LanguageModelTrainer):
        monkeypatch.setattr(trainer, "distil", None)
    assert run(path) == first
    # Measuring anew and one run more are no reason to repeat the stages before it.
    changed = yaml.safe_load(path.read_text())
    changed["labels_only"] = True
    path.write_text(yaml.safe_dump(changed))
    with pytest.raises(TypeError, match="not callable"):  # labels only is what is left to do
        run(path)


def test_one_stage_is_a_recipe(write: Callable[..., Path]) -> None:
    result = run(write(general=None, layers=None, answers=QUICK, dev_data=None))
    assert list(result.steps) == ["1-answers"]
    assert result.metrics == {}
    assert not (result.directory / "report.html").exists()
    assert (result.directory / "README.md").exists()


def test_a_stage_with_a_transfer_set(write: Callable[..., Path], squad_file: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool.txt"
    pool.write_text("Who?\nWhat?\nWhere?\n")
    transfer = {"data": str(squad_file), "question_pool": str(pool), "questions_per_context": 2, "proportion": 0.75}
    options = {"n_epochs": 1, "batch_size": 4, "checkpoint_every": "none", "transfer": transfer}
    path = write(general=None, layers=None, answers=options, dev_data=None)
    [planned] = plan_recipe(load_recipe(path))
    alone = options | {"transfer": "none"}
    [without] = plan_recipe(load_recipe(write("alone", general=None, layers=None, answers=alone, dev_data=None)))
    assert planned.windows == 4 * without.windows
    assert run(path).steps == {"1-answers": planned.steps}
    record = json.loads((tmp_path / "out" / "1-answers" / "stage.json").read_text())
    assert record["1-answers"]["transfer"]["proportion"] == 0.75
    pool.write_text("Who?\nWhat?\nWhen?\n")
    with pytest.raises(DistilError, match="transfer"):
        run(path)


def test_a_stage_with_sources(
    write: Callable[..., Path], tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path
) -> None:
    tiny_reader(seed=3, hidden_size=16).save(tmp_path / "other")
    sources = [
        {"data": str(squad_file), "teacher": [str(tmp_path / "other"), str(tmp_path / "teacher")]},
        {"data": str(squad_file), "teacher": "none", "head": "law"},
        {"data": str(squad_file), "teacher": "first"},
    ]
    stages = [
        {"name": "first", "method": "labels", **QUICK},
        {"name": "two", "method": "prediction_layer", "sources": sources, "n_epochs": 1, "checkpoint_every": "none"},
    ]
    path = write(stages=stages, dev_data=None)
    planned = plan_recipe(load_recipe(path))[1]
    assert run(path).steps["2-two"] == planned.steps
    record = json.loads((tmp_path / "out" / "2-two" / "stage.json").read_text())["2-two"]
    assert [one["teacher"] is None for one in record["sources"]] == [False, True, False]
    assert [one.get("head") for one in record["sources"]] == [None, "law", None]
    made, reader = tmp_path / "out" / "2-two", tmp_path / "out" / "reader"
    assert same(weights(reader / "heads" / "law"), weights(made / "heads" / "law"))
    assert not torch.equal(weights(reader)["qa_outputs.weight"], weights(made / "heads" / "law")["qa_outputs.weight"])
    assert "Each is a complete reader: `heads/law`." in (reader / "README.md").read_text()
    assert "# law\n" in (reader / "heads" / "law" / "README.md").read_text()
    shutil.rmtree(reader / "heads" / "law")
    (reader / "heads" / "old").mkdir()
    run(path)
    assert [there.name for there in (reader / "heads").iterdir()] == ["law"]
    stages[1]["sampling_exponent"] = 0.5
    with pytest.raises(DistilError, match="sampling_exponent"):
        run(write(stages=stages, dev_data=None))


FROZEN = {"max_steps": 1, "learning_rate": 1e-30, "warmup_proportion": 0, "weight_decay": 0}


@pytest.mark.slow
def test_a_general_student_may_be_used_again(write: Callable[..., Path], tmp_path: Path) -> None:
    run(write(layers=None, answers={"max_steps": 1}, dev_data=None))
    made = tmp_path / "out" / "1-general"
    for start, head in ((made, "carried over"), (tmp_path / "out" / "reader", "its own")):
        path = write(head.replace(" ", "-"), general=None, answers=None, layers=FROZEN, student=str(start))
        result = run(path)
        got, wanted = weights(result.directory), weights(start)
        for key, weight in wanted.items():
            assert torch.equal(got.get(key, got.get(f"bert.{key}")), weight), key
        source = tmp_path / "teacher" if start == made else start
        assert torch.equal(got["qa_outputs.weight"], weights(source)["qa_outputs.weight"])


CONTEXTS = {"corpus": {"max_seq_len": 24, "buffer_windows": 4}, "max_steps": 1, "batch_size": 2}


def test_a_reader_to_start_from_keeps_its_head_through_a_stage_on_a_corpus(
    write: Callable[..., Path], tiny_reader: Callable[..., Reader], tmp_path: Path
) -> None:
    start = tiny_reader(seed=7, num_hidden_layers=2).save(tmp_path / "start")
    path = write(general=CONTEXTS, layers=FROZEN, answers=None, dev_data=None, student={"start_from": str(start)})
    got = weights(run(path).directory)
    assert torch.equal(got["qa_outputs.weight"], weights(start)["qa_outputs.weight"])
    assert not torch.equal(got["qa_outputs.weight"], weights(tmp_path / "teacher")["qa_outputs.weight"])


def test_a_corpus_after_questions_keeps_the_head_that_was_learnt(write: Callable[..., Path], tmp_path: Path) -> None:
    answers = {"name": "answers", **STAGES["answers"], **QUICK, "learning_rate": 1e-2, "warmup_proportion": 0}
    text = {"name": "text", **STAGES["general"], **CONTEXTS}
    again = {"name": "again", **STAGES["general"], **CONTEXTS}
    result = run(write(stages=[answers, text, again], dev_data=None))
    assert list(result.steps) == ["1-answers", "2-text", "3-again"]
    learnt, got = weights(tmp_path / "out" / "1-answers"), weights(result.directory)
    assert torch.equal(got["qa_outputs.weight"], learnt["qa_outputs.weight"])
    assert not torch.equal(got["qa_outputs.weight"], weights(tmp_path / "teacher")["qa_outputs.weight"])
    encoder = weights(tmp_path / "out" / "3-again")
    assert all(torch.equal(got[f"bert.{key}"], weight) for key, weight in encoder.items())


def test_teachers_of_a_stage(
    write: Callable[..., Path], tiny_reader: Callable[..., Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier stage, a list with a reader of another shape, and none for labels; several methods at once."""
    tiny_reader(seed=3, hidden_size=16).save(tmp_path / "other")
    stages = [
        {"name": "labels", "method": "labels", **QUICK},
        {"name": "again", "method": ["prediction_layer", {"name": "intermediate_layers", "weight": 0.5}], **QUICK}
        | {"teacher": "labels", "adaptation": {"name": "last_layers", "n_layers": 1}},
        {
            "name": "both",
            "method": "prediction_layer",
            "teacher": [{"stage": "again", "weight": 3}, {"name": str(tmp_path / "other"), "weight": 1}],
            **QUICK,
        },
    ]
    path = write(stages=stages, dev_data=None)
    result = run(path)
    records = [
        json.loads((tmp_path / "out" / name / "haystack_distill.json").read_text())
        for name in ("1-labels", "2-again", "3-both")
    ]
    assert [record["method"] for record in records] == [
        "labels",
        "prediction_layer + intermediate_layers",
        "prediction_layer",
    ]
    labels = Reader.load(tmp_path / "out" / "1-labels", window_settings=WindowSettings(48, 16, 16), device="cpu")
    assert records[0]["teacher"] is None
    assert records[1]["teacher"]["weights"] == model_fingerprint(labels.model)
    defaults = {"embeddings": False, "save_only_trained": False}
    assert records[1]["adaptation"] == {"name": "last_layers", "n_layers": 1} | defaults
    assert list(records[2]["teacher"]["teachers"]) == ["1", "2"]
    assert records[2]["teacher"]["weights"] == [0.75, 0.25]
    monkeypatch.setattr(ReaderTrainer, "distil", None)
    assert run(path) == result
    tiny_reader(seed=4, hidden_size=16).save(tmp_path / "other")
    with pytest.raises(DistilError, match=r"3-both was begun otherwise \(3-both\.teacher: then "):
        run(path)


def test_the_last_stage_trains_adapters(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it trains of an earlier stage's reader is all that the finished reader's directory holds."""
    adapters = {"name": "adapters", "adapter_size": 4}
    stages = [{"name": "labels", "method": "labels"}, {"name": "adapters", "method": "labels", "adaptation": adapters}]
    path = write(stages=[QUICK | stage for stage in stages])
    result = run(path)
    loaded = [
        Reader.load(place, window_settings=WindowSettings(48, 16, 16), device="cpu", precision="fp32").model
        for place in (result.directory, tmp_path / "out" / "2-adapters", tmp_path / "out" / "1-labels")
    ]
    assert [len(adapters_of(model)) for model in loaded] == [4, 4, 0]
    assert model_fingerprint(loaded[0]) == model_fingerprint(loaded[1])
    assert not (result.directory / "model.safetensors").exists()
    record = json.loads((result.directory / "trained_weights.json").read_text())
    assert record["base"] == str(tmp_path / "out" / "1-labels")
    monkeypatch.setattr(ReaderTrainer, "distil", None)
    assert run(path) == result


@pytest.mark.parametrize("augment", [{"drop_labels": True}, {"context_ngrams": True}])
def test_the_teacher_labels_what_augmentation_leaves_without(
    write: Callable[..., Path], squad_file: Path, augment: dict[str, Any]
) -> None:
    """Examples that will be unlabelled are known to be so before they are made."""
    augmented = {"multiplication_factor": 3, "tagger": "textblob", **augment}
    stage = {"method": "hard_targets", "augment": augmented} | QUICK
    assert list(run(write(general=None, layers=None, answers=stage)).steps.values()) == [1]


def test_the_weights_that_were_trained_are_all_that_the_finished_reader_holds(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    head = {"name": "head", "save_only_trained": True}
    stages = [{"name": "a", "method": "labels"}, {"name": "b", "method": "labels", "adaptation": head}]
    path = write(general=None, layers=None, answers=None, stages=[QUICK | stage for stage in stages])
    result = run(path)
    assert not (result.directory / "model.safetensors").exists()
    read, whole = (
        Reader.load(place, window_settings=WindowSettings(48, 16, 16), device="cpu").model.state_dict()
        for place in (result.directory, tmp_path / "out" / "2-b")
    )
    assert same(read, whole)
    assert run(path) == result


def test_a_teacher_with_fewer_positions_than_the_student(
    write: Callable[..., Path], tiny_reader: Callable[..., Reader], tmp_path: Path
) -> None:
    """The student that a recipe starts from may have longer windows than its teachers, as on the command line."""
    tiny_reader(seed=3, num_hidden_layers=2, max_position_embeddings=300).save(tmp_path / "long")
    tiny_reader(seed=4, hidden_size=16).save(tmp_path / "other")
    both = {"teacher": [str(tmp_path / "teacher"), str(tmp_path / "other")]}
    given = {"max_seq_len": 200, "doc_stride": 80, "student": {"start_from": str(tmp_path / "long")}}
    for name, stage in (("one", {}), ("ensemble", both)):
        result = run(write(name, **given, general=None, layers=None, answers=QUICK | stage))
        assert Reader.load(result.directory, window_settings=WindowSettings(200, 80, 16)).window_settings.max_seq_len
    with pytest.raises(DistilError, match="128 positions"):  # one that is cut from the teacher has not
        run(write("cut", max_seq_len=200, general=None, layers=None, answers=QUICK))


def test_what_a_stage_measures(write: Callable[..., Path], tmp_path: Path) -> None:
    measured = {"max_steps": 2, "batch_size": 4, "keep_best": "true", "evaluate_every": 1}
    run(write(general=None, layers=None, answers=measured))
    record = json.loads((tmp_path / "out" / "1-answers" / "haystack_distill.json").read_text())
    assert sum("f1" in key for line in record["history"] for key in line) >= 2
    assert record["dev_data"] is not None


def test_augmentation_by_a_language_model(
    write: Callable[..., Path], tiny_reader: Callable[..., Reader], tokenizer: Any, tmp_path: Path
) -> None:
    shape = tiny_reader().model.config
    save_model(tmp_path / "language-model", BertForMaskedLM(shape), tokenizer)
    augment = {"multiplication_factor": 2, "model": str(tmp_path / "language-model"), "word_possibilities": 3}
    layers = QUICK | {"augment": augment | {"tagger": "textblob", "p_mask": 0}}
    path = write(general=None, answers=None, layers=layers, dev_data=None)
    run(path)
    torch.manual_seed(5)
    save_model(tmp_path / "language-model", BertForMaskedLM(shape), tokenizer)
    with pytest.raises(DistilError, match=r"1-layers was begun otherwise"):
        run(path)


def test_a_teacher_without_a_head_teaches_layers_only(
    write: Callable[..., Path], tiny_reader: Callable[..., Reader], tmp_path: Path
) -> None:
    reader = tiny_reader()
    save_model(tmp_path / "headless", reader.model.base_model, reader.tokenizer)
    for run_or_plan in (run_recipe, plan_recipe):
        with pytest.raises(DistilError, match=r"answers are random.*qa_outputs\.weight"):
            run_or_plan(load_recipe(write(teacher=str(tmp_path / "headless"))))
    assert not (tmp_path / "out").exists()
    path = write(teacher=str(tmp_path / "headless"), general=None, answers=None, layers={"max_steps": 1})
    result = run(path)
    assert list(result.steps) == ["1-layers"]
    assert list(result.metrics) == ["student"]  # what is random is nothing to compare with
    assert "distilled from" in (result.directory / "README.md").read_text()


def test_a_recipe_that_begins_with_a_model_without_a_head_is_resumed(
    write: Callable[..., Path], tiny_reader: Callable[..., Reader], tmp_path: Path
) -> None:
    """FastBERT's: labels, then branches that learn from the last layer."""
    reader = tiny_reader()
    save_model(tmp_path / "headless", reader.model.base_model, reader.tokenizer)
    stages = [{"name": "tuned", "method": "labels"}, {"name": "branches", "method": "self_distillation"}]
    common: dict[str, Any] = {"general": None, "layers": None, "answers": None}
    common |= {"teacher": str(tmp_path / "headless"), "student": {"early_exit": True, "branch_size": 4}}
    common["stages"] = [QUICK | stage for stage in stages]
    whole = run(write("whole", **common))
    assert list(whole.metrics) == ["student"]
    assert "distilled from" not in (whole.directory / "README.md").read_text()
    with pytest.MonkeyPatch.context() as patch:
        kill_at_loss(patch, 2)  # in the second stage
        with pytest.raises(Killed):
            run(write("stopped", **common))
    resumed = run(write("stopped", **common))
    assert same(weights(resumed.directory), weights(whole.directory))
    with pytest.raises(DistilError, match=r"stage branches: the branches learn from .* whose answers are random"):
        run(write("untaught", **common | {"stages": common["stages"][1:]}))


def test_the_contexts_are_a_corpus(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(general=CONTEXTS)
    recipe = load_recipe(path)
    inputs = Inputs(recipe)
    texts = [text for part, _ in inputs.corpus(recipe.stages[0], tmp_path / "scratch").read() for text in part]
    assert texts == list(dict.fromkeys(inputs.examples["context"]))


def test_the_sample_is_data_by_name(write: Callable[..., Path]) -> None:
    inputs = Inputs(load_recipe(write(data="sample")))
    assert len(inputs.examples) == 643
    assert len(inputs.load(["sample"], "validation")) == 176


def test_a_narrower_student(write: Callable[..., Path]) -> None:
    result = run(write(student={"hidden_size": 16, "num_hidden_layers": 2}))
    assert (
        Reader.load(result.directory, window_settings=WindowSettings(48, 16, 16), device="cpu").model.config.hidden_size
        == 16
    )


def test_a_student_with_a_tokenizer_of_its_own(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is trained on the recipe's questions and contexts, alike in each call, so that a run resumes."""
    own = {"layers": 2, "tokenizer": {"algorithm": "wordpiece", "vocab_size": 120}}
    keys = {"general": None, "layers": None, "answers": {"n_epochs": 2, "batch_size": 4}, "student": own}
    result = run(write("whole", **keys))
    student = Reader.load(result.directory, window_settings=WindowSettings(48, 16, 16), device="cpu")
    assert len(student.tokenizer) == student.model.config.vocab_size == 120
    with monkeypatch.context() as patch:
        kill_at_loss(patch, 4)
        with pytest.raises(Killed):
            run(write("resumed", **keys))
    assert same(weights(run(write("resumed", **keys)).directory), weights(result.directory))
    with pytest.raises(DistilError, match="make the student before"):
        run(write("corpus", student=own))


def test_a_stage_that_was_begun_otherwise(write: Callable[..., Path], tmp_path: Path) -> None:
    quick = {"n_epochs": 1, "batch_size": 4}
    run(write(general=None, answers=None, layers=quick, dev_data=None))
    path = write(general=None, answers=None, layers=quick | {"learning_rate": 2e-4}, dev_data=None)
    with pytest.raises(
        DistilError, match=r"1-layers was begun otherwise \(1-layers.learning_rate: then 5e-05, now 0.0002\)"
    ):
        run(path)
    path = write(general=None, answers=None, layers=quick, dev_data=None, seed=3)
    with pytest.raises(DistilError, match=r"seed: then 42, now 3"):
        run(path)


def test_a_student_or_a_text_that_changed_behind_its_name(write: Callable[..., Path], tmp_path: Path) -> None:
    corpus = {"files": str(tmp_path / "corpus.txt"), "max_seq_len": 24, "buffer_windows": 4}
    general = {"corpus": corpus, "max_steps": 1, "teacher": str(tmp_path / "language-model")}
    teacher = Reader.load(tmp_path / "teacher", window_settings=WindowSettings(48, 16, 16), device="cpu")
    LanguageModel.of(teacher).save(tmp_path / "language-model")
    teacher.save(tmp_path / "start")
    answers = {"max_steps": 1, "learning_rate": 1e-3}
    begun = {"layers": None, "answers": answers, "dev_data": None}
    path = write(**begun, general=general)
    only = write("only", **begun, general=None, student={"start_from": str(tmp_path / "start")})
    for one in (path, only):
        run(one)
    text = tmp_path / "corpus.txt"
    content = text.read_text()
    text.write_text(content.replace("1843", "1943"))  # as long as before
    with pytest.raises(DistilError, match=r"1-general was begun otherwise \(1-general\.corpus_content: then "):
        run(path)
    text.write_text(content)
    torch.nn.init.normal_(teacher.model.get_input_embeddings().weight)
    LanguageModel.of(teacher).save(tmp_path / "language-model")
    teacher.save(tmp_path / "start")
    with pytest.raises(DistilError, match=r"begun otherwise \(1-general\.teacher: then \S+, now \S+\)"):
        run(path)
    with pytest.raises(DistilError, match=r"begun otherwise \(student\.start_from_weights: then \w+, now \w+\)"):
        run(only)


def test_what_an_earlier_version_began(
    write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(layers=None, answers={"max_steps": 1}, dev_data=None)
    result = run(path)
    for name in ("1-general", "2-answers"):  # as they were written before
        begun = tmp_path / "out" / name / "stage.json"
        record = json.loads(begun.read_text())
        del record["1-general"]["corpus_content"]
        begun.write_text(json.dumps(record))
    assert run(path).steps == result.steps
    assert "1-general was begun by an earlier version, which did not record 1-general.corpus_content" in caplog.text
    begun.write_text('{"teacher": "a')
    with pytest.raises(DistilError, match=r"stage.json cannot be read .*remove .*2-answers to repeat the stage"):
        run(path)


def test_a_directory_of_an_earlier_format(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(general=None, layers=None, answers=QUICK, dev_data=None)
    run(path)
    (tmp_path / "out" / "1-answers" / "stage.json").rename(tmp_path / "out" / "1-answers" / "step.json")
    with pytest.raises(DistilError, match=r"1-answers holds a run without stage\.json, of an earlier version"):
        run(path)


# --- what is wrong, known before the first step ----------------------------------------------------------------------


def unlabelled(squad_file: Path) -> Path:
    content = json.loads(squad_file.read_text())
    for paragraph in content["data"][0]["paragraphs"]:
        for qa in paragraph["qas"]:
            qa |= {"answers": [], "is_impossible": False, "labelled": False}
    path = squad_file.with_name("unlabelled.json")
    path.write_text(json.dumps(content))
    return path


def layers(**options: Any) -> dict[str, Any]:
    return {"layers": {"method": {"name": "intermediate_layers", **options}}}


def answers(**options: Any) -> dict[str, Any]:
    return {"answers": {"method": {"name": "prediction_layer", **options}}}


LABELS = {"method": "labels"}
ADAPTERS = {"name": "adapters", "adapter_size": 4}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no dev file": ({"dev_data": "absent.json"}, r"dev_data: absent\.json: no such file"),
    "unlabelled dev data": ({"dev_data": "UNLABELLED"}, r'dev_data: question "q0-0" is unlabelled'),
    "layer mapping": (layers(layer_mapping="lst"), r"stage layers: method: layer_mapping: 'lst' is not one of"),
    "too short a mapping": (layers(layer_mapping=[1]), r"stage layers: layer_mapping names 1 teacher layers"),
    "no such layer": (layers(layer_mapping=[1, 9]), r"stage layers: layer_mapping contains 9"),
    "below 0": (layers(hidden_loss_weight=-1), r"stage layers: method: hidden_loss_weight must be a number of 0"),
    "nothing to learn": (
        layers(**dict.fromkeys(("embedding_loss_weight", "hidden_loss_weight", "attention_loss_weight"), 0)),
        r"stage layers: method: there is nothing to learn",
    ),
    "other heads": (
        {"student": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}},
        r"stage layers: the student has 4 attention heads",
    ),
    "several teachers' layers": (
        {"layers": {"teacher": ["TEACHER", "TEACHER"]}},
        r"stage layers: .*several teachers",
    ),
    "no data of its own": ({"layers": {"data": "absent.json"}}, r"stage layers: absent\.json: no such file"),
    "no tagger": (
        {"layers": {"augment": {"multiplication_factor": 2, "tagger": "nltk"}}},
        r"stage layers: NLTK's tagger needs its data",
    ),
    "no language model": (
        {"layers": {"augment": {"multiplication_factor": 2, "model": "./absent", "tagger": "textblob"}}},
        r"stage layers: .*absent",
    ),
    "no such layers to adapt": (
        {"layers": {"adaptation": {"name": "last_layers", "n_layers": 9}}},
        r"stage layers: n_layers is 9, but the student has 2 layers",
    ),
    "adapters that are not updated": (
        {"layers": LABELS | {"adaptation": ADAPTERS}, "answers": {"adaptation": "lora"}},
        r"stage answers: the student has adapters, which lora cannot update",
    ),
    "adapters of another size": (
        {"layers": LABELS | {"adaptation": ADAPTERS}, "answers": {"adaptation": ADAPTERS | {"adapter_size": 8}}},
        r"stage answers: the student has adapters of size 4, not 8",
    ),
    "a student of one with adapters": (
        {"layers": LABELS | {"adaptation": ADAPTERS}, "answers": {"student": {"made_from": "layers"}}},
        r"stage answers: .*the model has adapters",
    ),
    "trained weights without their base": (
        {"answers": {"student": {"made_from": "layers"}, "adaptation": {"name": "head", "save_only_trained": True}}},
        r"stage answers: the trained weights alone need the model that they were trained from",
    ),
    "a corpus for early exits": (
        {"student": {"early_exit": True}, "layers": LABELS, "answers": CONTEXTS | STAGES["layers"]},
        r"stage answers: the reader has early exits; a stage on a corpus trains a language model, which has none",
    ),
    "labels that augmentation drops": (
        {"answers": LABELS | {"augment": {"multiplication_factor": 2, "drop_labels": True, "tagger": "textblob"}}},
        r"stage answers: none of the examples is labelled",
    ),
    "predictions of an encoder": (
        {"general": {"method": "masked_language_model", **CONTEXTS}},
        r"stage general: the teacher is an encoder without a head",
    ),
    "answers on a corpus": ({"general": {"method": "prediction_layer", **CONTEXTS}}, r"stage general: .*not a corpus"),
    "temperature": (answers(temperature=0), r"stage answers: method: temperature must be a number above 0"),
    "no number": (answers(temperature="nan"), r"stage answers: method: temperature must be a number above 0"),
    "weight": (answers(distillation_loss_weight=1.5), r"stage answers: method: distillation_loss_weight must be"),
    "labels that are not there": (
        {"data": "UNLABELLED", **answers(distillation_loss_weight=0)},
        r"stage answers: none of the examples is labelled",
    ),
    "a teacher for labels": (
        {"answers": {"method": "labels", "teacher": "TEACHER"}},
        r"stage answers: this method needs no teacher",
    ),
    "labels only": ({"data": "UNLABELLED", "labels_only": True}, r"labels_only: none of the data is labelled"),
    "licence": ({"license": "apache 2.0"}, r"the hub has no licence 'apache 2.0'"),
    "language": ({"language": "english"}, r"language must be a code"),
    "seed": ({"seed": -1}, r"seed must be a whole number from 0"),
    "device": ({"device": "gpu"}, r"device .*gpu"),
    "absent device": ({"device": "cuda:77"}, r"device 'cuda:77' cannot be used here"),
    "windows": ({"max_seq_len": 500}, r"max_seq_len 500 is more than the 128 positions"),
    "layers": ({"student": {"layers": 9}}, r"student: .*1 to 4 layers, not 9"),
    "configuration": ({"student": {"hiden_size": 9}}, r"student: the configuration of bert has no 'hiden_size'"),
    "no student": ({"student": {"start_from": "absent"}}, r"'absent'"),
    "no teacher": ({"teacher": "./absent"}, r"cannot load a reader"),
    "output": ({"output_dir": "FILE/below"}, r"cannot write .*below"),
    "cache": ({"cache_dir": "FILE/below"}, r"cannot use the cache directory"),
    "corpus": ({"general": {"corpus": "absent.txt", "max_steps": 1}}, r"absent\.txt"),
    "text": (
        {"general": {"corpus": {"mask_probability": 2}}},
        r"stage general: corpus: mask_probability must be .*from 0",
    ),
    "positions": ({"general": CONTEXTS | {"corpus": {"max_seq_len": 500}}}, r"stage general: .*128 positions"),
    "general mapping": (
        {"general": CONTEXTS | {"method": {"name": "intermediate_layers", "layer_mapping": "lst"}}},
        r"stage general: method: layer_mapping: 'lst' is not one of",
    ),
}


@pytest.fixture
def wrong(
    write: Callable[..., Path], squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Writes a recipe that is wrong in one place, and stops what trains."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("augment.tagging._trouble_with_nltk", lambda: "is not here")
    (tmp_path / "FILE").write_text("mine")
    named = {"UNLABELLED": str(unlabelled(squad_file)), "TEACHER": str(tmp_path / "teacher")}

    def place(value: Any) -> Any:
        if isinstance(value, list):
            return [place(one) for one in value]
        if isinstance(value, dict):
            return {key: place(one) for key, one in value.items()}
        return named.get(value, value) if isinstance(value, str) else value

    def recipe(name: str) -> Path:
        changed = place(WRONG[name][0])
        stages = {"layers": QUICK, "answers": QUICK, "general": None}
        stages |= {stage: QUICK | changed.pop(stage) for stage in stages if stage in changed}
        return write(**stages | changed)

    return recipe


@pytest.mark.parametrize("does", ["dry run", "run"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_known_before_the_first_stage(
    name: str, does: str, wrong: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wrong(name)

    def train(*_: Any, **__: Any) -> None:
        raise AssertionError("a stage began")

    monkeypatch.setattr("haystack_distill.training.loop._LoopTrainer", train)
    with pytest.raises(DistilError, match=WRONG[name][1]):
        plan_recipe(load_recipe(path)) if does == "dry run" else run(path)
    assert not list(tmp_path.glob("out/*/*.safetensors"))


def test_what_failed_does_not_stand_in_the_way(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest: dict[str, Any] = {"layers": None, "answers": QUICK, "dev_data": None}

    def fail(*_: Any, **__: Any) -> None:
        raise DistilError("no room")

    path = write(general=CONTEXTS | {"learning_rate": 1e-2}, **rest)
    with monkeypatch.context() as patched:
        patched.setattr(LanguageModelTrainer, "distil", fail)
        with pytest.raises(DistilError, match="no room"):
            run(path)
    assert (tmp_path / "out" / "1-general" / "stage.json").exists()
    result = run(write(general=CONTEXTS, **rest))
    assert result.steps["1-general"] == 1
    begun = json.loads((tmp_path / "out" / "1-general" / "stage.json").read_text())
    assert begun["1-general"]["learning_rate"] == 5e-5


@pytest.mark.slow
def test_a_reader_that_was_removed_is_made_again(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(general=None, layers=None, answers=QUICK)
    first = run(path)
    whole = {file.name for file in first.directory.iterdir()}
    made = weights(first.directory)
    monkeypatch.setattr(ReaderTrainer, "distil", None)
    for name in (None, "model.safetensors", "README.md", "report.json"):
        shutil.rmtree(first.directory) if name is None else (first.directory / name).unlink()
        again = run(path)
        assert again.steps == first.steps
        assert again.metrics == first.metrics
        assert {file.name for file in first.directory.iterdir()} == whole
        assert same(weights(first.directory), made)


@pytest.mark.parametrize("file", ["recipe.json", "1-answers/stage.json", "1-answers/haystack_distill.json"])
@pytest.mark.parametrize("content", ["cut", "", "[]", "{}", "null", b"\xff\xfe"])
def test_a_record_that_was_cut_is_one_sentence(
    file: str, content: Any, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(general=None, layers=None, answers=QUICK, dev_data=None)
    finished = tmp_path / "out" / "1-answers"

    def finish(trainer: ReaderTrainer, *_: Any, **__: Any) -> None:
        trainer.student.save(finished)
        (finished / "haystack_distill.json").write_text(json.dumps({"steps": 1, "seconds": 1, "history": []}))

    monkeypatch.setattr(ReaderTrainer, "distil", finish)
    assert run(path).steps == {"1-answers": 1}
    monkeypatch.setattr(ReaderTrainer, "distil", None)
    broken = tmp_path / "out" / file
    whole = broken.read_bytes()
    broken.write_bytes(
        whole[: len(whole) // 2] if content == "cut" else content if isinstance(content, bytes) else content.encode()
    )
    if (file, content) == ("recipe.json", "{}"):  # nothing is known, so it is measured again
        assert run(path).steps == {"1-answers": 1}
        return
    with pytest.raises(DistilError, match=rf"{broken.name}.*remove|begun otherwise") as caught:
        run(path)
    assert "\n" not in str(caught.value)


# --- killed and resumed --------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "NLTK_DATA": "nowhere"}


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "haystack_distill", "recipe", "--config", str(path), "--no-progress", "--json"]


def left_over(directory: Path) -> list[str]:
    """What only a run in progress should have: temporary files and checkpoints."""
    found = [*directory.rglob("*.tmp"), *directory.rglob(".*"), *directory.rglob("checkpoints")]
    return sorted(str(path.relative_to(directory)) for path in found)


def kill_in_stage(path: Path, directory: Path, later: float) -> None:
    """Start the recipe and kill it so many seconds after a stage's first checkpoint is begun.

    Not so many seconds after the start: how long that takes differs, and the recipe may have ended.
    """
    process = subprocess.Popen(command(path), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not any((directory / "checkpoints").glob("*")):
        assert process.poll() is None, process.communicate()[1].decode()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(later)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.only_in("haystack")
@pytest.mark.slow
def test_killed_in_every_stage_it_ends_the_same(write: Callable[..., Path], tmp_path: Path) -> None:
    path, moments = write("killed"), random.Random(5)
    whole = run(write("whole"))
    for stage in ("1-general", "2-layers", "3-answers"):
        kill_in_stage(path, tmp_path / "killed" / stage, later=moments.uniform(0, 0.2))
    done = subprocess.run(command(path), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = json.loads(done.stdout)
    assert printed["steps"] == whole.steps
    assert printed["metrics"] == whole.metrics
    for name in ("1-general", "2-layers", "3-answers", "reader"):
        assert same(weights(tmp_path / "killed" / name), weights(tmp_path / "whole" / name)), name
    assert left_over(tmp_path / "killed") == []
    assert left_over(tmp_path / "killed-cache") == []


@pytest.mark.only_in("farm")
@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed")
def test_two_processes_do_what_one_does(write: Callable[..., Path], tmp_path: Path) -> None:
    small = {"batch_size": 2, "learning_rate": 5e-5}
    general = yaml.safe_load(write().read_text())["stages"][0]
    layers = {"n_epochs": 1, "augment": {"multiplication_factor": 2, "tagger": "textblob"}}
    two = write("two", general=general | small, layers=layers | small, answers={"n_epochs": 1} | small)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, *command(two)[1:]], env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    twice = {"batch_size": 4}
    one = write(
        "one",
        general=general | small | twice,
        layers=layers | small | twice,
        answers={"n_epochs": 1} | small | twice,
    )
    alone = run(one)
    assert json.loads(done.stdout)["steps"] == alone.steps
    for name in alone.steps:
        histories = []
        for directory in ("one", "two"):
            record = json.loads((tmp_path / directory / name / "haystack_distill.json").read_text())
            histories.append([line["loss"] for line in record["history"] if "loss" in line])
        assert histories[0] == pytest.approx(histories[1], rel=1e-4), name
    assert json.loads(done.stdout)["metrics"]["teacher"] == alone.metrics["teacher"]
    assert left_over(tmp_path / "two") == left_over(tmp_path / "two-cache") == []
    assert not list((tmp_path / "two-cache").rglob("*part*"))


def test_a_stage_takes_filters_of_an_earlier_one(write: Callable[..., Path], squad_file: Path, tmp_path: Path) -> None:
    def stages(method: Any = "task_filters", filters: str = "filters") -> list[dict[str, Any]]:
        both = [{"name": "task_aware_layers", "filters": filters}, {"name": "prediction_layer"}]
        return [{"name": "filters", "method": method, **QUICK}, {"name": "student", "method": both, **QUICK}]

    path = write(stages=stages())
    assert [planned.steps for planned in plan_recipe(load_recipe(path))] == [1, 1]
    run_recipe(load_recipe(path), progress=False)
    out = tmp_path / "out"
    record = json.loads((out / "2-student" / "haystack_distill.json").read_text())
    (recorded, _) = record["arguments"]["parts"]
    assert recorded["arguments"]["filters"] == hash_file(out / "1-filters" / "task_filters.safetensors")
    teacher, first = (
        Reader.load(place, window_settings=WindowSettings(48, 16, 16))
        for place in (tmp_path / "teacher", out / "1-filters")
    )
    cut = students.from_teacher(teacher, layers=2)
    assert model_fingerprint(first.model) == model_fingerprint(cut.model)  # the filters alone were trained

    with pytest.raises(DistilError, match="'filters' does not run the method task_filters"):
        load_recipe(write("other", stages=stages(method="labels")))
    with pytest.raises(DistilError, match="neither an earlier stage nor a directory"):
        run_recipe(load_recipe(write("missing", stages=stages(filters="filter"))), progress=False)
    with pytest.raises(DistilError, match="give the output directory of a finished run"):
        ReaderTrainer(cut).distil(teacher, squad_file, TaskAwareLayers(str(tmp_path)))


# --- what a stage trains ---------------------------------------------------------------------------------------------


def test_a_pruned_student_of_a_teacher_that_is_trained_first(write: Callable[..., Path], tmp_path: Path) -> None:
    """The recipe's own teacher cannot answer yet, so nothing is measured with it; labels alone take the student's steps."""
    encoder = Reader.load(tmp_path / "teacher", device="cpu", window_settings=WindowSettings(48, 16, 16))
    encoder.model.bert.save_pretrained(tmp_path / "encoder")
    encoder.tokenizer.save_pretrained(tmp_path / "encoder")
    stages = [
        {"name": "tune", "student": "teacher", "method": "labels", "max_steps": 3},
        {"name": "learn", "student": {"made_from": "tune"}, "teacher": "tune", "method": "prediction_layer"},
    ]
    student = {"pruned": {"layers": 2, "intermediate_size": 6, "importance_sample": 2}}
    given: dict[str, Any] = {"general": None, "layers": None, "answers": None, "student": student}
    given["stages"] = [QUICK | stage for stage in stages]
    run(write(teacher=str(tmp_path / "encoder"), **given))
    made = Reader.load(tmp_path / "out" / "reader", device="cpu", window_settings=WindowSettings(48, 16, 16))
    assert (made.model.config.num_hidden_layers, made.model.config.intermediate_size) == (2, 6)
    result = run(write("baseline", labels_only=True, **given))
    assert result.steps == {"1-tune": 3, "2-learn": 1, "labels-only": 1}


def test_filters_of_a_later_stage_are_refused(write: Callable[..., Path]) -> None:
    stages = [
        {"name": "a", "method": {"name": "task_aware_layers", "filters": "b"}},
        {"name": "b", "method": "task_filters"},
    ]
    path = write(general=None, layers=None, answers=None, stages=[QUICK | stage for stage in stages])
    with pytest.raises(DistilError, match="filters: 'b' is neither an earlier stage nor a directory"):
        run(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"adaptation": "last_layers", "embedding_learning_rate": 1e-3},
            "embedding_learning_rate has no effect: no embedding is trained",
        ),
        ({"adaptation": "biases", "optimizer": "muon"}, "is for the matrices of the encoder's layers"),
        ({"adaptation": "head", "layer_decay": 0.5}, "layer_decay has no effect: below the last layer"),
    ],
)
def test_what_a_later_stage_cannot_do_is_known_before_the_first(
    write: Callable[..., Path], tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    later = {"name": "b", "method": "labels", **QUICK, **changed}
    stages = [{"name": "a", "method": "labels", **QUICK}, later]
    with pytest.raises(DistilError, match=rf"stage b: .*{message}"):
        run(write(general=None, layers=None, answers=None, stages=stages))
    assert not (tmp_path / "out" / "1-a").exists()


def test_a_recipe_with_trained_weights_alone_may_be_moved(write: Callable[..., Path], tmp_path: Path) -> None:
    adapters = {"name": "adapters", "adapter_size": 4}
    stages = [{"name": "a", "method": "labels"}, {"name": "b", "method": "labels", "adaptation": adapters}]
    given: dict[str, Any] = {"general": None, "layers": None, "answers": None}
    given["stages"] = [QUICK | stage for stage in stages]
    before = run(write(**given))
    (tmp_path / "out").rename(tmp_path / "moved")
    after = run(write("moved", **given))
    assert after.steps == before.steps
    assert Reader.load(tmp_path / "moved" / "2-b", device="cpu", window_settings=WindowSettings(48, 16, 16))


def test_stages_train_the_teacher_first_and_generations_begin_anew(write: Callable[..., Path], tmp_path: Path) -> None:
    """The teacher reads the domain's text and learns its labels; a student of it; one of its shape, born again."""
    alone = {"name": "masked_language_model", "soft_target_weight": 0, "cosine_weight": 0}
    text = {"max_seq_len": 24, "buffer_windows": 16}
    stages = [
        {"name": "adapt", "student": "teacher", "corpus": text, "method": alone},
        {"name": "tune", "method": "labels"},
        {"name": "first", "student": {"made_from": "tune"}, "teacher": "tune", "method": "prediction_layer"},
        {"name": "again", "student": "start", "teacher": "first", "method": "prediction_layer"},
        {"name": "last", "student": "again", "teacher": "first", "method": "prediction_layer"},
    ]
    path = write(general=None, layers=None, answers=None, stages=[QUICK | stage for stage in stages])
    recipe = load_recipe(path)
    assert [stage["student"] for stage in recipe.as_dict()["stages"]] == [
        "teacher",
        None,
        {"made_from": "tune", "layers": None},
        "start",
        {"stage": "again"},
    ]
    plan = plan_recipe(recipe)
    assert [stage.steps for stage in plan] == [1] * 5
    result = run_recipe(recipe, progress=False)
    layers = {
        name: json.loads((tmp_path / "out" / name / "config.json").read_text())["num_hidden_layers"]
        for name in result.steps
    }
    assert list(layers.values()) == [4, 4, 2, 2, 2]
    adapted = BertForMaskedLM.from_pretrained(tmp_path / "out" / "1-adapt")
    assert adapted.cls.predictions.decoder.weight is adapted.bert.embeddings.word_embeddings.weight

    # What a stage begins with: that of the stage that it names, not that of the stage before it.
    record = json.loads((tmp_path / "out" / "4-again" / "haystack_distill.json").read_text())
    inputs = Inputs(recipe)
    assert record["student"] == student_record(inputs.first_reader().model)
    record = json.loads((tmp_path / "out" / "2-tune" / "haystack_distill.json").read_text())
    begun = inputs.student_of(recipe.stages[0], inputs.first_student(), lambda name: inputs.teacher).after(
        LanguageModel.load(tmp_path / "out" / "1-adapt", device="cpu")
    )
    assert record["student"] == student_record(begun.reader().model)
    again = run_recipe(load_recipe(path), progress=False)  # nothing is repeated
    assert again.seconds == result.seconds


def test_an_assistant_teaches_a_student_that_is_cut_from_it(write: Callable[..., Path], tmp_path: Path) -> None:
    def stages(layers: int) -> list[dict[str, Any]]:
        student = {"made_from": "assistant", "layers": layers}
        last = {"name": "student", "student": student, "teacher": "assistant", "method": "intermediate_layers"}
        return [QUICK | {"name": "assistant", "method": "prediction_layer"}, QUICK | last]

    sections: dict[str, Any] = {"general": None, "layers": None, "answers": None, "student": {"layers": 3}}
    too_many = load_recipe(write(**sections, stages=stages(4)))
    with pytest.raises(DistilError, match=r"stage student: .* of 3 layers must have 1 to 3 layers, not 4"):
        plan_recipe(too_many)
    recipe = load_recipe(write(**sections, stages=stages(2)))
    assert recipe.as_dict()["stages"][1]["student"] == {"made_from": "assistant", "layers": 2}
    result = run_recipe(recipe, progress=False)
    layers = [
        json.loads((tmp_path / "out" / name / "config.json").read_text())["num_hidden_layers"] for name in result.steps
    ]
    assert layers == [3, 2]


def test_the_teacher_that_is_measured_is_the_trained_one(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stages = [
        {"name": "teacher", "student": "teacher", "method": "labels"},
        {"name": "more", "method": "labels"},
        {"name": "student", "student": "start", "teacher": "more", "method": "prediction_layer"},
    ]
    measured: dict[str, str] = {}

    def note(reader: Reader, dev: Any, name: str, **_: Any) -> Any:
        measured[name] = model_fingerprint(reader.model)
        if name == "student":
            raise KeyboardInterrupt

    monkeypatch.setattr("haystack_distill.recipes.runner.measure_reader", note)
    path = write(general=None, layers=None, answers=None, stages=[QUICK | stage for stage in stages])
    with pytest.raises(KeyboardInterrupt):
        run_recipe(load_recipe(path), progress=False)
    trained = Reader.load(tmp_path / "out" / "2-more", window_settings=WindowSettings(48, 16, 16), device="cpu")
    assert measured["teacher"] == model_fingerprint(trained.model)


def test_what_a_stage_cannot_train(write: Callable[..., Path]) -> None:
    stage = {"name": "one", "method": "labels", **QUICK}
    for student, message in [
        ("later", "student: no stage before it is called 'later'; it is the first"),
        ({"stage": "a", "made_from": "b"}, "student: must have one of: stage"),
        ({"layers": 2}, "student: must have one of: stage"),
        ({"stage": "a", "layers": 2}, "student: layers has no effect on a stage's result that is trained further"),
        ({"made_from": "a", "layers": 0}, "student: layers must be a whole number of at least 1"),
        (["start"], "student: must be start, teacher or an earlier stage"),
    ]:
        path = write(general=None, layers=None, answers=None, stages=[stage | {"student": student}])
        with pytest.raises(DistilError, match=message):
            load_recipe(path)
