"""Readers saved as the weights that differ from their base: what is written, loading, and what does not fit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForQuestionAnswering

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, WindowSettings, students
from haystack_distill.models.adapters import adapters_of
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.training.adaptation import Adaptation, Biases, LastLayers
from haystack_distill.training.adapters import Adapters
from haystack_distill.training.lora import Lora
from tests.training.helpers import Killed, kill_at_step

MakeReader = Callable[..., Reader]
SETTINGS = TrainingSettings(max_steps=2, batch_size=4, learning_rate=1e-2, precision="fp32", progress=False)
ADAPTERS, BIASES = Adapters(adapter_size=4), Biases(save_only_trained=True)
LORA = Lora(rank=2, target="query_value", save_only_trained=True)


def loaded(directory: Path) -> Reader:
    return Reader.load(directory, device="cpu", precision="fp32", window_settings=WindowSettings(48, 16, 16))


def names_in(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as stream:
        return set(stream.keys())


def logits(reader: Reader) -> torch.Tensor:
    batch = reader.tokenizer("Who wrote it?", "Ada wrote it in 1843.", return_tensors="pt")
    with torch.no_grad():
        return reader.model(**batch).start_logits


def alike(one: Reader, other: Reader) -> bool:
    """Whether two readers have the same weights, bit by bit, and logits, whose last bits depend on where tensors lie."""
    weights = [reader.model.state_dict() for reader in (one, other)]
    same = weights[0].keys() == weights[1].keys() and all(
        weights[1][name].equal(weights[0][name]) for name in weights[0]
    )
    return same and torch.allclose(logits(one), logits(other), atol=1e-6)


def train(student: Reader, data: Path, output: Path | None, adaptation: Adaptation, **changed: object) -> Reader:
    ReaderTrainer(student, output, replace(SETTINGS, **changed)).distil(None, data, "labels", adaptation=adaptation)
    return student


@pytest.fixture
def base(tiny_reader: MakeReader, tmp_path: Path) -> Path:
    return tiny_reader().save(tmp_path / "base")


def test_adapters_are_put_together_with_their_base(base: Path, squad_file: Path, tmp_path: Path) -> None:
    student = train(loaded(base), squad_file, tmp_path / "run", ADAPTERS)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    found = names_in(tmp_path / "run" / "trained_weights.safetensors")
    assert {name for name in found if ".up." not in name and ".down." not in name} <= {
        name for name in student.model.state_dict() if "LayerNorm" in name or "qa_outputs" in name
    }
    again = loaded(tmp_path / "run")
    assert len(adapters_of(again.model)) == 8
    assert alike(again, student)
    for saved in (again.save(tmp_path / "copy"), student.save(tmp_path / "copy")):
        assert json.loads((saved / "trained_weights.json").read_text())["base"] == str(base)
        assert names_in(saved / "trained_weights.safetensors") == found
        assert alike(loaded(saved), student)
    # Trained once more, from the trained ones: the base is still the first one.
    more = train(loaded(saved), squad_file, tmp_path / "more", ADAPTERS)
    assert json.loads((tmp_path / "more" / "trained_weights.json").read_text())["base"] == str(base)
    assert alike(loaded(tmp_path / "more"), more)


def test_a_student_of_memory_takes_all_its_weights_along(
    tiny_reader: MakeReader, squad_file: Path, tmp_path: Path
) -> None:
    student = train(students.from_teacher(tiny_reader(), layers=2), squad_file, tmp_path / "run", ADAPTERS)
    assert names_in(tmp_path / "run" / "trained_weights.safetensors") == student.model.state_dict().keys()
    assert alike(loaded(tmp_path / "run"), student)
    for adaptation in (BIASES, LORA):
        with pytest.raises(DistilError, match="it was made in memory; save the student first and load it"):
            train(tiny_reader(), squad_file, tmp_path / "other", adaptation)


def test_only_the_trained_weights_of_a_plain_model(base: Path, squad_file: Path, tmp_path: Path) -> None:
    student = train(loaded(base), squad_file, tmp_path / "run", BIASES)
    found = names_in(tmp_path / "run" / "trained_weights.safetensors")
    assert all(name.endswith("bias") or name.startswith("qa_outputs") for name in found)
    again = loaded(tmp_path / "run")
    assert alike(again, student)
    assert again.untrained == ()
    resumed = train(loaded(base), squad_file, tmp_path / "run", BIASES, resume=True)  # it has finished
    assert alike(resumed, student)
    again.save(tmp_path / "run")  # whole: the trained weights alone are gone
    assert {path.name for path in (tmp_path / "run").glob("*.safetensors")} == {"model.safetensors"}
    plain = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run")
    assert plain.state_dict()["bert.embeddings.LayerNorm.bias"].equal(
        student.model.state_dict()["bert.embeddings.LayerNorm.bias"]
    )


def test_a_fresh_head_is_among_the_trained_weights(tiny_reader: MakeReader, squad_file: Path, tmp_path: Path) -> None:
    LanguageModel.of(tiny_reader()).save(tmp_path / "encoder")  # without a head, which is random in each loading
    student = train(loaded(tmp_path / "encoder"), squad_file, tmp_path / "run", LastLayers(save_only_trained=True))
    assert alike(loaded(tmp_path / "run"), student)


def test_low_rank_updates_are_added_to_their_base(
    base: Path, tiny_reader: MakeReader, squad_file: Path, tmp_path: Path
) -> None:
    student = train(loaded(base), squad_file, tmp_path / "run", LORA)
    plain = loaded(base).model.state_dict()
    updated = {name for name in plain if name.endswith(("query.weight", "value.weight"))}
    assert {name for name, weight in student.model.state_dict().items() if not weight.equal(plain[name])} == updated | {
        "qa_outputs.weight",
        "qa_outputs.bias",
    }
    parts = {f"{name}.update_1.{part}" for name in updated for part in ("down", "up")}
    found = names_in(tmp_path / "run" / "trained_weights.safetensors")
    assert found == parts | {"qa_outputs.weight", "qa_outputs.bias"}
    again = loaded(tmp_path / "run")
    assert alike(again, student)
    for copied in (again, student.copy()):
        copied.save(tmp_path / "copy", only_trained=True)
        assert names_in(tmp_path / "copy" / "trained_weights.safetensors") == found
        assert alike(loaded(tmp_path / "copy"), student)
    for untrained in (loaded(base), student):  # the run has finished: its weights are restored, once
        resumed = train(untrained, squad_file, tmp_path / "run", LORA, resume=True)
        assert alike(resumed, again)
    # Trained once more: both updates, and still the first base.
    more = train(again, squad_file, tmp_path / "more", LORA)
    found = names_in(tmp_path / "more" / "trained_weights.safetensors")
    assert found - {"qa_outputs.weight", "qa_outputs.bias"} == parts | {
        name.replace("update_1", "update_2") for name in parts
    }
    assert json.loads((tmp_path / "more" / "trained_weights.json").read_text())["base"] == str(base)
    assert alike(loaded(tmp_path / "more"), more)
    # Trained otherwise since: what the updates do not explain is saved as it is.
    changed = train(more, squad_file, tmp_path / "layers", LastLayers(2, save_only_trained=True))
    assert {name for name in names_in(tmp_path / "layers" / "trained_weights.safetensors") if name in updated} == {
        name for name in updated if ".layer.2." in name or ".layer.3." in name
    }
    assert alike(loaded(tmp_path / "layers"), changed)

    record = tmp_path / "run" / "trained_weights.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"updates": {**content["updates"], "qa_outputs.weight": [1.0]}}))
    with pytest.raises(DistilError, match="does not belong to the trained_weights"):
        loaded(tmp_path / "run")
    record.write_text(json.dumps(content))
    tiny_reader(seed=5).save(base)
    with pytest.raises(DistilError, match="has other weights than their base had; put it back there"):
        loaded(tmp_path / "run")


def test_updates_of_an_interrupted_run(
    base: Path, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(loaded(base), squad_file, tmp_path / "whole", LORA, checkpoint_every=1)
    student = loaded(base)
    with monkeypatch.context() as patch:
        kill_at_step(patch, 1)
        with pytest.raises(Killed):
            train(student, squad_file, tmp_path / "run", LORA, checkpoint_every=1)
    train(student, squad_file, tmp_path / "run", LORA, checkpoint_every=1, resume=True)
    assert alike(student, whole)
    written = [tmp_path / name / "trained_weights.safetensors" for name in ("whole", "run")]
    assert names_in(written[0]) == names_in(written[1])
    assert alike(loaded(tmp_path / "run"), whole)


@pytest.mark.parametrize("adaptation", [ADAPTERS, LORA])
def test_a_run_that_would_replace_its_base_does_not_begin(
    base: Path, squad_file: Path, adaptation: Adaptation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_at_step(patch, 1)
        with pytest.raises(DistilError, match="holds the base of the reader, which would be replaced"):
            train(loaded(base), squad_file, base, adaptation, overwrite=True)
    assert alike(loaded(base), loaded(base))
    assert not (base / "checkpoints").exists() or not list((base / "checkpoints").glob("checkpoint-*"))


def test_what_does_not_fit(base: Path, tiny_reader: MakeReader, squad_file: Path, tmp_path: Path) -> None:
    student = train(loaded(base), squad_file, tmp_path / "run", ADAPTERS)
    with pytest.raises(DistilError, match="holds the base of the reader, which would be replaced"):
        student.save(base)
    with pytest.raises(DistilError, match="the model has adapters, so no student can be made of it"):
        students.from_teacher(student, layers=2)
    with pytest.raises(DistilError, match="holds only the weights of a reader that were trained"):
        LanguageModel.load(tmp_path / "run")
    record = tmp_path / "run" / "trained_weights.json"
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(
        DistilError, match=r"their base cannot be loaded \(.*base.*put it back there, or change \"base\""
    ):
        loaded(tmp_path / "run")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"base": "../moved"}))
    assert alike(loaded(tmp_path / "run"), student)
    tiny_reader(seed=5).save(moved)
    with pytest.raises(DistilError, match="moved has other weights than their base had; put it back there"):
        loaded(tmp_path / "run")
