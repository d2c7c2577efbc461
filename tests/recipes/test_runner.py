"""The recipe: all three steps, done once; stopped anywhere, it ends where an unstopped one does."""

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

from haystack_distill import DistilError, Reader, ReaderTrainer, WindowSettings
from haystack_distill.data.squad.load import content_hash
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.recipes.plan import plan_recipe
from haystack_distill.recipes.runner import Ingredients, run_recipe
from haystack_distill.recipes.schema import load_recipe
from haystack_distill.training.checkpoints import directory_lock
from haystack_distill.training.language_model_trainer import LanguageModelTrainer
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.transformers_compat import save_model

TEXT = [
    "Ada Lovelace wrote the first program in 1843, long before there was a machine to run it on.",
    "The harbour of Lindow was built in 1702 by Cornelis Baak, who came from Delft with forty masons.",
]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe of three small steps, changed as asked, and returns its path."""
    tiny_reader(num_attention_heads=2).save(tmp_path / "teacher")
    (tmp_path / "corpus.txt").write_text("\n\n".join(TEXT * 20))
    quick = {"batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 2}

    def recipe(name: str = "out", **changed: Any) -> Path:
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
            "general": {"corpus": str(tmp_path / "corpus.txt"), "max_steps": 5, "max_seq_len": 24, **quick}
            | {"buffer_windows": 16},
            "layers": {"n_epochs": 1, "multiplication_factor": 3, "tagger": "textblob", **quick},
            "answers": {"n_epochs": 2, **quick},
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


@pytest.mark.slow
def test_all_steps(
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
    with directory_lock(tmp_path / "out"), pytest.raises(DistilError, match="another run is at work in"):
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
    # Measuring anew and a step more are no reason to do the steps before it again either.
    changed = yaml.safe_load(path.read_text())
    changed["labels_only"] = True
    path.write_text(yaml.safe_dump(changed))
    with pytest.raises(TypeError, match="not callable"):  # labels only is what is left to do
        run(path)


def test_steps_may_be_left_out(write: Callable[..., Path], tmp_path: Path) -> None:
    result = run(write(general="none", layers="none", dev_data=None))
    assert list(result.steps) == ["3-answers"]
    assert result.metrics == {}
    assert not (result.directory / "report.html").exists()
    assert (result.directory / "README.md").exists()


@pytest.mark.slow
def test_a_general_student_may_be_used_again(write: Callable[..., Path], tmp_path: Path) -> None:
    run(write(layers="none", answers={"max_steps": 1}, dev_data=None))
    made = tmp_path / "out" / "1-general"
    for start, head in ((made, "carried over"), (tmp_path / "out" / "reader", "its own")):
        name = head.replace(" ", "-")
        settings = {"max_steps": 1, "learning_rate": 1e-30, "warmup_proportion": 0, "weight_decay": 0}
        path = write(name, general="none", answers="none", layers=settings, student={"start_from": str(start)})
        result = run(path)
        got, wanted = weights(result.directory), weights(start)
        for key, weight in wanted.items():
            assert torch.equal(got.get(key, got.get(f"bert.{key}")), weight), key
        source = tmp_path / "teacher" if start == made else start
        assert torch.equal(got["qa_outputs.weight"], weights(source)["qa_outputs.weight"])


def test_a_reader_to_start_from_keeps_its_head_through_step_1(
    write: Callable[..., Path], tiny_reader: Callable[..., Reader], tmp_path: Path
) -> None:
    start = tiny_reader(seed=7, num_hidden_layers=2).save(tmp_path / "start")
    quick = {"max_steps": 1, "max_seq_len": 24, "batch_size": 2, "buffer_windows": 4}
    settings = {"max_steps": 1, "learning_rate": 1e-30, "warmup_proportion": 0, "weight_decay": 0}
    path = write(general=quick, layers=settings, answers="none", dev_data=None, student={"start_from": str(start)})
    got = weights(run(path).directory)
    assert torch.equal(got["qa_outputs.weight"], weights(start)["qa_outputs.weight"])
    assert not torch.equal(got["qa_outputs.weight"], weights(tmp_path / "teacher")["qa_outputs.weight"])


def test_a_teacher_without_a_head_teaches_layers_only(
    write: Callable[..., Path], tiny_reader: Callable[..., Reader], tmp_path: Path
) -> None:
    reader = tiny_reader()
    save_model(tmp_path / "headless", reader.model.base_model, reader.tokenizer)
    for run_or_plan in (run_recipe, plan_recipe):
        with pytest.raises(DistilError, match=r"answers are random.*qa_outputs\.weight"):
            run_or_plan(load_recipe(write(teacher=str(tmp_path / "headless"))))
    assert not (tmp_path / "out").exists()
    path = write(teacher=str(tmp_path / "headless"), general="none", answers="none", layers={"max_steps": 1})
    assert list(run(path).steps) == ["2-layers"]


def test_without_a_corpus_the_contexts_are_the_text(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(general={"max_steps": 1, "max_seq_len": 24, "batch_size": 2, "buffer_windows": 4})
    have = Ingredients(load_recipe(path))
    step = load_recipe(path).general
    assert step is not None
    texts = [text for part, _ in have.corpus(step, tmp_path / "scratch").read() for text in part]
    assert texts == list(dict.fromkeys(have.examples["context"]))
    result = run(path)
    assert result.steps["1-general"] == 1


def test_the_sample_is_data_by_name(write: Callable[..., Path]) -> None:
    have = Ingredients(load_recipe(write(data="sample")))
    assert len(have.examples) == 643
    assert len(have.load(["sample"], "validation")) == 176


def test_a_narrower_student(write: Callable[..., Path]) -> None:
    result = run(write(student={"hidden_size": 16, "num_hidden_layers": 2}))
    assert (
        Reader.load(result.directory, window_settings=WindowSettings(48, 16, 16), device="cpu").model.config.hidden_size
        == 16
    )


def test_a_step_that_was_begun_otherwise(write: Callable[..., Path], tmp_path: Path) -> None:
    quick = {"n_epochs": 1, "batch_size": 4}
    run(write(general="none", layers=quick, dev_data=None))
    path = write(general="none", layers=quick | {"learning_rate": 2e-4}, dev_data=None)
    with pytest.raises(
        DistilError, match=r"2-layers was begun otherwise \(2-layers.learning_rate: then 0.0003, now 0.0002\)"
    ):
        run(path)
    path = write(general="none", layers=quick, dev_data=None, seed=3)
    with pytest.raises(DistilError, match=r"seed: then 42, now 3"):
        run(path)


def test_a_student_or_a_text_that_changed_behind_its_name(write: Callable[..., Path], tmp_path: Path) -> None:
    general = {"corpus": str(tmp_path / "corpus.txt"), "max_steps": 1, "max_seq_len": 24, "buffer_windows": 4}
    general |= {"teacher": str(tmp_path / "language-model")}
    teacher = Reader.load(tmp_path / "teacher", window_settings=WindowSettings(48, 16, 16), device="cpu")
    LanguageModel.of(teacher).save(tmp_path / "language-model")
    teacher.save(tmp_path / "start")
    answers = {"max_steps": 1, "learning_rate": 1e-3}
    begun = {"layers": "none", "answers": answers, "dev_data": None}
    path = write(**begun, general=general)
    only = write("only", **begun, general="none", student={"start_from": str(tmp_path / "start")})
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
    with pytest.raises(DistilError, match=r"begun otherwise \(student\.general_teacher_weights: then \w+, now \w+\)"):
        run(path)
    with pytest.raises(DistilError, match=r"begun otherwise \(student\.start_from_weights: then \w+, now \w+\)"):
        run(only)


def test_what_an_earlier_version_began(
    write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(layers="none", answers={"max_steps": 1}, dev_data=None)
    result = run(path)
    for name in ("1-general", "3-answers"):  # as they were written before
        begun = tmp_path / "out" / name / "step.json"
        record = json.loads(begun.read_text())
        del record["1-general"]["corpus_content"]
        begun.write_text(json.dumps(record))
    assert run(path).steps == result.steps
    assert "1-general was begun by an earlier version, which did not record 1-general.corpus_content" in caplog.text
    begun.write_text('{"teacher": "a')
    with pytest.raises(DistilError, match=r"step.json cannot be read .*: remove .*3-answers to do the step anew"):
        run(path)


def test_predictions_need_a_masked_language_model(write: Callable[..., Path], tmp_path: Path) -> None:
    corpus = {"corpus": str(tmp_path / "corpus.txt"), "max_steps": 1, "objective": "predictions", "max_seq_len": 24}
    with pytest.raises(DistilError, match=r"general: .*name one as general.teacher"):
        run(write(general=corpus))


@pytest.mark.slow
def test_the_plan(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(labels_only=True)
    plan = {step.name: step for step in plan_recipe(load_recipe(path))}
    assert not (tmp_path / "out").exists()
    result = run(path)
    assert list(plan) == list(result.steps)
    assert plan["1-general"].steps == result.steps["1-general"]
    assert plan["3-answers"].steps == result.steps["3-answers"]
    assert plan["2-layers"].steps >= result.steps["2-layers"]  # some questions have too few variants
    assert plan["2-layers"].examples == 24
    assert all(step.seconds >= 0 for step in plan.values())
    assert plan["3-answers"].cache_megabytes > 0


# --- what is wrong, known before the first step ----------------------------------------------------------------------


def unlabelled(squad_file: Path) -> Path:
    content = json.loads(squad_file.read_text())
    for paragraph in content["data"][0]["paragraphs"]:
        for qa in paragraph["qas"]:
            qa |= {"answers": [], "is_impossible": False, "labelled": False}
    path = squad_file.with_name("unlabelled.json")
    path.write_text(json.dumps(content))
    return path


QUICK = {"max_steps": 1, "batch_size": 4, "checkpoint_every": "none"}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no dev file": ({"dev_data": "absent.json"}, r"dev_data: absent\.json: no such file"),
    "unlabelled dev data": ({"dev_data": "UNLABELLED"}, r'dev_data: question "q0-0" is unlabelled'),
    "layer mapping": ({"layers": {"layer_mapping": "lst"}}, r"layers: layer_mapping has to be"),
    "too short a mapping": ({"layers": {"layer_mapping": [1]}}, r"layers: layer_mapping names 1 teacher layers"),
    "no such layer": ({"layers": {"layer_mapping": [1, 9]}}, r"layers: layer_mapping contains 9"),
    "below 0": ({"layers": {"hidden_loss_weight": -1}}, r"layers: hidden_loss_weight has to be 0 or more"),
    "nothing to learn": (
        {"layers": dict.fromkeys(("embedding_loss_weight", "hidden_loss_weight", "attention_loss_weight"), 0)},
        r"layers: There is nothing to learn",
    ),
    "other heads": (
        {"student": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}},
        r"layers: The student has 4 attention heads",
    ),
    "no data of its own": ({"layers": {"data": "absent.json"}}, r"layers: absent\.json: no such file"),
    "no tagger": ({"layers": {"multiplication_factor": 2, "tagger": "nltk"}}, r"layers: NLTK's tagger needs its data"),
    "temperature": ({"answers": {"temperature": 0}}, r"answers: temperature has to be greater than 0"),
    "no number": ({"answers": {"temperature": "nan"}}, r"answers: temperature has to be greater than 0"),
    "weight": ({"answers": {"distillation_loss_weight": 1.5}}, r"answers: distillation_loss_weight has to be between"),
    "labels that are not there": (
        {"data": "UNLABELLED", "answers": {"distillation_loss_weight": 0}},
        r"answers: none of the data is labelled",
    ),
    "labels only": ({"data": "UNLABELLED", "labels_only": True}, r"labels_only: none of the data is labelled"),
    "licence": ({"license": "apache 2.0"}, r"the hub has no licence 'apache 2.0': did you mean \"apache-2.0\""),
    "language": ({"language": "english"}, r"language must be a code"),
    "seed": ({"seed": -1}, r"seed must be a whole number from 0"),
    "device": ({"device": "gpu"}, r"device .*gpu"),
    "absent device": ({"device": "cuda:77"}, r"device 'cuda:77' cannot be used here"),
    "windows": ({"max_seq_len": 500}, r"max_seq_len 500 is more than the 128 positions"),
    "layers": ({"student": {"layers": 9}}, r"1 to 4 layers, not 9"),
    "no student": ({"student": {"start_from": "absent"}}, r"'absent'"),
    "no teacher": ({"teacher": "./absent"}, r"cannot load a reader"),
    "output": ({"output_dir": "FILE/below"}, r"cannot write .*below"),
    "cache": ({"cache_dir": "FILE/below"}, r"cannot use the cache directory"),
    "corpus": ({"general": {"corpus": "absent.txt", "max_steps": 1}}, r"absent\.txt"),
    "text": ({"general": {"max_steps": 1, "mask_probability": 2}}, r"mask_probability must be .*from 0"),
    "general mapping": ({"general": {"max_steps": 1, "max_seq_len": 24, "layer_mapping": "lst"}}, r"layer_mapping has"),
}


@pytest.fixture
def wrong(
    write: Callable[..., Path], squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Writes a recipe that is wrong in one place, and stops what trains."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("augment.tagging._trouble_with_nltk", lambda: "is not here")
    (tmp_path / "FILE").write_text("mine")
    named = {"UNLABELLED": str(unlabelled(squad_file))}

    def recipe(name: str) -> Path:
        changed = {
            key: named.get(value, value) if isinstance(value, str) else value for key, value in WRONG[name][0].items()
        }
        sections = {"layers": QUICK, "answers": QUICK, "general": "none"}
        for section in ("layers", "answers", "general"):
            if section in changed:
                sections[section] = {**QUICK, **changed.pop(section)}
        return write(**sections | changed)

    return recipe


@pytest.mark.parametrize("does", ["dry run", "run"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_known_before_the_first_step(
    name: str, does: str, wrong: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wrong(name)

    def train(*_: Any, **__: Any) -> None:
        raise AssertionError("a step began")

    monkeypatch.setattr("haystack_distill.training.loop._LoopTrainer", train)
    with pytest.raises(DistilError, match=WRONG[name][1]):
        plan_recipe(load_recipe(path)) if does == "dry run" else run(path)
    assert not list(tmp_path.glob("out/*/*.safetensors"))


def test_what_failed_does_not_stand_in_the_way(write: Callable[..., Path], tmp_path: Path) -> None:
    corpus = {"corpus": str(tmp_path / "corpus.txt"), "max_steps": 1, "batch_size": 2, "buffer_windows": 4}
    rest: dict[str, Any] = {"layers": "none", "answers": QUICK, "dev_data": None}
    with pytest.raises(DistilError, match="knows 128 positions"):
        run(write(general=corpus | {"max_seq_len": 500}, **rest))
    assert (tmp_path / "out" / "1-general" / "step.json").exists()
    result = run(write(general=corpus | {"max_seq_len": 24}, **rest))
    assert result.steps["1-general"] == 1
    begun = json.loads((tmp_path / "out" / "1-general" / "step.json").read_text())
    assert begun["1-general"]["max_seq_len"] == 24


@pytest.mark.slow
def test_a_reader_that_was_removed_is_made_again(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(general="none", layers="none", answers=QUICK)
    first = run(path)
    whole = {file.name for file in first.directory.iterdir()}
    made = weights(first.directory)
    monkeypatch.setattr(ReaderTrainer, "_run", None)
    for name in (None, "model.safetensors", "README.md", "report.json"):
        shutil.rmtree(first.directory) if name is None else (first.directory / name).unlink()
        again = run(path)
        assert again.steps == first.steps
        assert again.metrics == first.metrics
        assert {file.name for file in first.directory.iterdir()} == whole
        assert same(weights(first.directory), made)


@pytest.mark.parametrize("file", ["recipe.json", "3-answers/step.json", "3-answers/haystack_distill.json"])
@pytest.mark.parametrize("content", ["cut", "", "[]", "{}", "null", b"\xff\xfe"])
def test_a_record_that_was_cut_is_one_sentence(
    file: str, content: Any, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(general="none", layers="none", answers=QUICK, dev_data=None)
    finished = tmp_path / "out" / "3-answers"
    finished.mkdir(parents=True)
    monkeypatch.setattr(ReaderTrainer, "_run", None)
    have = Ingredients(load_recipe(path))
    have.first_student().save(finished)
    told = {key: value for key, value in have.recipe.as_dict()["answers"].items() if key != "checkpoint_every"}
    record = {
        "teacher": model_fingerprint(have.teacher.model),
        "student": have.recipe.as_dict()["student"],
        "windows": {"max_seq_len": 48, "doc_stride": 16, "max_query_length": 16},
        "seed": 42,
        "precision": "fp32",
        "3-answers": told | {"data": content_hash(have.examples)},
    }
    (finished / "step.json").write_text(json.dumps(record))
    (finished / "haystack_distill.json").write_text(json.dumps({"steps": 1, "seconds": 1, "history": []}))
    assert run(path).steps == {"3-answers": 1}
    broken = tmp_path / "out" / file
    whole = broken.read_bytes()
    broken.write_bytes(
        whole[: len(whole) // 2] if content == "cut" else content if isinstance(content, bytes) else content.encode()
    )
    if (file, content) == ("recipe.json", "{}"):  # nothing is known, so it is measured again
        assert run(path).steps == {"3-answers": 1}
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


def kill_in_step(path: Path, directory: Path, later: float) -> None:
    """Start the recipe and kill it so many seconds after a step's first checkpoint is begun.

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


@pytest.mark.slow
def test_killed_in_every_step_it_ends_the_same(write: Callable[..., Path], tmp_path: Path) -> None:
    path, moments = write("killed"), random.Random(5)
    ran = subprocess.run(
        command(write("whole")), env=environment(), check=True, capture_output=True, text=True, timeout=300
    )
    whole = json.loads(ran.stdout)
    for step in ("1-general", "2-layers", "3-answers"):
        kill_in_step(path, tmp_path / "killed" / step, later=moments.uniform(0, 0.2))
    done = subprocess.run(command(path), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["steps"] == whole["steps"]
    assert told["metrics"] == whole["metrics"]
    for name in ("1-general", "2-layers", "3-answers", "reader"):
        assert same(weights(tmp_path / "killed" / name), weights(tmp_path / "whole" / name)), name
    assert left_over(tmp_path / "killed") == []
    assert left_over(tmp_path / "killed-cache") == []


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed")
def test_two_processes_do_what_one_does(write: Callable[..., Path], tmp_path: Path) -> None:
    small = {"batch_size": 2, "learning_rate": 5e-5}
    general = yaml.safe_load(write().read_text())["general"]
    layers = {"n_epochs": 1, "multiplication_factor": 2, "tagger": "textblob"}
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
